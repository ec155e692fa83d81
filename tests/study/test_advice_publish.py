"""An advice in W&B: the report run, the report and the workspace, offline and on a server."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from study.advising.page import Confirmed, write_page
from study.advising.publish import publish
from study.advising.records import Advice, ArmTuning, Confirmation, Contrast, Look, Question, Trial
from study.advising.report_run import log_report_run
from study.advising.views import advice_views
from study.plan import Study
from study.wandb_views import spec_of
from tasks.train import main as train_main
from tests.loopback import Server
from tests.study.advised import RATE, plant_advice, validated
from tests.study.conftest import read_tables
from tests.study.logged import Logged, check_panel, check_runset, panels_of, read_logged

DROPOUT = "model.reg.head_dropout"


def said_by(advice: Advice, folder: Path) -> str:
    lines: list[str] = []
    publish(advice, folder, None, lines.append)
    return "\n".join(lines)


def test_online_the_answer_arrives_and_publishing_again_updates_it(
    online: Server, tmp_path: Path
) -> None:
    advice, folder = plant_advice(tmp_path, pairs=3)
    assert advice.recommendation is not None
    write_page(advice, folder, under_way=False)
    said = said_by(advice, folder)
    assert said.count("on W&B: http") == 2
    run = online.told("UpsertBucket")[0]
    assert (run["groupName"], run["jobType"]) == ("vision-builtin", "report")
    summary = json.loads(online.uploads["wandb-summary.json"])
    assert summary["report/sentence"] == advice.recommendation.sentence
    assert summary["report/gain/both"]["gain"] == pytest.approx(0.08)
    table = next(file for file in online.uploads if "forest_table" in file)
    rows = json.loads(online.uploads[table])["data"]
    gains = {row[0].splitlines()[0]: row[2] for row in rows if row[1] == "mean"}
    assert gains == pytest.approx({"both": 8.0, "dropout": 1.0, "batchnorm": 6.0}, abs=0.7)
    assert len([row for row in rows if row[1] == "seed"]) == 9
    assert b"<!doctype html>" in online.uploads["advice.html"]
    assert "recommended.yaml" in online.uploads
    report = online.told("upsertView")[0]["spec"]
    for part in ("Put dropout 0.2 before the head", "report/budget", "make advise", DROPOUT):
        assert part in report, part
    assert said_by(advice, folder) == said
    assert sorted(view.type for view in online.views.values()) == ["project-view", "runs"]
    assert len([run for run in online.runs.values() if run.job_type == "report"]) == 1


def test_offline_the_specs_are_written_and_the_command_that_publishes_them(tmp_path: Path) -> None:
    advice, folder = plant_advice(tmp_path, arms=["none"], trials=2, phase="tuning")
    said = said_by(advice, folder)
    assert "W&B is offline" in said
    assert "make advise TASK=vision DATA=builtin ARMS=" in said
    assert "There is no recommendation yet." in (folder / "wandb-report.json").read_text()
    assert (folder / "wandb-workspace.json").exists()


def test_without_wandb_nothing_is_published(tmp_path: Path) -> None:
    advice, folder = plant_advice(tmp_path, phase="tuning", trials=1)
    question = replace(advice.question, arguments=["--logger", "csv"])
    before = sorted(folder.iterdir())
    assert said_by(replace(advice, question=question), folder) == ""
    assert sorted(folder.iterdir()) == before


@pytest.fixture(scope="module")
def published(
    trained: Study, caches: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, list[Logged]]]:
    """Views of an advice with runs that were really trained, and what these runs logged."""
    folder = tmp_path_factory.mktemp("advice")
    arguments = [one for one in trained.arguments if "max_epochs" not in one]
    arms = ["none", "both"]
    trials = [
        Trial(number, "sampled", {RATE: rate, DROPOUT: rate}, {0: validated(0.5 + rate)})
        for number, rate in enumerate((0.1, 0.2))
    ]
    contrasts = [Contrast("both", "none", 3, 0.01, -0.01, 0.03, 0.4, 0.4)]
    advice = Advice(
        Question(trained.name, "vision", "builtin", arms, 60.0, 0.5),
        [ArmTuning(arm, trials) for arm in arms],
        Confirmation("both", "none", [3], [Look(3, 0.05, 4.3, contrasts)], parts=contrasts),
    )
    collection, [table] = read_tables(trained)
    confirmed = Confirmed(collection, table)
    tuned = folder / "trial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
        train_main(
            [
                *("--task", "vision", "--reg", "both", "--data", "builtin", "--seed", "0"),
                *("--no_test", "--run_dir", str(tuned), "--trainer.max_epochs=1"),
                f"--trainer.logger.init_args.group={trained.name}",
                "--trainer.logger.init_args.job_type=tune",
                *arguments,
            ]
        )
        log_report_run(advice, folder, confirmed, None, lambda team: None)
        wandb.teardown()
    views = advice_views(advice, confirmed, "team", None)
    runs = [trained.run_folder(arm, seed) for arm in trained.arms() for seed in trained.seeds]
    logged = {
        "train": [read_logged(run) for run in runs],
        "tune": [read_logged(tuned)],
        "report": [read_logged(folder / "report")],
    }
    return {name: spec_of(view) for name, view in views.items()}, logged


@pytest.mark.parametrize("name", ["report", "workspace"])
def test_each_key_of_a_view_is_logged(
    published: tuple[dict[str, Any], dict[str, list[Logged]]], name: str
) -> None:
    specs, logged = published
    everything = [run for runs in logged.values() for run in runs]
    shown = list(panels_of(specs[name]))
    for job_type, panel in shown:
        check_panel(panel, logged[job_type] if job_type else everything)
    kinds = [panel["viewType"] for _, panel in shown]
    # Both parameters, the forest plot and four charts of the page.
    assert kinds.count("Scatter Plot") == 2
    assert kinds.count("Media Browser") >= 4
    if name == "workspace":
        [runs] = specs[name]["section"]["runSets"]
        check_runset(runs, everything)
    else:
        for block in specs[name]["blocks"]:
            for runs in block.get("metadata", {}).get("runSets", []):
                check_runset(runs, everything)


def test_the_runs_of_tuning_are_apart_from_those_of_the_confirmation(
    published: tuple[dict[str, Any], dict[str, list[Logged]]],
) -> None:
    specs, _ = published
    kinds = {
        panel["viewType"]: job_type
        for job_type, panel in panels_of(specs["report"])
        if panel["viewType"] in ("Scatter Plot", "Run History Line Plot", "Bar Chart")
    }
    assert kinds == {
        "Scatter Plot": "tune",
        "Run History Line Plot": "train",
        "Bar Chart": "train",
    }
