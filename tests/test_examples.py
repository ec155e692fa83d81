"""examples/own_task: a project of a user, copied to a folder outside of this one."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from regain.registry import import_object
from tasks.predict import main as predict
from tasks.run.presets import config_stack
from tests.test_extend import make, records

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "own_task"
TASK = "own_task/task.py:TableTask"
FAST = ("--trainer.max_epochs=2", "--trainer.accelerator=cpu")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A copy of the example in a folder of its own; its modules are imported anew."""
    shutil.copytree(EXAMPLE, tmp_path / "own_task")
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in [name for name in sys.modules if name.startswith("table_model")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def record() -> dict:
    return json.loads(Path("run/metrics.json").read_text())


def test_a_run_learns_and_its_checkpoint_opens(example, train):
    train("--task", TASK, "--reg", "both", "--trainer.max_epochs=5")
    found = record()
    assert found["name"] == "TableTask-builtin-both-s0"
    assert found["examples"] == {"train": 358, "validation": 40, "test": 171}
    # 63 % are of the more frequent class.
    assert found["test"]["acc"] > 0.85
    # The preset is the example's own.
    assert found["config"]["model"]["reg"]["input_dropout"] == 0.1
    module = import_object(TASK, "TASK").load_from_checkpoint("run/best.ckpt").eval()
    data = module.data_class(**found["config"]["data"])
    data.setup()
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        hits = (module(batch.inputs).argmax(1) == batch.labels).sum()
    assert int(hits) == sum(
        label == taken
        for label, taken in zip(
            found["predictions"]["label"], found["predictions"]["predicted"], strict=True
        )
    )


def test_the_residual_network_takes_drop_path_and_the_perceptron_refuses_it(example, train, capsys):
    rate = "--model.reg.drop_path=0.2"
    train("--task", TASK, "--model.arch=resnet", rate, *FAST)
    assert record()["config"]["model"]["arch"] == "resnet"
    with pytest.raises(SystemExit):
        train("--task", TASK, rate, *FAST)
    assert "drop_path=0.2 drops residual branches" in capsys.readouterr().err


@pytest.fixture
def table(example):
    """A table whose column `b` tells the classes apart, beside one that never changes."""
    rng = np.random.default_rng(0)
    kind = np.array(["low", "high"] * 60)
    columns = {"a": rng.normal(size=120), "b": (kind == "high") * 4 + rng.normal(size=120)}
    return pd.DataFrame({**columns, "same": 1, "kind": kind})


def test_a_csv_file_is_read(table, train):
    table.to_csv("mine.csv", index=False)
    train(
        "--task", TASK, "--data", "mine.csv", "--data.label_column=kind", "--trainer.max_epochs=8"
    )
    assert record()["classes"] == ["high", "low"]
    assert record()["test"]["acc"] > 0.85


@pytest.mark.parametrize(
    ("change", "column", "told"),
    [
        (lambda table: table, "label", "no column 'label' among a, b, same, kind"),
        (lambda table: table.assign(b="x"), "kind", "and b are not"),
        (lambda table: table.assign(b=table.b.where(table.index != 3)), "kind", "row 3: it has an"),
        (lambda table: table[["kind"]], "kind", "no column besides the label"),
        (lambda table: table.iloc[:0, :0], "kind", "cannot be read"),
    ],
)
def test_a_bad_csv_file_is_one_line(change, column, told, table, train, capsys):
    change(table).to_csv("mine.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        train("--task", TASK, "--data", "mine.csv", f"--data.label_column={column}", *FAST)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error


def test_rows_of_a_table_are_predicted(table, train, capsys):
    table.to_csv("mine.csv", index=False)
    train("--task", TASK, "--data", "mine.csv", "--data.label_column=kind", *FAST)
    table.to_parquet("mine.parquet")
    further = ["--label-column=kind", "--out=out.jsonl", f"--trust={TASK}"]
    # Those that the run has recorded are not scaled by the temperature.
    further.append("--temperature=1")
    recorded = record()["predictions"]["confidence"]
    for name in ("mine.csv", "mine.parquet"):
        predict(["--ckpt=run", "--input", name, *further])
        rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert [row["label"] for row in rows] == table["kind"].tolist()
        # All test examples are rows of the table.
        assert set(recorded) <= {round(row["probability"], 4) for row in rows}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        predict(["--ckpt=run", "--input=mine.csv"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"task={TASK}, which is refused" in error
    assert f"--trust {TASK}" in error
    # A row of another width.
    table[["a", "kind"]].to_csv("narrow.csv", index=False)
    with pytest.raises(SystemExit):
        predict(["--ckpt=run", "--input=narrow.csv", *further])
    assert "none of 120 inputs could be read" in capsys.readouterr().err


def test_a_search_writes_a_preset_that_a_run_takes(example, caches, train):
    further = " ".join([*FAST, f"--data.cache_dir={caches}"])
    line = f"make sweep TASK={TASK} SPACE=own_task/space.yaml TRIALS=2"
    done = make(example, line, further)
    assert done.returncode == 0, done.stderr
    best = "runs/sweeps/TableTask-builtin-none-space/best.yaml"
    assert "TableTask:" in Path(best).read_text()
    train("--task", TASK, "--reg", best, *FAST)
    assert record()["config"]["model"]["reg"]["dropout"] in (0.0, *np.arange(0.05, 0.65, 0.05))


def test_presets_of_the_task_come_before_those_of_the_project(example):
    assert "input_dropout" in config_stack(TASK, "both", "builtin")[-1]
    assert "ghost" in config_stack(TASK, "norm-ghost", "builtin")[-1]
    # Base, task and preset: those in configs/data are for data of the project.
    assert len(config_stack(TASK, "both", "builtin")) == 3


def test_a_report_is_written_anew(example, caches):
    further = " ".join([*FAST, f"--data.cache_dir={caches}"])
    line = f"make study TASK={TASK} SEEDS=1 VARIANTS='none both'"
    assert make(example, line, further).returncode == 0
    page = example / "runs" / "studies" / "TableTask-builtin" / "study.html"
    page.unlink()
    done = make(example, "make report STUDY=TableTask-builtin", "")
    assert done.returncode == 0, done.stderr
    assert page.is_file()
    assert len(records(example)) == 2
