"""A study in W&B: the report run, the report and the workspace, offline and on a server."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from study import publish as publishing
from study import saved_views
from study.gain_table import gain_tables
from study.page import write_page
from study.plan import Study
from study.publish import publish
from study.report_run import examples
from study.results import collect
from study.saved_views import SavedViews
from study.wandb_panels import study_panels
from study.wandb_views import write_specs
from tests.loopback import Server
from tests.loopback.state import Run
from tests.study.conftest import read_tables
from tests.study.logged import panels_of, table_key


def said_by(study: Study, entity: str | None = None) -> str:
    lines: list[str] = []
    publish(*read_tables(study), entity, lines.append)
    return "\n".join(lines)


def test_online_the_report_run_the_report_and_the_workspace_arrive(
    online: Server, gaining: Study
) -> None:
    write_page(*read_tables(gaining), gaining.folder / "study.html")
    said = said_by(gaining)
    assert said.startswith("uploading the report run to W&B\n")
    assert said.count("on W&B: http") == 2
    # The run is in the group of the study, with tables, images and a summary.
    run = online.told("UpsertBucket")[0]
    assert run["groupName"] == gaining.name
    assert run["jobType"] == "report"
    summary = json.loads(online.uploads["wandb-summary.json"])
    assert summary["report/gain/both"]["mean"] == pytest.approx(0.12)
    assert summary["report/nll/both"]["mean"] == pytest.approx(0.0)
    assert summary["report/at_chance/both"] == 0
    assert summary["report/verdict"].startswith("Best is both: +12.00 points")
    names = " ".join(online.uploads)
    for part in ("gain_table", "learning_curves", "reliability", "report/gap"):
        assert part in names
    table = json.loads(online.uploads["examples.table.json"])
    assert len(table["data"]) == 9 * 100
    assert b"<!doctype html>" in online.uploads["study.html"]
    # The runs of a study log no code, so the report run does.
    committed = {one.name for one in online.artifacts if one.state == "COMMITTED"}
    assert committed >= {f"{gaining.name}-examples", "source-regain"}
    # The report and the workspace belong to the default team, and have all panels.
    report, workspace = online.told("upsertView")[0], online.told("UpsertView2")[0]
    assert report["entityName"] == workspace["entityName"] == "team"
    assert "+12.00" in report["spec"]
    for spec in (report["spec"], workspace["spec"]):
        for part in ("variance_shift", "reg/p/", "val/acc", "test/ece", "reg/gap_acc", "variant"):
            assert part in spec
        for part in ("test_last/acc", "test/loss"):
            assert part in spec
        assert gaining.name in spec


def test_the_forest_plot_is_a_chart_of_the_report_run(online: Server, gaining: Study) -> None:
    said_by(gaining)
    [(name, chart)] = online.charts.items()
    # Each field of the chart is a column of the table.
    fields = set(re.findall(r"\$\{field:(\w+)\}", chart["spec"]))
    table = next(file for file in online.uploads if "forest_table" in file)
    content = json.loads(online.uploads[table])
    assert fields <= set(content["columns"])
    gains = {row[0].splitlines()[0]: row[2] for row in content["data"] if row[1] == "mean"}
    assert gains == pytest.approx({"dropout": 0.0, "both": 12.0})
    shown = [
        panel["config"]
        for view in online.views.values()
        for _, panel in panels_of(view.spec)
        if panel["viewType"] == "Vega2"
    ]
    forests = [one for one in shown if one["panelDefId"] == name]
    assert len(forests) == 2
    for one in forests:
        assert table_key(one["userQuery"]) == "report/forest_table"
        assert set(one["fieldSettings"].values()) <= set(content["columns"])
    # Views that were deleted in the browser are saved anew.
    online.views.clear()
    assert said_by(gaining).count("on W&B: http") == 2
    assert len(online.views) == 2


def test_publishing_again_updates_the_same_run_report_and_workspace(
    online: Server, gaining: Study
) -> None:
    runs = [(arm, seed) for arm in gaining.arms() for seed in gaining.seeds]
    for number, (arm, seed) in enumerate(runs):
        (gaining.run_folder(arm, seed) / "wandb_id.txt").write_text(f"run{number}")
        # The last one was never synced.
        if number < 8:
            online.runs[f"run{number}"] = Run(
                f"run{number}", "team", "regain", "", gaining.name, "train", summary={"a": 1}
            )

    def changed() -> int:
        calls = online.told("UpsertBucket")
        return sum("gain/test_acc" in (call.get("summaryMetrics") or "") for call in calls)

    first = said_by(gaining)
    assert "not on W&B: 1 of 9 runs" in first
    assert online.runs["run7"].summary["gain/test_acc"] == pytest.approx(0.12)
    assert online.runs["run0"].summary == {"a": 1} | {
        f"gain/{name}": 0.0 for name in ("test_acc", "val_acc", "test_loss", "ece", "gap")
    }
    assert changed() == 8
    [report] = [view for view in online.views.values() if view.type == "runs"]
    report.specs.append(json.dumps(report.spec | {"discussionThreads": [{"id": "a comment"}]}))
    assert said_by(gaining) == first
    # Summaries that are up to date are not written.
    assert changed() == 8
    assert sorted(view.type for view in online.views.values()) == ["project-view", "runs"]
    assert report.spec["discussionThreads"] == [{"id": "a comment"}]
    assert len(report.specs) == 3
    assert len(online.charts) == 1
    assert len([run for run in online.runs.values() if run.job_type == "report"]) == 1


def test_a_server_that_refuses_report_and_chart_loses_nothing(
    online: Server, gaining: Study, caplog: pytest.LogCaptureFixture
) -> None:
    online.refused = {"upsertView", "CreateCustomChart"}
    said = said_by(gaining)
    assert "W&B rejected the report" in caplog.text
    assert "workspace on W&B" in said
    assert (gaining.folder / "wandb-report.json").exists()
    assert "W&B rejected the forest plot" in caplog.text
    # The Plotly chart of the same gains is shown instead.
    [view] = online.views.values()
    _, first = next(panels_of(view.spec))
    assert first["config"]["mediaKeys"] == ["report/gain"]


@pytest.mark.parametrize(
    ("reason", "is_there"),
    [("preset already exists", True), ("team does not exist", False), ("not allowed", False)],
)
def test_a_preset_is_used_if_the_server_has_it(
    reason: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def create_custom_chart(self, **_: Any) -> None:
            raise wandb.Error(reason)

    monkeypatch.setattr(saved_views.wandb, "Api", Api)
    assert (SavedViews(tmp_path, "team").save_preset() is not None) is is_there


def test_a_server_that_no_longer_answers_loses_nothing(
    online: Server,
    gaining: Study,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(saved_views, "TIMEOUT", 1.0)

    def then_silent(folder: Path, views: Any) -> list[Path]:
        online.fails = "silent"
        return write_specs(folder, views)

    monkeypatch.setattr(publishing, "write_specs", then_silent)
    (gaining.run_folder(next(gaining.arms()), 0) / "wandb_id.txt").write_text("x")
    said_by(gaining)
    for name in ("report", "workspace"):
        assert f"W&B rejected the {name} (no answer in 1 seconds)" in caplog.text
        assert (gaining.folder / f"wandb-{name}.json").exists()
    assert "W&B did not take the gains" in caplog.text


def test_offline_output_has_the_command_that_publishes_it(gaining: Study) -> None:
    said = said_by(gaining)
    assert f"make report STUDY={gaining.name} ENTITY=" in said
    workspace = json.loads((gaining.folder / "wandb-workspace.json").read_text())
    sections = workspace["section"]["panelBankConfig"]["sections"]
    shown = {section["name"]: len(section["panels"]) for section in sections}
    expected = {name: len(content) for name, content in study_panels(gaining).items()}
    # The forest plot and the table of gains are those of the report run.
    assert shown == expected | {"Gain": expected["Gain"] + 2}
    assert "+12.00" in (gaining.folder / "wandb-report.json").read_text()
    [run] = (gaining.folder / "report").glob("wandb/offline-run-*")
    found = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json", run],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Best is both" in found.stdout


def test_the_table_of_examples_has_each_prediction_of_each_run(gaining: Study) -> None:
    table: Any = examples(gain_tables(collect(gaining))[0])
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert len(rows) == 900
    right = [row["label"] == row["predicted"] for row in rows if row["variant"] == "both"]
    assert sum(right) == 60 + 63 + 66
