"""A run is built in steps: all checks that need no data come before the data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)

from tasks.monitors import LayerMonitor
from tasks.regularizers import AdaptiveClip, BufferAverage, DropoutRates, MaxNorm, PreciseBatchNorm
from tasks.run.artifacts import ArtifactLogger
from tasks.run.calibrating import MonteCarloCalibration
from tasks.run.callbacks import ORDER, CallbackOrder, in_order
from tasks.run.checkpoints import BestCheckpoint, LastCheckpoint, RandomState
from tasks.run.cores import CoreMonitor
from tasks.run.progress import ConfigRecorder, EpochLines, SpeedMonitor
from tasks.run.results import ResultsWriter
from tasks.train import parse, train
from tasks.vision.data import VisionData

Train = Callable[..., None]
Data = Callable[..., Path]
Refused = Callable[..., str]

VISION = ("--task", "vision", "--model.width=4")


class DataReadError(Exception):
    """The data were read."""


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: VisionData, stage: str | None = None) -> None:
        raise DataReadError

    monkeypatch.setattr(VisionData, "setup", read)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--model.widht=4", "widht"),
        ("--model.width=many", "many"),
        ("--model.arch=resnett", "did you mean resnet?"),
        ("--model.arch=nets.py:Net", "there is no file nets.py"),
        ("--model.reg.dropout=2", "dropout is a rate to drop in [0, 1), not 2.0"),
        ("--model.reg.dropout_kind=chanel", "did you mean channel?"),
        ("--model.reg.normalization=bacth", "did you mean batch?"),
        ("--model.training.l2=-1", "l2 is a number of at least 0, not -1.0"),
        ("--model.spec.classes=[a,b]", "spec"),
        ("--data.batch_size=0", "batch_size is at least 1, not 0"),
        ("--trainer.max_epochs=0", "trainer.max_epochs is at least 1, not 0"),
        ("--trainer.precision=half", "half"),
        ("--resume=nowhere", "RESUME=nowhere is not the folder of a run"),
    ],
)
@pytest.mark.usefixtures("unreadable")
def test_a_wrong_configuration_is_refused_before_data_are_read(
    argument: str, named: str, refused: Refused
) -> None:
    assert named in refused(*VISION, argument)


@pytest.mark.usefixtures("unreadable")
def test_a_valid_configuration_reaches_the_data(train: Train) -> None:
    with pytest.raises(DataReadError):
        train(*VISION)


def test_an_exception_of_the_data_is_not_taken_for_a_wrong_configuration(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: VisionData) -> None:
        raise ValueError("a bug in a reader")

    monkeypatch.setattr(VisionData, "read", read)
    with pytest.raises(ValueError, match="a bug in a reader") as raised:
        train(*VISION, "--data.cache_dir=fresh")
    assert raised.value.__cause__ is None


def test_a_complete_run_is_reported_without_reading_data(
    train: Train, small_data: Data, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data = str(small_data("vision"))
    arguments = (*VISION, "--data", data, "--data.batch_size=16", "--trainer.max_epochs=1")
    train(*arguments)
    monkeypatch.setattr(VisionData, "setup", lambda *_: pytest.fail("the data were read"))
    train(*arguments, "--resume=auto")
    assert "the run in run is complete" in capsys.readouterr().out


# All options that add a callback.
FULL = (
    *("--model.reg.normalization=batch", "--model.reg.sync_bn=false", "--model.reg.dropout=0.1"),
    *("--model.training.early_stopping=5", "--model.training.dropout_schedule=linear"),
    *("--model.training.max_norm=0.5", "--model.training.adaptive_clip=0.1"),
    *("--model.training.norm_recompute=1", "--model.optim.ema=0.9", "--data.batch_size=16"),
    *("--trainer.callbacks+=tasks.monitors.LayerMonitor", "--trainer.accelerator=cpu"),
    *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",),
    *("--trainer.callbacks.dirpath=mine", "--trainer.max_epochs=2", "--trainer.logger=false"),
)


def test_the_callbacks_of_a_run_are_in_order(small_data: Data, caches: Path) -> None:
    seen: dict[str, list[Callback]] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen["fit"] = list(trainer.callbacks)

        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            seen["test"] = list(trainer.callbacks)

    look = Look()
    arguments = (*VISION, "--data", str(small_data("vision")), "--run_dir=run", *FULL)
    train(*parse([*arguments, f"--data.cache_dir={caches}"]), further=[look])
    for callbacks in seen.values():
        kinds = [type(callback) for callback in callbacks if callback is not look]
        assert kinds == [
            *(CallbackOrder, SpeedMonitor, CoreMonitor, EpochLines, ConfigRecorder, LayerMonitor),
            *(MonteCarloCalibration, ArtifactLogger),
            *(EarlyStopping, DropoutRates, AdaptiveClip, MaxNorm, EMAWeightAveraging),
            *(PreciseBatchNorm, BufferAverage, RandomState, ResultsWriter),
            *(ModelCheckpoint, BestCheckpoint, LastCheckpoint),
        ]
        # Like all classes that are not in the order, it comes before those that change weights.
        assert callbacks.index(look) in range(5, 9)
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["best_checkpoint"] == "best.ckpt"
    best = torch.load("run/best.ckpt", weights_only=True)
    # The history in a checkpoint includes its epoch.
    assert best["results"]["history"][-1]["epoch"] == best["epoch"]
    last = torch.load("run/last.ckpt", weights_only=True)
    [state] = [one for key, one in last["callbacks"].items() if "best.ckpt" in str(one)]
    assert float(state["best_model_score"]) == found["best"]["val/acc"]
    # The averaged weights are within the limit, so the average is too.
    *_, weight = (part for key, part in last["state_dict"].items() if key.endswith(".weight"))
    assert weight.norm(dim=1).max() <= 0.5 + 1e-5


def test_each_class_of_the_order_is_found_where_it_stands() -> None:
    assert len(set(ORDER)) == len(ORDER)
    mixed = [LayerMonitor(), MaxNorm(1.0), SpeedMonitor(), EarlyStopping("val/acc"), LayerMonitor()]
    ordered = in_order(mixed)
    assert [mixed.index(one) for one in ordered] == [2, 0, 4, 3, 1]
