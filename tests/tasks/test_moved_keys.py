"""Renamed keys: old names are accepted everywhere, with one notice each."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from study.results import read_result
from study.search_space import read_space
from tasks.run.moved_keys import MOVED, moved_arguments, with_moved_keys
from tasks.run.safe_loading import constructor_arguments
from tasks.training import TrainingRegularization
from tasks.vision import Task

FEW_STEPS = [
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--data.batch_size=8"),
    *("--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--model.width=4"),
]
FILE = Path("old.yaml")
BLOCK = "model:\n  reg:\n    l2: 0.1\n"


def nested(key: str, value: object) -> dict[str, object]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def placed(config: object, key: str) -> object:
    for part in key.split("."):
        assert isinstance(config, dict)
        config = config[part]
    return config


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_nested_key_is_moved(old: str, new: str) -> None:
    given = nested(old, "value")
    moved, found = with_moved_keys(given)
    assert placed(moved, new) == "value"
    assert found == [old]
    with pytest.raises(KeyError):
        placed(moved, old)
    # The argument is not modified.
    assert given == nested(old, "value")


@pytest.mark.parametrize(("old", "new"), MOVED.items())
@pytest.mark.parametrize("form", ["{}=1", "{} 1"], ids=["one token", "two tokens"])
def test_a_dotted_key_is_moved_with_one_notice(
    old: str, new: str, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = form.format(f"--{old}").split()
    with caplog.at_level(logging.WARNING):
        found = moved_arguments(["--trainer.max_epochs=1", *arguments, *arguments])
    expected = form.format(f"--{new}").split()
    assert found == ["--trainer.max_epochs=1", *expected, *expected]
    assert [one.message for one in caplog.records] == [
        f"notice: {old} is now {new}; the old key is accepted until 0.3"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.reg.l2=0.1"],
        ["--model.reg.l2", "0.1"],
        ["--config=old.yaml"],
        ["--config", "old.yaml"],
        [f"--config={BLOCK}"],
        ["--config={model: {reg: {l2: 0.1}}}"],
        ["--model.reg={l2: 0.1, head_dropout: 0.3}"],
        ["--model.reg", "{l2: 0.1, head_dropout: 0.3}"],
    ],
    ids=["one token", "two tokens", "file", "file, two tokens", "block", "flow", "mapping", "two"],
)
def test_a_run_takes_an_old_key_and_says_so_once(
    arguments: list[str], train: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    FILE.write_text(BLOCK)
    train("--task", "vision", "--reg", "none", *FEW_STEPS, *arguments)
    notices = [one.message for one in caplog.records if one.message.startswith("notice: model.")]
    assert notices == [
        "notice: model.reg.l2 is now model.training.l2; the old key is accepted until 0.3"
    ]
    model = json.loads(Path("run/metrics.json").read_text())["config"]["model"]
    assert model["training"]["l2"] == 0.1
    assert "l2" not in model["reg"]
    assert model["reg"]["head_dropout"] == (0.3 if "head_dropout" in str(arguments) else 0.0)


def test_a_preset_with_old_keys_is_accepted(train: Callable[..., None]) -> None:
    FILE.write_text("vision: {model: {reg: {l2: 0.1, sync: false}}}")
    train("--task", "vision", "--reg", str(FILE), *FEW_STEPS)
    model = json.loads(Path("run/metrics.json").read_text())["config"]["model"]
    assert model["training"]["l2"] == 0.1
    assert model["reg"]["sync_bn"] is False


def test_current_keys_cause_no_notice(caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--model.training.l2=0.1", "--model.reg={dropout: 0.1}", "--config={data: {}}"]
    assert moved_arguments(arguments) == arguments
    assert not caplog.records


@pytest.mark.parametrize("text", [BLOCK + "  training: {l2: 0.2}\n", None])
def test_a_value_under_both_keys_is_refused(text: str | None, refused: Callable[..., str]) -> None:
    FILE.write_text(text or "{model: {reg: {l2: 0.1}, training: {l2: 0.1}}}")
    said = refused("--task", "vision", "--config", str(FILE))
    assert "model.reg.l2 is now model.training.l2, and both are given; remove" in said


def test_an_old_result_is_read_with_current_names() -> None:
    record = {
        "test": {"acc": 0.5},
        "config": {"model": {"reg": {"l2": 0.1}}, "data": {"mirror": False}},
        "best": {"train/eval_acc": 0.9, "val/acc": 0.8},
        "last": {"train/eval_loss": 0.1},
        "history": [{"train/eval_acc": 0.7, "train/loss": 1.0}],
        "predictions": {"label": [0]},
        "seconds": {},
        "steps": 1,
        "test_set": "all",
    }
    file = Path("metrics.json")
    file.write_text(json.dumps(record))
    content = read_result(file)
    assert content["config"] == {
        "model": {"reg": {}, "training": {"l2": 0.1}},
        "data": {"allow_flip": False},
    }
    assert content["best"] == {"train_eval/acc": 0.9, "val/acc": 0.8}
    assert content["last"] == {"train_eval/loss": 0.1}
    assert content["history"] == [{"train_eval/acc": 0.7, "train/loss": 1.0}]


def test_the_arguments_of_an_old_checkpoint_are_renamed() -> None:
    spec = {"classes": ["a"], "shape": [1, 8, 8], "mean": [0.0], "std": [1.0], "mirror": False}
    saved = {"arch": "cnn", "spec": spec, "reg": {"dropout": 0.1, "weight_decay": 0.3}}
    found = constructor_arguments(Task, saved)
    assert found["training"] == TrainingRegularization(weight_decay=0.3)
    assert found["reg"].dropout == 0.1
    assert found["spec"].allow_flip is False


def test_a_search_space_with_an_old_key_searches_the_current_one() -> None:
    entry = {"min": 0.0, "max": 0.1}
    FILE.write_text(
        yaml.safe_dump(
            {"parameters": {"model.reg.weight_decay": entry, "data.mirror": {"value": 1}}}
        )
    )
    space = read_space(FILE)
    assert list(space.parameters) == ["model.training.weight_decay"]
    assert space.fixed == {"data.allow_flip": 1}
