"""Regularizers that are callbacks of the trainer."""

from itertools import islice
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn

from regain import (
    DropoutSchedule,
    LearnedDropout,
    adaptive_clip_,
    average_buffers,
    dropout_rates,
    max_norm_,
    recompute_statistics,
)
from tasks.data import ClassificationData
from tasks.errors import InputError
from tasks.run.lightning_internals import averaged_model
from tasks.run.rows import log_row
from tasks.training import Schedule


class DropoutRates(Callback):
    """Sets all dropout rates by a schedule, and logs all rates, learned ones too, as `reg/p/LAYER`.

    Args:
        kind: Kind of schedule, as in `DropoutSchedule`.
        fraction: Fraction of the optimizer's steps after which the schedule is complete.
    """

    def __init__(
        self,
        kind: Schedule = "constant",
        fraction: float = 0.5,
    ) -> None:
        self.kind = kind
        self.fraction = fraction
        self.schedule = DropoutSchedule()
        self.rates: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the full rates, unless a checkpoint has restored them."""
        steps = max(1, round(self.fraction * trainer.estimated_stepping_batches))
        self.schedule = DropoutSchedule(self.kind, steps)
        self.rates = self.rates or dropout_rates(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of this step, and log them at the trainer's interval."""
        step = trainer.global_step
        rates = self.schedule.apply(pl_module, self.rates, step)
        every: Any = trainer
        if trainer.loggers and step % every.log_every_n_steps == 0:
            learned = {
                name: layer.p.item()
                for name, layer in pl_module.named_modules()
                if isinstance(layer, LearnedDropout)
            }
            metrics = {
                f"reg/p/{name.removeprefix('model.')}": p for name, p in (rates | learned).items()
            }
            log_row(trainer, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the full rates; the layers hold the scheduled rates of the current step."""
        return {"rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the full rates."""
        self.rates = state_dict["rates"]


class MaxNorm(Callback):
    """Limits the norm of the weights into each unit.

    Args:
        limit: The largest norm.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Rescale the weights whose norm exceeds the limit after the step."""
        max_norm_(pl_module, self.limit)


class AdaptiveClip(Callback):
    """Clips the gradient of each unit by the norm of its weights, except in the last layer.

    Args:
        clip: Largest norm of a unit's gradient, relative to the norm of its weights.
    """

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the trainer does not clip gradients too.

        Raises:
            InputError: `trainer.gradient_clip_val` is set.
        """
        run: Any = trainer
        if run.gradient_clip_val:
            raise InputError(
                f"model.training.adaptive_clip={self.clip} and trainer.gradient_clip_val="
                f"{run.gradient_clip_val} both clip the gradients; set one of them to 0"
            )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Clip the gradients of the step."""
        linear = [layer for layer in pl_module.modules() if isinstance(layer, nn.Linear)]
        last = {id(parameter) for layer in linear[-1:] for parameter in layer.parameters()}
        adaptive_clip_((p for p in pl_module.parameters() if id(p) not in last), self.clip)


class BufferAverage(Callback):
    """Averages running statistics over the ranks before each validation and each checkpoint.

    Without synchronization, each rank has the statistics of its own batches only.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average the statistics for the validation."""
        average_buffers(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average the final statistics."""
        average_buffers(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Average the saved statistics in place: the checkpoint holds the same tensors."""
        average_buffers(pl_module)
        run: Any = trainer
        for callback in run.callbacks:
            average = averaged_model(callback) if isinstance(callback, WeightAveraging) else None
            if average is not None:
                average_buffers(average)


class PreciseBatchNorm(Callback):
    """Recomputes the running statistics of batch norms before each validation.

    The statistics are those of training examples without augmentation.

    Args:
        batches: Largest number of batches.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recompute the statistics with the current weights."""
        run: Any = trainer
        data = run.datamodule
        if trainer.sanity_checking or not isinstance(data, ClassificationData):
            return
        batches = (
            trainer.strategy.batch_to_device(batch)
            for batch in islice(data.train_dataloader(), self.batches)
        )
        recompute_statistics(
            pl_module, batches, lambda batch: pl_module(batch.inputs, batch.lengths)
        )
