"""All registered models, norms and dropout kinds become graphs of any batch size and length."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regain import Regularization
from regain.dropoutkinds import DROPOUT_KINDS
from regain.normkinds import NORM_KINDS
from tasks.data import Batch
from tasks.exporting.agreement import batches_of, check_agreement
from tasks.exporting.deployable import (
    Deployable,
    exported_program,
    fewest_steps,
    folded,
    model_inputs,
)
from tasks.nlp import Task as TextTask
from tasks.nlp.data import TextSpec
from tasks.nlp.models import LIBRARIES as TEXT_LIBRARIES
from tasks.speech import Task as SpeechTask
from tasks.speech.data import SpeechSpec
from tasks.speech.libraries import LIBRARIES as SPEECH_LIBRARIES
from tasks.vision import Task as VisionTask
from tasks.vision.data import VisionSpec
from tasks.vision.libraries import LIBRARIES as VISION_LIBRARIES

CLASSES = ["a", "b", "c"]
TASKS: dict[str, Any] = {"image": VisionTask, "audio": SpeechTask, "text": TextTask}
SPECS = {
    "image": VisionSpec(CLASSES, [1, 8, 8], [80.0], [60.0], True, torch.eye(4).tolist()),
    "audio": SpeechSpec(CLASSES, 16_000),
    "text": TextSpec(CLASSES, 50, 0, 1, [0], 64),
}
# Small ones, where the defaults take long.
SIZES = {"bc_resnet": {"width": 4}, "lstm": {"width": 16}, "transformer": {"width": 32}}


def examples(kind: str) -> Batch:
    """Six examples, of all lengths."""
    unused = torch.zeros(6, dtype=torch.int64)
    if kind == "image":
        return Batch(torch.randint(0, 256, (6, 1, 8, 8)).byte(), unused, unused)
    longest = 9000 if kind == "audio" else 11
    lengths = torch.linspace(longest // 5, longest, 6).long()
    if kind == "audio":
        inputs = torch.randint(-3000, 3000, (6, longest)).to(torch.int16)
    else:
        inputs = torch.randint(1, 50, (6, longest)).int()
    inputs[torch.arange(longest) >= lengths.unsqueeze(1)] = 0
    return Batch(inputs, unused, unused, lengths)


def check(kind: str, arch: str, reg: Regularization, **options: Any) -> dict[str, str]:
    """Record a model of random weights and statistics, compare it, and list unfolded norms."""
    task = TASKS[kind](SPECS[kind], arch, reg=reg, **options).eval()
    for name, buffer in task.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    data = SimpleNamespace(padding=0)
    predictor: Any = SimpleNamespace(task=task, temperature=1.5, kind=kind, data=data)
    batch = examples(kind)
    inputs, model = model_inputs(predictor, batch), Deployable(predictor)
    inner, left = folded(model, batch)
    program = exported_program(inner, model.arguments(batch), inputs, arch)
    model.fewest_steps = fewest_steps(program, inputs)
    module = program.module()
    found = check_agreement(
        predictor, model, lambda *x: module(*x)[0], batches_of(batch), "random inputs"
    )
    assert found.batch_sizes == [1, 1, 3, 1]
    graph = str(program.graph)
    assert "dropout" not in graph
    assert left or "batch_norm" not in graph
    return left


ARCHS = [(kind, arch) for kind, task in TASKS.items() for arch in task.models.names()]


@pytest.mark.parametrize(("kind", "arch"), ARCHS)
def test_each_model_is_recorded(kind: str, arch: str) -> None:
    # A transformer's own dropouts are single units.
    reg = Regularization(normalization="batch", dropout=0.2, head_dropout=0.1, weight_drop=0.1)
    if arch == "transformer":
        reg = Regularization(normalization="batch", dropout=0.2)
    check(kind, arch, reg, **SIZES.get(arch, {}))


@pytest.mark.parametrize("norm", NORM_KINDS.names())
def test_each_norm_is_recorded(norm: str) -> None:
    # All kinds of batch norm are folded; the others are no affine maps.
    assert not check("image", "cnn", Regularization(normalization=norm), depth=1, width=8)


# Kinds that need positions or time steps.
PLACES = {"block": ("image", "cnn"), "locked": ("text", "text_cnn")}


@pytest.mark.parametrize("dropout", DROPOUT_KINDS.names())
def test_each_dropout_is_recorded(dropout: str) -> None:
    kind, arch = PLACES.get(dropout, ("image", "mlp"))
    check(kind, arch, Regularization(dropout=0.3, dropout_kind=dropout), width=16)


def test_the_page_lists_each_model() -> None:
    page = (Path(__file__).parents[2] / "docs/use.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", page.partition("### Models")[2], re.MULTILINE)
    named = {name for name, _ in rows}
    assert {arch for _, arch in ARCHS} <= named
    registries = (VISION_LIBRARIES, SPEECH_LIBRARIES, TEXT_LIBRARIES)
    libraries = {name for registry in registries for name in registry.names()}
    assert libraries == {name.partition("/")[0] for name in named if "/" in name}


def test_standardized_weights_are_values() -> None:
    reg = Regularization(normalization="batch", weight_standardization=True)
    assert not check("image", "cnn", reg, depth=1, width=8)
