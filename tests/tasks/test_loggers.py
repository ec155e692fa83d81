"""TensorBoard, CSV and MLflow get the rows that W&B gets, also over an interruption."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from tasks.run import loggers
from tasks.run.tracking import STEP
from tasks.train import main, parse, train
from tests.offline import OfflineRun

# Value by metric and step.
Curves = dict[tuple[str, int], float]

# Keys of W&B for times and for sizes of tables.
NOT_NUMBERS = ("_", "test/confusion_matrix", "test/worst_mistakes")
ALL = "wandb tensorboard csv mlflow"


def arguments(caches: Path, *further: str) -> list[str]:
    return [
        *("--task", "vision", "--run_dir=run", f"--data.cache_dir={caches}", "--reg", "dropout"),
        *("--model.width=4", "--model.depth=2", "--data.train_fraction=0.1"),
        *("--data.batch_size=18", "--model.training.dropout_schedule=linear"),
        *("--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"),
        *further,
    ]


def once(found: list[tuple[str, int, float]]) -> Curves:
    """Check that each metric has one value at a step."""
    repeated = {k: n for k, n in Counter((key, step) for key, step, _ in found).items() if n > 1}
    assert not repeated
    return {(key, step): value for key, step, value in found}


def in_csv(folder: Path) -> Curves:
    with (folder / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return once(
        [
            (key, int(row["step"]), float(text))
            for row in rows
            for key, text in row.items()
            if text and key != "step"
        ]
    )


def in_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("best/")]
    return once([(tag, one.step, one.value) for tag in tags for one in events.Scalars(tag)])


def in_mlflow(folder: Path) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder.parent / 'runs/mlflow.db').absolute()}")
    run = client.get_run((folder / "mlflow_id.txt").read_text())
    assert run.info.status == "FINISHED"
    return once(
        [
            (key, one.step, one.value)
            for key in run.data.metrics
            for one in client.get_metric_history(run.info.run_id, key)
        ]
    )


def in_wandb(folder: Path) -> Curves:
    run = OfflineRun(sorted(folder.glob("wandb/offline-run-*"))[-1])
    return once(
        [
            (key, int(row[STEP]), value)
            for row in run.rows
            for key, value in row.items()
            if isinstance(value, int | float) and key != STEP and not key.startswith(NOT_NUMBERS)
        ]
    )


def deterministic(curves: Curves) -> Curves:
    """Leave out measured times."""
    return {key: value for key, value in curves.items() if not key[0].startswith("speed/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Path:
    """A run with all loggers."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(arguments(caches, "--logger", ALL))
    return place / "run"


@pytest.mark.parametrize("read", [in_csv, in_tensorboard, in_mlflow])
def test_each_logger_has_the_rows_of_wandb(read: Any, whole: Path) -> None:
    expected = in_wandb(whole)
    found = read(whole)
    assert found.keys() == expected.keys()
    # TensorBoard has single precision.
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in expected.items()}
    names = {key for key, _ in found}
    assert names >= {"train/loss", "val/acc", "val/best_acc", "reg/gap_acc", "test/acc"}
    assert names >= {"speed/examples_per_second", "test_last/loss"}
    assert any(name.startswith("reg/p/") for name in names)


def test_each_logger_has_the_configuration(whole: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(whole.parent / 'runs/mlflow.db').absolute()}")
    run = client.get_run((whole / "mlflow_id.txt").read_text())
    assert run.data.params["data/batch_size"] == "18"
    assert run.data.params["run/variant"] == "dropout"
    assert run.data.tags["mlflow.runName"] == "vision-builtin-dropout-s0"
    for name in ("csv", "tensorboard"):
        text = (whole / name / "hparams.yaml").read_text()
        assert "batch_size: 18" in text
        assert "variant: dropout" in text
    # In the run's folder, whichever logger is the first.
    assert "batch_size: 18" in (whole / "config.yaml").read_text()
    assert not list(whole.glob("*/config.yaml"))


class Interruption(Callback):
    """Ends the run in its last epoch, after rows that no checkpoint has."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 12:
            raise RuntimeError("interrupted")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Path:
    """The same run, interrupted and resumed."""
    place = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        given = arguments(caches, "--logger", ALL)
        with pytest.raises(RuntimeError, match="interrupted"):
            train(*parse(given), [Interruption()])
        assert max(step for _, step in in_csv(place / "run")) > 10
        main([*given, "--resume=auto"])
    return place / "run"


@pytest.mark.parametrize("read", [in_csv, in_tensorboard, in_mlflow, in_wandb])
def test_a_resumed_run_continues_each_log(read: Any, resumed: Path, whole: Path) -> None:
    assert deterministic(read(resumed)) == deterministic(read(whole))


@pytest.fixture
def quick(caches: Path) -> list[str]:
    return arguments(caches, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1")


class InterruptedValidation(Callback):
    """Ends the run before its first checkpoint."""

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize("resume", [(), ("--resume=auto",)])
def test_a_run_that_begins_anew_in_a_folder_has_no_values_of_the_interrupted_one(
    quick: list[str], resume: tuple[str, ...]
) -> None:
    given = [*quick, "--logger", "csv tensorboard mlflow"]
    with pytest.raises(RuntimeError, match="interrupted"):
        train(*parse([*given, "--seed=1"]), [InterruptedValidation()])
    before = in_csv(Path("run"))
    main([*given, *resume])
    expected = in_csv(Path("run"))
    assert expected["train/loss", 1] != before["train/loss", 1]
    for read in (in_tensorboard, in_mlflow):
        assert read(Path("run")) == {
            key: pytest.approx(value, rel=1e-6) for key, value in expected.items()
        }


def test_without_wandb_there_is_no_wandb(
    quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*quick, "--logger", "csv"])
    assert not Path("run/wandb").exists()
    assert not Path("run/wandb_id.txt").exists()
    assert {key for key, _ in in_csv(Path("run"))} >= {"train/loss", "val/acc", "test/acc"}
    assert Path("run/config.yaml").exists()
    printed = capsys.readouterr().out
    assert "look at it: run/csv/metrics.csv" in printed
    assert "W&B" not in printed


@pytest.mark.parametrize("text", ["cvs", "wandb,tensorflow"])
def test_an_unknown_logger_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--task", "vision", "--run_dir=run", "--logger", text])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    wrong = text.rpartition(",")[2]
    assert line == f"error: LOGGER={wrong} is not one of wandb, tensorboard, csv, mlflow"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = loggers.importlib.util.find_spec
    monkeypatch.setattr(
        loggers.importlib.util, "find_spec", lambda one: None if one == name else find(one)
    )
    with pytest.raises(SystemExit) as stopped:
        main(["--task", "vision", "--run_dir=run", "--logger", f"csv {name}"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"LOGGER={name}" in line
    assert f"pip install -e '.[{name}]'" in line
    assert not Path("run").exists()


@pytest.fixture
def no_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An MLflow server that does not exist."""
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    yield
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        os.environ.pop(name, None)


def test_a_failure_of_mlflow_does_not_stop_the_training(
    quick: list[str], no_answer: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tasks.run.loggers"):
        main([*quick, "--logger", "csv mlflow"])
    [warning] = [one.message for one in caplog.records if one.name == "tasks.run.loggers"]
    assert "MLflow at http://127.0.0.1:9 has failed" in warning
    assert Path("run/metrics.json").exists()
    assert ("test/acc", 1) in in_csv(Path("run"))
