"""Main effects and the interaction of a factorial study, from planted results."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from study.factorial import effects
from study.gain_table import GainTable, gain_tables
from study.page import write_page
from study.report_run import log_report_run
from study.results import Collection, collect
from study.run import effects_table
from study.verdict import verdict
from study.wandb_views import study_views
from tests.study.conftest import Planted, record, right
from tests.study.logged import read_logged

# Hits of 1,000. With seeds 0, 1 and 2, dropout gains 38, 40 and 42 without a norm, 8, 12 and 10
# with one; the norm gains 102, 100 and 98 without dropout, 72, 72 and 66 with it.
HITS = {
    "none": [600, 640, 580],
    "dropout": [638, 680, 622],
    "normalization": [702, 740, 678],
    "both": [710, 752, 688],
}


def planted_factorial(
    planted: Planted, hits: dict[str, list[int]], failed: str = ""
) -> tuple[Collection, list[GainTable]]:
    """Plant a factorial study; the runs of the variant `failed` stay at chance accuracy."""
    arms = {}
    for name, counts in hits.items():
        Path(f"{name}.yaml").write_text("vision: {}\n")
        arms[f"{name}.yaml"] = [
            record(seed, right(count, 1000), name, at_chance=name == failed)
            for seed, count in enumerate(counts)
        ]
    study = planted(arms, design="factorial", recipe="both", name="planted")
    collection = collect(study)
    return collection, gain_tables(collection)


def test_effects_are_contrasts_of_the_four_variants(planted: Planted) -> None:
    """Main effects average over the other factor; the interaction is a difference of gains."""
    _, (table,) = planted_factorial(planted, HITS)
    dropout, norm, interaction = effects(table)
    assert (dropout.name, norm.name) == ("dropout", "normalization")
    # By hand: 23, 26 and 26 points; 87, 86 and 82; -30, -28 and -32; t = 4.303.
    for one, mean, half in ((dropout, 25, 4.303), (norm, 85, 6.572), (interaction, -30, 4.968)):
        assert 1000 * one.estimate.mean == pytest.approx(mean)
        assert one.estimate.low is not None
        assert 1000 * (one.estimate.mean - one.estimate.low) == pytest.approx(half, abs=1e-3)
    # p of each t test: 0.0016, 0.00032 and 0.00148. Holm: three times the smallest one, twice the
    # next one, and the largest one is not below that.
    found = [one.p for one in (dropout, norm, interaction)]
    assert found == pytest.approx([0.002956, 0.000968, 0.002956], abs=1e-6)


def test_only_seeds_of_all_four_variants_count(planted: Planted) -> None:
    _, (table,) = planted_factorial(planted, HITS | {"both": [710, 752]})
    found = effects(table)
    assert [one.seeds for one in found] == [2, 2, 2]
    assert found[2].estimate.mean == pytest.approx(-0.029)
    assert "Main effect" not in verdict(table)


def test_without_one_of_the_variants_there_are_no_effects(planted: Planted) -> None:
    _, (table,) = planted_factorial(planted, {k: HITS[k] for k in ("none", "dropout", "both")})
    assert effects(table) == []


def test_the_verdict_begins_with_the_effects(planted: Planted) -> None:
    _, (table,) = planted_factorial(planted, HITS)
    assert verdict(table).startswith(
        "Main effect of dropout: +2.50 points (+2.07 to +2.93), of normalization: +8.50 points "
        "(+7.84 to +9.16). Interaction: -3.00 points (-3.50 to -2.50): the gain of dropout is "
        "smaller with normalization than without it. Best is both"
    )


def test_an_interaction_that_is_not_significant_is_not_explained(planted: Planted) -> None:
    _, (table,) = planted_factorial(planted, HITS | {"both": [742, 778, 722]})
    said = verdict(table)
    assert "Interaction: +0.07 points (-0.51 to +0.64, not significant). " in said
    assert "than without it" not in said


def test_a_training_at_chance_accuracy_shows_no_effects(planted: Planted) -> None:
    """The gain of a factor over a variant that did not train is not its effect."""
    _, (table,) = planted_factorial(planted, HITS, failed="dropout")
    assert "Main effect" not in verdict(table)


def test_terminal_page_and_wandb_show_the_effects(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, tables = planted_factorial(planted, HITS)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(effects_table(tables[0]))
    row = next(line for line in captured.get().splitlines() if line.startswith("interaction"))
    assert row.split() == ["interaction", "3", "-3.00", "-3.50", "to", "-2.50", "0.003"]
    page = Path("study.html")
    write_page(collection, tables, page)
    text = page.read_text()
    assert '<td data-label="95 % interval">-3.50 to -2.50</td><td data-label="p (Holm)">0.003' in (
        text
    )
    chart = text.split('id="interaction-data">')[1].split("</script>")[0]
    lines = {one["name"]: one["y"] for one in json.loads(chart)["data"]}
    assert lines["without dropout"] == pytest.approx([60.667, 70.667], abs=1e-3)
    assert lines["with dropout"] == pytest.approx([64.667, 71.667], abs=1e-3)
    report = str(study_views(collection.study, tables, "ENTITY", None)["report"].blocks)
    assert "| interaction | 3 | -3.00 | -3.50 to -2.50 | 0.003 |" in report
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_report_run(collection, tables, None, lambda _: None)
    logged = read_logged(collection.study.folder / "report")
    assert logged.summary["report/effect/interaction"]["mean"] == pytest.approx(-0.03)
    assert logged.columns("report/effects")[0] == "effect"
