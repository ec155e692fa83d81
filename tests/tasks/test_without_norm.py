"""Learning rates of models without a norm: parts of the presets, below what the user gives."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.errors import InputError
from tasks.lookup import find_task
from tasks.run import presets
from tasks.run.build import build
from tasks.run.presets import config_stack
from tasks.vision import Task

TASK = """
model: {arch: mlp, optim: {lr: 0.5}}
without_norm: {model: {optim: {lr: 0.25}}}
"""
DATA = """
vision:
  model: {optim: {lr: 0.05}}
  without_norm: {model: {optim: {lr: 0.025}}}
nlp:
  model: {optim: {lr: 0.05}}
"""


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a configuration of vision and a preset of the data `mine` with known rates."""
    Path("task.yaml").write_text(TASK)
    for folder, name, text in (
        ("data", "mine", DATA),
        ("reg", "none", "vision: {}"),
        ("reg", "batchnorm", "vision: {model: {reg: {normalization: batch}}}"),
    ):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, f"{name}.yaml").write_text(text)
    Path("base.yaml").write_text("{}")
    Path("normed.yaml").write_text("model: {reg: {normalization: group}}")
    Path("tuned.yaml").write_text("vision: {model: {optim: {lr: 0.125}}}")
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setattr(presets, "CONFIGS", Path().absolute())
    monkeypatch.setattr(Task, "config", Path("task.yaml").absolute())


def resolved(reg: str, data: str, *arguments: str) -> Any:
    stack = config_stack("vision", reg, data, arguments)
    configs = [part for config in stack for part in ("--config", config)]
    return build(find_task("vision"), [*configs, *arguments], []).config.model.optim.lr


@pytest.mark.parametrize(
    ("reg", "data", "arguments", "rate"),
    [
        ("none", "mine", [], 0.025),
        ("batchnorm", "mine", [], 0.05),
        ("none", "builtin", [], 0.25),
        ("batchnorm", "builtin", [], 0.5),
        ("none", "mine", ["--model.reg.normalization=batch"], 0.05),
        ("none", "mine", ["--model.reg.normalization", "batch"], 0.05),
        ("batchnorm", "mine", ["--model.reg.normalization=none"], 0.025),
        ("batchnorm", "mine", ["--model.reg={dropout: 0.1}"], 0.025),
        ("batchnorm", "mine", ["--model.reg.dropout=0.1"], 0.05),
        ("none", "mine", ["--config", "normed.yaml"], 0.05),
        ("none", "mine", ["--config=normed.yaml", "--model.reg.normalization=none"], 0.025),
        ("none", "mine", ["--config={model: {optim: {lr: 0.75}}}"], 0.75),
        ("none", "mine", ["--model.optim.lr=0.75"], 0.75),
        ("tuned.yaml", "mine", [], 0.125),
    ],
)
def test_the_rate_follows_the_norm_and_an_explicit_one_wins(
    reg: str, data: str, arguments: list[str], rate: float, rates: None
) -> None:
    assert resolved(reg, data, *arguments) == rate


def test_a_part_that_is_no_mapping_is_refused(rates: None) -> None:
    Path("task.yaml").write_text("without_norm: 3")
    with pytest.raises(InputError, match=r"task\.yaml: without_norm must hold keys and values"):
        config_stack("vision", "none", "builtin")


def test_shipped_rates_without_a_norm_are_smaller() -> None:
    """A part that sets no rate, or a higher one, would be a mistake of the preset."""
    files = [file for file in presets.CONFIGS.glob("*.yaml") if file.name != "base.yaml"]
    sections = [yaml.safe_load(file.read_text()) for file in files]
    for file in (presets.CONFIGS / "data").glob("*.yaml"):
        sections += yaml.safe_load(file.read_text()).values()
    parts = [one for one in sections if "without_norm" in one]
    assert parts
    for one in parts:
        assert one["without_norm"]["model"]["optim"]["lr"] < one["model"]["optim"]["lr"]
