"""Checkpointing, compilation and half precision do not change the results."""

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import CASES, Losses, data_of, fit, task_of
from torch import Tensor, nn

from regain import Dropout, Regularization, parameter_groups
from tasks.base import ClassificationTask
from tasks.data import ClassificationData
from tasks.optimization import Optimization
from tasks.training import TrainingRegularization

# All options that draw random numbers or have buffers.
FULL = Regularization(
    normalization="batch", dropout=0.3, head_dropout=0.2, drop_path=0.2, layer_drop=0.3
)
BLOCKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cnn": ("vision", {"depth": 2, "width": 8}, {"drop_path": 0.0, "layer_drop": 0.0}),
    "resnet": ("vision", {"depth": 18, "width": 4}, {}),
    "wide_resnet": ("vision", {"depth": 16, "width": 1}, {}),
    "tc_resnet": ("speech", {"depth": 2, "width": 8}, {}),
    "bc_resnet": ("speech", {"width": 8}, {}),
    "transformer": ("nlp", {"depth": 2, "width": 32}, {}),
}
SGD = Optimization(optimizer="sgd", lr=0.01, schedule="constant")


def one_step(task: ClassificationTask, data: ClassificationData) -> list[Tensor]:
    """Loss, gradients and buffers of a training step, and the next random number."""
    task.bad_step.fill_(0)
    torch.manual_seed(5)
    loss = task.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    grads = [p.grad for p in task.parameters() if p.grad is not None]
    return [loss.detach(), *grads, *task.buffers(), torch.rand(1)]


@pytest.mark.parametrize("arch", BLOCKS)
def test_gradient_checkpointing_changes_nothing_but_the_memory(arch: str) -> None:
    kind, size, less = BLOCKS[arch]
    data = data_of(kind, 16)
    reg = Regularization(**(vars(FULL) | less))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    found, memory = [], []
    for checkpointing in (False, True):
        task = task_of(data, reg, arch=arch, gradient_checkpointing=checkpointing, **size)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.manual_seed(5)
            batch = next(iter(data.train_dataloader()))
            copy.deepcopy(task)(batch.inputs, batch.lengths)
        memory.append(sum(kept))
        found.append(one_step(task, data))
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert memory[1] < 0.7 * memory[0]


@pytest.mark.parametrize("arch", ["mlp", "m5", "text_cnn", "lstm"])
def test_a_model_without_blocks_refuses_to_compute_them_again(arch: str) -> None:
    kind = {"mlp": "vision", "m5": "speech"}.get(arch, "nlp")
    with pytest.raises(ValueError, match=r"gradient_checkpointing=true .* this model has none"):
        task_of(data_of(kind, 16), Regularization(), arch=arch, gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["vision", "speech", "nlp"])
def test_half_precision_trains_as_single_precision_nearly_does(name: str) -> None:
    kind, options = CASES[name]
    data = data_of(kind, 16)
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        task = task_of(data, Regularization(normalization="batch"), **options | {"optim": SGD})
        _, losses = fit(task, data, 1, precision=precision)
        curves.append(losses.losses)
        assert all(value.dtype != torch.bfloat16 for value in task.state_dict().values())
    gaps = [abs(a - b) / a for a, b in zip(*curves, strict=True)]
    # Tolerance for 8 bits of mantissa, accumulated over the steps.
    assert gaps[0] < 0.01
    assert max(gaps) < 0.15
    # Half precision was really used.
    assert gaps[0] > 1e-6
    assert curves[1][-1] < 0.9 * curves[1][0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_fused_optimizer_does_what_the_plain_one_does(optimizer: str) -> None:
    ended = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(20, 3)
        built = Optimization(optimizer, lr=0.01).build(
            parameter_groups(model, weight_decay=0.1), 20, fused
        )
        assert built["optimizer"].defaults["fused"] is fused
        for _ in range(20):
            built["optimizer"].zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            built["optimizer"].step()
            built["lr_scheduler"]["scheduler"].step()
        ended.append(model.weight.detach())
    torch.testing.assert_close(*ended)


def test_biases_of_norms_have_their_own_learning_rate() -> None:
    kind, options = CASES["vision"]
    data = data_of(kind, 16)
    optim = Optimization("sgd", lr=0.01, schedule="constant", bias_lr=64)
    task = task_of(data, Regularization(normalization="batch"), **options | {"optim": optim})
    trainer, _ = fit(task, data, 1, max_steps=1)
    rates = {
        id(parameter): group["lr"]
        for group in trainer.optimizers[0].param_groups
        for parameter in group["params"]
    }
    norms = (m for m in task.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    bias_ids = {id(norm.bias) for norm in norms}
    assert bias_ids
    for parameter in task.parameters():
        assert rates[id(parameter)] == pytest.approx(0.64 if id(parameter) in bias_ids else 0.01)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_any_precision(precision: str) -> None:
    kind, options = CASES["vision"]
    data = data_of(kind, 16)
    task = task_of(data, Regularization(), **options | {"optim": SGD})
    trainer, _ = fit(task, data, 1, precision=precision, gradient_clip_val=1e-9, max_steps=2)
    assert trainer.optimizers[0].defaults["fused"] is (precision == "32-true")
    # Gradients clipped to 0 leave the weights unchanged.
    first = task_of(data, Regularization(), **options | {"optim": SGD})
    for after, before in zip(task.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(after, before)


def test_adaptive_clipping_sees_unscaled_gradients() -> None:
    kind, options = CASES["vision"]
    data = data_of(kind, 16)
    task = task_of(
        data,
        Regularization(),
        training=TrainingRegularization(adaptive_clip=0.01),
        **options | {"optim": SGD},
    )
    trainer, _ = fit(task, data, 1, precision="bf16-mixed", max_steps=1)
    # A fused optimizer would unscale the gradients only after clipping.
    assert not trainer.optimizers[0].defaults["fused"]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    torch._dynamo.reset()
    yield monkeypatch
    torch._dynamo.reset()


def graphs_alone(patch: pytest.MonkeyPatch) -> None:
    """Skip code generation, which is slow."""
    compile_ = nn.Module.compile
    patch.setattr(nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))


@pytest.mark.parametrize(
    ("name", "steps"), [("vision", 8), ("speech", 2), ("nlp", 8), ("machine code", 4)]
)
def test_a_compiled_model_trains_as_it_does_without(
    name: str, steps: int, compiler: pytest.MonkeyPatch
) -> None:
    if name == "machine code":
        # A small model, and batches of one size.
        kind, options, batch_size = "vision", {"arch": "mlp", "depth": 1, "width": 8}, 25
    else:
        graphs_alone(compiler)
        (kind, options), batch_size = CASES[name], 16
    data = data_of(kind, batch_size)
    runs: list[tuple[ClassificationTask, Losses]] = []
    for compiled in (False, True):
        reg = Regularization(normalization="batch")
        task = task_of(data, reg, compile=compiled, **options | {"optim": SGD})
        _, losses = fit(task, data, 1, max_steps=steps)
        runs.append((task, losses))
    (plain, wanted), (task, found) = runs
    assert len(found.losses) == steps
    assert found.losses == pytest.approx(wanted.losses, abs=1e-4)
    assert task.state_dict().keys() == plain.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_compiled_model_draws_new_masks_at_each_step(compiler: pytest.MonkeyPatch) -> None:
    graphs_alone(compiler)
    data = data_of("vision", 16)
    task = task_of(data, Regularization(head_dropout=0.5), depth=1, width=16, compile=True)
    fit(task, data, 1, max_steps=2)
    assert any(isinstance(layer, Dropout) for layer in task.modules())
    inputs = next(iter(data.train_dataloader())).inputs
    outputs = [task.train()(inputs) for _ in range(3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert torch.equal(task.eval()(inputs), task.eval()(inputs))


# Page faults of each allocation of the same 64 MB. It prints the median, since the system may
# reclaim unused pages at any time.
FAULTS = """
import resource, statistics, torch
from tasks.run.devices import keep_freed_memory
keep_freed_memory()
x = torch.ones(2**24)
for _ in range(3):
    x * 2
counts = []
for _ in range(11):
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    x * 2
print(statistics.median(b - a for a, b in zip(counts, counts[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no such settings")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_reused_unless_the_user_has_set_malloc(kept: bool) -> None:
    chosen = {} if kept else {"MALLOC_MMAP_THRESHOLD_": "131072"}
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=os.environ | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert (float(ended.stdout) < pages / 100) is kept
