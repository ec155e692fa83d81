"""`make report`: its output, and the number of computations."""

import json
from pathlib import Path

import pytest

from study import gain_table, report, results
from study.plan import Study
from study.state import stored_state
from tasks.exporting.model_card import study_text
from tests.study.conftest import Planted, record, right


def test_a_report_reads_each_result_and_compares_the_variants_once(
    gaining: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for module, name in (
        (gain_table, "compare"),
        (gain_table, "tied_for_best"),
        (results, "read_result"),
    ):

        def counted(*arguments, original=getattr(module, name), name=name, **options):
            calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
    report.main(["--study", gaining.name])
    assert sorted(calls) == ["compare", *["read_result"] * 9, "tied_for_best"]
    # The page, the stored state and the W&B report have the same table.
    verdict = json.loads((gaining.folder / "state.json").read_text())["verdict"]
    assert verdict.startswith("Best is both: +12.00 points")
    assert verdict in (gaining.folder / "study.html").read_text()
    assert verdict in (gaining.folder / "wandb-report.json").read_text()


def test_a_study_without_wandb_has_a_page_alone(planted: Planted) -> None:
    study = planted(
        {name: [record(s, right(50, 100), name) for s in range(3)] for name in ("none", "both")},
        arguments=["--logger", "csv"],
    )
    report.main(["--study", study.name])
    assert (study.folder / "study.html").exists()
    assert not (study.folder / "report").exists()
    assert not list(study.folder.glob("wandb-*.json"))


def test_a_run_that_ends_while_a_report_is_written_makes_its_state_outdated(
    gaining: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = gaining.folder / "both-s2" / "metrics.json"
    late.rename("later.json")
    # The last run ends after the study was read and before its state is stored.
    monkeypatch.setattr(report, "write_page", lambda *_: Path("later.json").rename(late))
    monkeypatch.setattr(report, "publish", lambda *_: None)
    report.main(["--study", gaining.name])
    state = json.loads((gaining.folder / "state.json").read_text())
    assert state["progress"] == "8 of 9 runs"
    assert stored_state(gaining.folder) is None


def test_the_model_card_of_a_run_quotes_its_study(gaining: Study) -> None:
    assert study_text(gaining.folder / "both-s1") == ""
    report.main(["--study", gaining.name])
    text = study_text(gaining.folder / "both-s1")
    # Gains of 10, 12 and 14 points: a standard error of 2 / sqrt(3), and t = 4.303.
    assert text.startswith(
        "Study: variant both, mean test accuracy of 3 seeds 63.00 %; gain over none +12.00 points, "
        "95 % interval +7.03 to +16.97. Verdict: Best is both"
    )
    assert "gain over" not in study_text(gaining.folder / "none-s0")
    assert study_text(gaining.folder / "other-s0") == ""
    (gaining.folder / "state.json").write_text('{"arms": [1], "verdict": 2}')
    assert study_text(gaining.folder / "both-s1") == ""
