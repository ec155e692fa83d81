"""A study in W&B: the report run, the report and the workspace, offline and on a server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from study.page import write_page
from study.plan import Study
from study.publish import examples, panels, publish
from study.results import collect
from study.tables import tables
from tests.loopback import Server, wandb_server


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with wandb_server() as server:
        for name, value in {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "WANDB_CONFIG_DIR": str(tmp_path / "config"),
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_ENTITY", raising=False)
        wandb.teardown()
        yield server
        wandb.teardown()


def said_by(study: Study, entity: str | None = None) -> str:
    lines: list[str] = []
    publish(collect(study), entity, lines.append)
    return "\n".join(lines)


def test_online_the_report_run_the_report_and_the_workspace_arrive(
    online: Server, gaining: Study
) -> None:
    write_page(collect(gaining), gaining.folder / "study.html")
    said = said_by(gaining)
    assert said.count("on W&B: http") == 2
    # The run: in the study's group, with tables, pictures and summary.
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
    assert any(call["artifactID"] == "A" for call in online.told("CommitArtifact"))
    # The report and the workspace: of the default team, with all panels.
    report, workspace = online.told("upsertView")[0], online.told("UpsertView2")[0]
    assert report["entityName"] == workspace["entityName"] == "team"
    assert "+12.00" in report["spec"]
    for spec in (report["spec"], workspace["spec"]):
        for part in ("variance_shift", "reg/p/", "val/acc", "test/ece", "reg/gap_acc", "variant"):
            assert part in spec
        for part in ("test_last/acc", "test/loss"):
            assert part in spec
        assert gaining.name in spec


def test_the_next_report_run_takes_the_place_of_the_one_before(
    online: Server, gaining: Study
) -> None:
    said_by(gaining)
    said_by(gaining)
    assert len({run["name"] for run in online.told("UpsertBucket") if run["groupName"]}) == 1


def test_a_server_that_refuses_the_report_loses_nothing(
    online: Server, gaining: Study, caplog: pytest.LogCaptureFixture
) -> None:
    online.refused = {"upsertView"}
    said = said_by(gaining)
    assert "W&B does not take the report" in caplog.text
    assert "workspace on W&B" in said
    assert (gaining.folder / "wandb-report.json").exists()


def test_offline_the_same_is_written_and_said_how_to_publish_it(gaining: Study) -> None:
    said = said_by(gaining)
    assert f"make report STUDY={gaining.name} ENTITY=" in said
    workspace = json.loads((gaining.folder / "wandb-workspace.json").read_text())
    sections = workspace["section"]["panelBankConfig"]["sections"]
    shown = {section["name"]: len(section["panels"]) for section in sections}
    assert shown == {name: len(content) for name, content in panels().items()}
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
    table: Any = examples(tables(collect(gaining))[0])
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert len(rows) == 900
    right = [row["label"] == row["predicted"] for row in rows if row["variant"] == "both"]
    assert sum(right) == 60 + 63 + 66
