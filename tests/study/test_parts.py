"""Recipes are split into parts, and each part can be removed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.parts import Part, parts_of, without
from tasks.errors import InputError
from tasks.lookup import task_names
from tasks.run.presets import config_stack, preset_names


def config_of(task: str, reg: str) -> dict[str, Any]:
    """Return the section of a preset."""
    config: dict[str, Any] = yaml.safe_load(config_stack(task, reg, "builtin")[-1])
    return config


def test_the_full_recipes() -> None:
    """Every option that is on is a part; its details belong to it."""
    names = {
        task: [part.name for part in parts_of(config_of(task, "full"), task)]
        for task in task_names()
    }
    assert names == {
        "nlp": [
            *("normalization", "head_dropout", "weight_decay", "label_smoothing"),
            *("word_dropout", "word_swap"),
        ],
        "speech": [
            *("normalization", "dropout", "head_dropout", "weight_decay", "label_smoothing"),
            *("time_shift", "frequency_mask", "time_mask"),
        ],
        "vision": [
            *("normalization", "head_dropout", "weight_decay", "label_smoothing"),
            *("crop", "flip", "cutout"),
        ],
    }
    speech = parts_of(config_of("speech", "full"), "speech")
    assert speech[1].keys == ("model.reg.dropout", "model.reg.dropout_kind")


@pytest.mark.parametrize("task", task_names())
def test_removing_all_parts_leaves_no_regularizer(task: str) -> None:
    """No preset keeps anything that has effect, and the given configuration is unchanged."""
    for reg in preset_names("reg"):
        try:
            config = config_of(task, reg)
        except InputError:
            # Some presets are for some of the tasks.
            continue
        before = copy.deepcopy(config)
        parts = parts_of(config, task)
        assert bool(parts) == (reg != "none"), reg
        bare = config
        for part in parts:
            bare = without(bare, part)
        left = [bare["model"].get(section) or {} for section in ("reg", "training", "augment")]
        assert not any(left), (reg, left)
        assert config == before


def test_options_that_are_off_are_no_parts() -> None:
    """Searches write zeros; learning rate, length and model are no parts."""
    config = {
        "model": {
            "width": 8,
            "reg": {"normalization": "none", "dropout": 0.0, "dropout_kind": "channel"},
            "training": {"sam": 0, "dropout_schedule": "constant"},
            "optim": {"lr": 0.01, "ema": 0.99},
        }
    }
    assert parts_of(config, "vision") == []
    assert parts_of({}, "vision") == []


def test_parts_are_removed_with_what_needs_them() -> None:
    """R-Drop, rate schedules and recomputed statistics fail without dropout or norm."""
    training = {"r_drop": 1.0, "norm_recompute": 4, "sam": 0.5, "sam_adaptive": True}
    config: dict[str, Any] = {
        "model": {"reg": {"normalization": "batch", "head_dropout": 0.2}, "training": training}
    }
    parts = {part.name: part for part in parts_of(config, "vision")}
    assert list(parts) == ["normalization", "head_dropout", "r_drop", "sam", "norm_recompute"]
    assert without(config, parts["normalization"])["model"]["training"] == {
        key: value for key, value in training.items() if key != "norm_recompute"
    }
    assert "r_drop" not in without(config, parts["head_dropout"])["model"]["training"]
    assert parts["sam"].keys == ("model.training.sam", "model.training.sam_adaptive")
    # Another dropout remains.
    config["model"]["reg"]["dropout"] = 0.1
    kept = {part.name: part for part in parts_of(config, "vision")}
    assert kept["head_dropout"].keys == ("model.reg.head_dropout",)


OWN_TASK = """
from dataclasses import dataclass
from regain import Regularization
from tasks.base import ClassificationTask
from tasks.optimization import Optimization
from tasks.training import TrainingRegularization
from tasks.vision.data import VisionData

@dataclass(frozen=True)
class Noise:
    \"\"\"Its options.\"\"\"
    dropout: float = 0.0
    colour: str = "white"

class Own(ClassificationTask):
    \"\"\"A task with an augmentation of its own.\"\"\"
    data_class = VisionData
    def __init__(
        self, spec, noise=Noise(), reg=Regularization(), training=TrainingRegularization(),
        optim=Optimization(),
    ):
        raise NotImplementedError
    def augment(self, batch, targets):
        raise NotImplementedError
"""


def test_own_tasks(tmp_path: Path) -> None:
    """The augmentation of an own task is found by its constructor; equal names have sections."""
    (tmp_path / "own.py").write_text(OWN_TASK)
    config = {
        "model": {
            "reg": {"dropout": 0.1},
            "noise": {"dropout": 0.2, "colour": "pink"},
            "training": {"weight_decay": 0.1},
        }
    }
    assert parts_of(config, f"{tmp_path}/own.py:Own") == [
        Part("noise.dropout", ("model.noise.dropout", "model.noise.colour")),
        Part("reg.dropout", ("model.reg.dropout",)),
        Part("weight_decay", ("model.training.weight_decay",)),
    ]
