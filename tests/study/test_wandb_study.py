"""Studies and searches that were really trained: all that their W&B views show is in the runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from study.plan import Study
from study.wandb_panels import study_panels
from study.wandb_views import spec_of, study_views
from tests.loopback import wandb_server
from tests.study.logged import (
    Logged,
    check_panel,
    check_runset,
    panels_of,
    read_logged,
)


@pytest.fixture(scope="module")
def logged(trained: Study) -> dict[str, list[Logged]]:
    """The runs of the study, by job type."""
    folders = [trained.run_folder(arm, seed) for arm in trained.arms() for seed in trained.seeds]
    return {
        "train": [read_logged(folder) for folder in folders],
        "report": [read_logged(trained.folder / "report")],
    }


def spec(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"wandb-{name}.json").read_text())
    return content


def test_each_run_has_its_gains_in_its_own_file(
    trained: Study, logged: dict[str, list[Logged]]
) -> None:
    assert len(logged["train"]) == 9
    by_run = {
        (run.config["run"]["variant"], run.config["run"]["seed"]): run for run in logged["train"]
    }
    for (variant, seed), run in by_run.items():
        baseline = by_run["none", seed]
        for name, key in (("test_acc", "acc"), ("test_loss", "loss"), ("ece", "ece")):
            change = run.summary[f"test/{key}"] - baseline.summary[f"test/{key}"]
            assert run.summary[f"gain/{name}"] == pytest.approx(change, abs=1e-6), (variant, seed)
        for name, key in (("val_acc", "val/acc"), ("gap", "reg/gap_acc")):
            change = run.summary["best"][key] - baseline.summary["best"][key]
            assert run.summary[f"gain/{name}"] == pytest.approx(change, abs=1e-6), (variant, seed)
    # Otherwise the test shows nothing.
    assert len({run.summary["gain/test_acc"] for run in logged["train"]}) > 3


@pytest.mark.parametrize("name", ["workspace", "report"])
def test_each_key_of_a_view_is_logged(
    trained: Study, logged: dict[str, list[Logged]], name: str
) -> None:
    everything = [*logged["train"], *logged["report"]]
    content = spec(trained.folder, name)
    shown = list(panels_of(content))
    for job_type, panel in shown:
        check_panel(panel, logged[job_type] if job_type else everything)
    # The panels of the study, and those of its report run.
    of_study = sum(len(panels) for panels in study_panels(trained).values())
    assert len(shown) >= of_study + 1
    if name == "workspace":
        [runs] = content["section"]["runSets"]
        check_runset(runs, everything)
    else:
        for block in content["blocks"]:
            for runs in block.get("metadata", {}).get("runSets", []):
                check_runset(runs, everything)


@pytest.mark.parametrize(
    ("kind", "key", "wrong"),
    [
        ("Run History Line Plot", "val/acc", "val/accuracy"),
        ("Run History Line Plot", "trainer/global_step", "trainer/step"),
        ("Run History Line Plot", "reg/p/.*", "reg/rates/.*"),
        ("Run History Line Plot", "system/cpu", "system/processors"),
        ("Bar Chart", "gain/test_acc", "gain/accuracy"),
        ("Bar Chart", "run.value.variant", "run.value.arm"),
        ("Media Browser", "report/gain", "report/forest"),
        ("Weave", "test/worst_mistakes", "test/mistakes"),
        ("Vega2", "test/confusion_matrix_table", "test/confusion_matrix"),
        ("Vega2", "nPredictions", "count"),
    ],
)
def test_a_key_that_no_run_logs_is_found(
    trained: Study, logged: dict[str, list[Logged]], kind: str, key: str, wrong: str
) -> None:
    everything = [*logged["train"], *logged["report"]]
    panels = [panel for _, panel in panels_of(spec(trained.folder, "workspace"))]
    asking = [one for one in panels if one["viewType"] == kind and f'"{key}"' in json.dumps(one)]
    changed = json.loads(json.dumps(asking[0]).replace(f'"{key}"', f'"{wrong}"'))
    check_panel(asking[0], everything)
    with pytest.raises(AssertionError, match=r"not logged|is not a table"):
        check_panel(changed, everything)


@pytest.mark.parametrize(
    ("variants", "axes", "kind"),
    [
        (["none", "both"], {"data.train_fraction": ["0.1", "1.0"]}, "Scatter Plot"),
        (["none"], {"model.reg.dropout": ["0", "0.2"]}, "Scatter Plot"),
        (["none"], {"model.arch": ["mlp", "cnn"]}, "Bar Chart"),
    ],
)
def test_the_gain_is_shown_against_each_axis(
    logged: dict[str, list[Logged]], variants: list[str], axes: dict[str, list[str]], kind: str
) -> None:
    study = Study("vision", "builtin", variants, [0], axes=axes)
    views = study_views(study, [], "team", None)
    [key] = axes
    for view in views.values():
        shown = [panel for job_type, panel in panels_of(spec_of(view)) if job_type != "report"]
        titled = [one for one in shown if key in str(one["config"].get("chartTitle"))]
        assert [one["viewType"] for one in titled] == [kind]
        for panel in shown:
            if panel["viewType"] not in ("Media Browser", "Weave"):
                check_panel(panel, logged["train"])


def test_a_sync_publishes_the_gain(
    trained: Study, tmp_path: Path, logged: dict[str, list[Logged]]
) -> None:
    run = trained.run_folder(list(trained.arms())[1], 0)
    folder = tmp_path / "run"
    # Without the mark that the sync leaves.
    shutil.copytree(run / "wandb", folder, symlinks=True)
    [offline] = folder.glob("offline-run-*")
    with wandb_server() as server:
        env = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        command = [Path(sys.executable).parent / "wandb", "sync", offline]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
        summary = json.loads(server.uploads["wandb-summary.json"])
    sent = {name: value for name, value in summary.items() if name.startswith("gain/")}
    own = read_logged(run).summary
    assert sent == {name: value for name, value in own.items() if name.startswith("gain/")}
    assert len(sent) == 5
    assert summary["test/acc"] == own["test/acc"]


def test_the_gain_comes_first(trained: Study) -> None:
    sections = spec(trained.folder, "workspace")["section"]["panelBankConfig"]["sections"]
    assert sections[0]["name"] == "Gain"
    assert any(
        "gain/test_acc" in panel["config"].get("metrics", []) for panel in sections[0]["panels"]
    )
    headings = [
        block["children"][0]["text"]
        for block in spec(trained.folder, "report")["blocks"]
        if block["type"] == "heading"
    ]
    assert headings[0] == "Gain"
