"""Regularization in the training loop: penalties, schedules, limits, monitors."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn import functional as F

from regain import (
    ImageAugmentation,
    LearnedDropout,
    Regularization,
    dropout_rates,
    elastic,
    mc_predict,
    recompute_statistics,
    variance_shift,
)
from tasks.data import Batch
from tasks.errors import InputError
from tasks.monitors import LayerMonitor, MonteCarloDropout
from tasks.optimization import Optimization
from tasks.regularizers import DropoutRates
from tasks.training import TrainingRegularization
from tasks.vision import Data, Task

Small = Callable[..., Path]
ADAM = Optimization(optimizer="adamw", lr=0.01, schedule="constant")


class Record(DummyLogger):
    """Stores the logged metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None, **_: Any) -> None:
        self.rows.append({**metrics, "step": step})

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


@pytest.fixture
def data(small_data: Small) -> Data:
    module = Data(source=str(small_data("vision")), cache_dir="cache", batch_size=9)
    module.setup()
    return module


def task_of(data: Data, reg: Regularization, arch: str = "cnn", **options: Any) -> Task:
    torch.manual_seed(0)
    options = {"optim": ADAM, "depth": 1, "width": 8} | options
    return Task(data.spec(), arch=arch, reg=reg, **options)


def fit(task: Task, data: Data, steps: int = 12, **options: Any) -> tuple[L.Trainer, Record]:
    record = Record()
    trainer = L.Trainer(
        max_steps=steps,
        logger=record,
        accelerator="cpu",
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir="fit",
        callbacks=options.pop("callbacks", []),
    )
    trainer.fit(task, datamodule=data, **options)
    return trainer, record


def batch_of(data: Data, count: int = 7) -> Batch:
    return data.splits["train"].gather(torch.arange(count))


def step_loss(task: Task, batch: Batch) -> torch.Tensor:
    """The loss of a training step, without a trainer."""
    task.bad_step.fill_(0)
    return task.training_step(batch, 0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("early", [0.2] * 6 + [0.0] * 6),
        ("late", [0.0] * 6 + [0.2] * 6),
        ("linear", [0.2 * min(1, step / 6) for step in range(12)]),
    ],
)
def test_a_schedule_sets_and_logs_the_rates_of_each_step(
    kind: str, expected: list[float], data: Data
) -> None:
    reg = Regularization(dropout=0.2)
    training = TrainingRegularization(dropout_schedule=kind)
    task = task_of(data, reg, training=training)
    seen = []

    class Look(Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            seen.append(dropout_rates(task.model))

    _, record = fit(task, data, callbacks=[Look()])
    (name,) = seen[0]
    assert [rates[name] for rates in seen] == pytest.approx(expected)
    assert record.column(f"reg/p/{name}") == pytest.approx(expected)


def test_a_resumed_run_has_the_full_rates(data: Data) -> None:
    reg = Regularization(dropout=0.4)
    training = TrainingRegularization(dropout_schedule="linear", dropout_schedule_fraction=1.0)
    task = task_of(data, reg, training=training)
    trainer, _ = fit(task, data, steps=6)
    trainer.save_checkpoint("half.ckpt")
    # The layers have the rate of the last step, and the checkpoint has the full rate.
    states = torch.load("half.ckpt", weights_only=True)["callbacks"]
    (rates,) = (state["rates"] for state in states.values() if "rates" in state)
    assert list(rates.values()) == [0.4]
    again = task_of(data, reg, training=training)
    _, record = fit(again, data, steps=12, ckpt_path="half.ckpt")
    (name,) = rates
    expected = [0.4 * step / 12 for step in range(6, 12)]
    assert record.column(f"reg/p/{name.removeprefix('model.')}") == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["concrete", "variational"])
def test_a_rate_that_is_learned_moves_and_is_logged(kind: Any, data: Data) -> None:
    reg = Regularization(dropout=0.3, dropout_kind=kind)
    task = task_of(data, reg)
    _, record = fit(task, data)
    (name,) = (n for n, layer in task.model.named_modules() if isinstance(layer, LearnedDropout))
    logged = record.column(f"reg/p/{name}")
    assert logged[0] == pytest.approx(0.3)
    assert len(set(logged)) == len(logged) == 12
    assert task.train_examples == len(data.splits["train"])


@pytest.mark.parametrize("kind", ["concrete", "variational"])
def test_the_penalty_of_learned_rates_is_shared_by_all_examples(kind: Any, data: Data) -> None:
    task = task_of(data, Regularization(dropout=0.3, dropout_kind=kind))
    task.train_examples = 50
    (layer,) = (layer for layer in task.model.modules() if isinstance(layer, LearnedDropout))
    assert torch.equal(torch.as_tensor(task.penalty()), layer.penalty() / 50)


def test_penalties_of_weights_are_added_to_the_loss(data: Data) -> None:
    batch = batch_of(data)
    plain = step_loss(task_of(data, Regularization()), batch)
    task = task_of(data, Regularization(), training=TrainingRegularization(l1=0.01, l2=0.1))
    expected = plain + elastic(task.model, 0.01, 0.1)
    assert elastic(task.model, 0.01, 0.1) > 0.1
    torch.testing.assert_close(step_loss(task, batch), expected)


def test_r_drop_adds_the_divergence_of_two_passes(data: Data) -> None:
    batch = batch_of(data)
    reg = Regularization(head_dropout=0.5)
    training = TrainingRegularization(r_drop=2.0, label_smoothing=0.1)
    task = task_of(data, reg, training=training)
    torch.manual_seed(1)
    found = step_loss(task, batch)
    torch.manual_seed(1)
    first, second = (task(batch.inputs).log_softmax(1) for _ in range(2))
    entropies = [
        F.cross_entropy(logits, batch.labels, label_smoothing=0.1) for logits in (first, second)
    ]
    divergence = F.kl_div(first, second, log_target=True, reduction="batchmean")
    divergence = divergence + F.kl_div(second, first, log_target=True, reduction="batchmean")
    assert divergence > 1e-3
    torch.testing.assert_close(found, sum(entropies) / 2 + 2.0 * divergence / 2)


def test_max_norm_holds_after_each_step(data: Data) -> None:
    free = task_of(data, Regularization())
    fit(free, data)
    held = task_of(data, Regularization(), training=TrainingRegularization(max_norm=0.3))
    fit(held, data)

    def longest(task: Task) -> float:
        weights = [p for p in task.model.parameters() if p.ndim > 1]
        return max(float(weight.detach().flatten(1).norm(dim=1).max()) for weight in weights)

    assert longest(free) > 0.4
    assert longest(held) == pytest.approx(0.3, rel=1e-4)


class LastGradients(Callback):
    """Stores the largest ratio of a unit's gradient norm to its weight norm before each step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.weights = {name: self.norms(p) for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.ratios = {
            name: float((self.norms(p.grad) / self.weights[name]).max())
            for name, p in pl_module.named_parameters()
        }

    def norms(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.detach().flatten(1) if x.ndim > 1 else x.detach()[None]
        return rows.norm(dim=1).clamp(min=1e-3 if x.requires_grad else 0.0)


@pytest.mark.parametrize("arch", ["cnn", "mlp"])
def test_gradients_are_clipped_by_their_weights_except_in_the_last_layer(
    arch: str, data: Data
) -> None:
    ratios = {}
    for clip in (0.0, 1e-4):
        seen = LastGradients()
        task = task_of(
            data, Regularization(), training=TrainingRegularization(adaptive_clip=clip), arch=arch
        )
        fit(task, data, 2, callbacks=[seen])
        ratios[clip] = seen.ratios
    names = list(ratios[0.0])
    # The weight and bias of the last layer come last.
    assert max(ratios[1e-4][name] for name in names[:-2]) <= 1.001e-4
    assert max(ratios[0.0][name] for name in names[:-2]) > 0.01
    assert min(ratios[1e-4][name] for name in names[-2:]) > 0.001


def test_two_ways_to_clip_are_refused(data: Data) -> None:
    task = task_of(data, Regularization(), training=TrainingRegularization(adaptive_clip=0.01))
    with pytest.raises(InputError, match=r"adaptive_clip=0\.01 and .*gradient_clip_val=0\.5"):
        L.Trainer(max_steps=1, gradient_clip_val=0.5, logger=False, accelerator="cpu").fit(
            task, datamodule=data
        )


def test_standardized_weights_are_for_models_that_have_such_layers(data: Data) -> None:
    reg = Regularization(normalization="group", weight_standardization=True)
    task = task_of(data, reg)
    fit(task, data, 3)
    layers = [m for m in task.modules() if isinstance(m, torch.nn.Conv2d)]
    assert layers
    for layer in layers:
        assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_precise_statistics_are_those_of_the_weights_that_are_validated(
    ema: float, data: Data
) -> None:
    # One batch with all training examples, so that the order does not matter.
    data.batch_size = len(data.splits["train"])
    reg = Regularization(normalization="batch")
    training = TrainingRegularization(norm_recompute=3)
    task = task_of(data, reg, training=training, optim=replace(ADAM, ema=ema))
    validated = []

    class Look(Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            validated.append(copy.deepcopy(task.model))

    fit(task, data, steps=4, callbacks=[Look()])
    model = validated[-1]
    expected = copy.deepcopy(model)
    inputs = data.splits["train"].gather(torch.arange(data.batch_size)).inputs
    recompute_statistics(expected, [inputs])
    moved = copy.deepcopy(model).train()
    moved(inputs)
    for found, wanted, other in zip(
        *(m.state_dict().items() for m in (model, expected, moved)), strict=True
    ):
        name = found[0]
        if "running" in name:
            torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)
        if "num_batches" in name:
            assert found[1] == wanted[1] == other[1] - 1


def test_split_norm_gets_a_clean_and_an_augmented_half(data: Data) -> None:
    reg = Regularization(normalization="split")
    task = task_of(data, reg, augment=ImageAugmentation(cutout=0.5, mixup=1.0))
    batch = batch_of(data, 7)
    targets = F.one_hot(batch.labels, 3).float()
    changed, mixed = task.augment_half(batch, targets)
    assert torch.equal(changed.inputs[:4], batch.inputs[:4])
    assert torch.equal(mixed[:4], targets[:4])
    pairs = zip(changed.inputs[4:], batch.inputs[4:], strict=True)
    assert not any(torch.equal(after, before) for after, before in pairs)
    assert not torch.equal(mixed[4:], targets[4:])
    assert changed.inputs.shape == batch.inputs.shape
    # A training step uses this batch.
    received: list[torch.Tensor] = []
    task.model[0].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    step_loss(task, batch)
    assert torch.equal(received[0][:4], batch.inputs[:4])
    assert not torch.equal(received[0][4:], batch.inputs[4:])


def test_split_norm_refuses_batches_that_are_too_small(data: Data) -> None:
    data.batch_size = 3
    with pytest.raises(InputError, match=r"data\.batch_size=3 gives a batch of 3: split norm"):
        fit(task_of(data, Regularization(normalization="split")), data)


def test_a_schedule_without_a_rate_is_refused(data: Data) -> None:
    with pytest.raises(ValueError, match="dropout_schedule=early changes dropout rates"):
        task_of(data, Regularization(), training=TrainingRegularization(dropout_schedule="early"))


@pytest.mark.parametrize("name", ["drop_path", "layer_drop", "embedding_dropout"])
def test_a_dropout_that_a_model_does_not_have_is_refused(name: str, data: Data) -> None:
    with pytest.raises(ValueError, match=f"{name}=0.1 drops .*, and this model has none"):
        task_of(data, Regularization(**{name: 0.1}))


@pytest.mark.parametrize("kind", ["none", "layer", "group", "rms", "frozen"])
def test_running_statistics_that_a_model_does_not_have_are_not_recomputed(
    kind: Any, data: Data
) -> None:
    with pytest.raises(ValueError, match="norm_recompute=3 recomputes running statistics, and"):
        task_of(
            data,
            Regularization(normalization=kind),
            training=TrainingRegularization(norm_recompute=3),
        )


@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "split"])
def test_the_running_statistics_of_each_batch_norm_can_be_recomputed(kind: Any, data: Data) -> None:
    task_of(
        data, Regularization(normalization=kind), training=TrainingRegularization(norm_recompute=3)
    )


def test_the_layer_monitor_logs_what_the_functions_find(data: Data) -> None:
    task = task_of(data, Regularization(normalization="batch", dropout=0.3))
    trainer, record = fit(task, data, callbacks=[LayerMonitor(batches=9)])
    inputs = data.splits["validation"].gather(torch.arange(len(data.splits["validation"]))).inputs
    logged = {name for row in record.rows for name in row}
    shift = {name for name in logged if name.startswith("reg/variance_shift/")}
    dead = {name for name in logged if name.startswith("reg/dead_units/")}
    for name in shift:
        wanted = variance_shift(task.model, [inputs])[name.removeprefix("reg/variance_shift/")]
        assert record.column(name)[-1] == pytest.approx(wanted, rel=1e-4)
    norms = [m for m in task.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(shift) == len(dead) == len(norms) == 2
    assert trainer.callback_metrics.keys() >= shift | dead


def test_monte_carlo_dropout_tests_the_mean_of_its_passes(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several batches, to check that dropout is off again for the next one.
    monkeypatch.setattr("tasks.data.base.EVALUATION_BATCH", 10)
    task = task_of(data, Regularization(head_dropout=0.5))
    fit(task, data, steps=30)
    tester = L.Trainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[MonteCarloDropout(passes=400)],
        default_root_dir="test",
    )
    (scores,) = tester.test(task, datamodule=data, verbose=False)
    test = data.splits["test"].gather(torch.arange(len(data.splits["test"])))
    found = mc_predict(task, test.inputs, passes=400)
    loss = F.nll_loss(found.mean.log(), test.labels)
    assert scores["test/mc_loss"] == pytest.approx(float(loss), rel=0.1)
    assert scores["test/mc_entropy"] == pytest.approx(float(found.entropy.mean()), rel=0.1)
    information = float(found.mutual_information.mean())
    assert scores["test/mc_mutual_information"] == pytest.approx(information, rel=0.2)
    assert scores["test/mc_acc"] == float((found.mean.argmax(1) == test.labels).float().mean())
    # The prediction differs from that of one pass without dropout.
    task.eval()
    with torch.no_grad():
        logits = task(test.inputs)
    assert scores["test/loss"] == pytest.approx(float(F.cross_entropy(logits, test.labels)))
    assert scores["test/loss"] != pytest.approx(scores["test/mc_loss"], rel=1e-6)
    entropy = float(torch.special.entr(logits.softmax(1)).sum(1).mean())
    assert scores["test/mc_entropy"] > 1.001 * entropy


@pytest.mark.parametrize("passes", [0, -1, 1.5, "20", True])
def test_an_invalid_number_of_passes_is_refused(passes: Any) -> None:
    with pytest.raises(ValueError, match=f"passes is .*, not {passes!r}"):
        MonteCarloDropout(passes=passes)


def test_without_a_logger_the_rates_are_set_all_the_same(data: Data) -> None:
    task = task_of(
        data, Regularization(dropout=0.2), training=TrainingRegularization(dropout_schedule="late")
    )
    trainer = L.Trainer(
        max_steps=2,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    (callback,) = (c for c in trainer.callbacks if isinstance(c, DropoutRates))
    assert list(callback.rates.values()) == [0.2]
    assert list(dropout_rates(task.model).values()) == [0.2]
