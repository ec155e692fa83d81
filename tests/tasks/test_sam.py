"""Sharpness-aware minimization in the training loop."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from regain import Regularization
from tasks.base import ClassificationTask
from tasks.data import Batch
from tasks.optimization import Optimization
from tasks.training import TrainingRegularization
from tasks.vision import Data, Task

Small = Callable[..., Path]
SGD = Optimization(optimizer="sgd", lr=0.05, schedule="constant")


@pytest.fixture
def data(small_data: Small) -> Data:
    module = Data(source=str(small_data("vision")), cache_dir="cache", batch_size=9)
    module.setup()
    return module


def task_of(data: Data, reg: Regularization, **options: Any) -> Task:
    torch.manual_seed(0)
    options = {"arch": "resnet", "depth": 9, "width": 4, "optim": SGD} | options
    return Task(data.spec(), reg=reg, **options)


class Record(DummyLogger):
    """Stores the logged metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None, **_: Any) -> None:
        self.rows.append(metrics)


class Look(Callback):
    """Stores the batches, and the RNG state before each of them."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.random: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, index: int) -> None:
        self.batches.append(batch)
        self.random.append(torch.get_rng_state())


def fit(task: Task, data: Data, **options: Any) -> tuple[Look, Record]:
    look, record = Look(), Record()
    trainer = L.Trainer(
        **{"max_steps": 4, "limit_val_batches": 0} | options,
        logger=record,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir="fit",
        callbacks=[look],
    )
    trainer.fit(task, datamodule=data)
    return look, record


def gradients(task: ClassificationTask, batch: Batch, rho: float, half: bool) -> list[Any]:
    """The gradients of one batch, computed by a copy of the task with the perturbed weights."""
    targets = torch.nn.functional.one_hot(batch.labels, len(task.classes)).float()
    copies = [copy.deepcopy(task), task]
    start = torch.get_rng_state()
    # The task itself steps last, and updates its statistics once.
    for one in reversed(copies):
        one.sharpness = None
        torch.set_rng_state(start)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = one.batch_loss(batch, targets)
        found = torch.autograd.grad(loss, [*one.parameters()])
        # Rounded like ours: in half precision, other values would differ too.
        length = rho / torch.nn.utils.get_total_norm(found)
        with torch.no_grad():
            for p, g in zip(copies[0].parameters(), found, strict=True):
                p.add_(g * length)
    return [*found]


@pytest.mark.parametrize(
    ("reg", "options", "trainer"),
    [
        ({}, {}, {}),
        ({"normalization": "batch", "l2": 0.1}, {}, {}),
        ({"normalization": "batch", "head_dropout": 0.5, "drop_path": 0.5}, {}, {}),
        ({"normalization": "group", "layer_drop": 0.5}, {"depth": 18}, {}),
        ({"normalization": "batch", "head_dropout": 0.5, "r_drop": 1.0}, {}, {}),
        ({"normalization": "batch"}, {}, {"accumulate_grad_batches": 2}),
        ({"normalization": "batch"}, {}, {"gradient_clip_val": 0.1}),
        ({"normalization": "batch"}, {}, {"precision": "bf16-mixed"}),
        ({"normalization": "batch", "dropout": 0.3}, {"gradient_checkpointing": True}, {}),
    ],
)
def test_training_equals_a_manual_loop(
    reg: dict[str, Any], options: dict[str, Any], trainer: dict[str, Any], data: Data
) -> None:
    also = {name: reg[name] for name in ("l2", "r_drop") if name in reg}
    layers = Regularization(**{name: reg[name] for name in reg.keys() - also.keys()})
    task = task_of(data, layers, training=TrainingRegularization(sam=0.2, **also), **options)
    twin = copy.deepcopy(task).train()
    look, _ = fit(task, data, **trainer)
    parts = trainer.get("accumulate_grad_batches", 1)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, 0.9, nesterov=True, fused=True)
    torch.set_rng_state(look.random[0])
    assert len(look.batches) == 4 * parts
    for step in range(4):
        sums: list[Any] = [0.0] * len([*twin.parameters()])
        for batch in look.batches[step * parts : (step + 1) * parts]:
            found = gradients(twin, batch, 0.2, half="precision" in trainer)
            sums = [one + g / parts for one, g in zip(sums, found, strict=True)]
        for p, one in zip(twin.parameters(), sums, strict=True):
            p.grad = one
        if "gradient_clip_val" in trainer:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
    for (name, value), other in zip(
        task.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_counts_once_at_the_weights_themselves(data: Data) -> None:
    options = {"max_steps": 1, "accumulate_grad_batches": 3}
    reg = {"normalization": "batch", "head_dropout": 0.5}
    _, plain = fit(task_of(data, Regularization(**reg)), data, **options)
    _, aware = fit(
        task_of(data, Regularization(**reg), training=TrainingRegularization(sam=2.0)),
        data,
        **options,
    )
    assert aware.rows[-1] == plain.rows[-1]
    assert set(plain.rows[-1]) >= {"train/loss", "train/acc"}


def test_the_loss_at_the_perturbed_weights_is_the_higher_one(data: Data) -> None:
    task = task_of(data, Regularization(), training=TrainingRegularization(sam=0.5))
    task.bad_step.fill_(0)
    batch = data.splits["train"].gather(torch.arange(9))
    value = task.training_step(batch, 0)
    task.on_after_backward()
    task.sharpness = None
    assert value > 1.01 * task.training_step(batch, 0)
