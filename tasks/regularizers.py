"""Regularizers that work from outside of a model, as callbacks of the training."""

from itertools import islice
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn

from modules import (
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
from tasks.lightning_internals import averaged_model


class DropoutRates(Callback):
    """Sets all dropout rates by a schedule, and logs them, the learned ones too, as `reg/p/LAYER`.

    Args:
        kind: As `DropoutSchedule` has them.
        share: Share of the optimizer's steps after which the schedule has done its work.
    """

    def __init__(
        self,
        kind: Literal["constant", "linear", "curriculum", "early", "late"] = "constant",
        share: float = 0.5,
    ) -> None:
        self.kind = kind
        self.share = share
        self.schedule = DropoutSchedule()
        self.rates: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the full rates, unless a checkpoint did."""
        steps = max(1, round(self.share * trainer.estimated_stepping_batches))
        self.schedule = DropoutSchedule(self.kind, steps)
        self.rates = self.rates or dropout_rates(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of this step, and log them at the trainer's interval."""
        step = trainer.global_step
        rates = self.schedule.apply(pl_module, self.rates, step)
        every: Any = trainer
        if trainer.logger is not None and step % every.log_every_n_steps == 0:
            learned = {
                name: layer.p.item()
                for name, layer in pl_module.named_modules()
                if isinstance(layer, LearnedDropout)
            }
            metrics = {
                f"reg/p/{name.removeprefix('model.')}": p for name, p in (rates | learned).items()
            }
            trainer.logger.log_metrics(metrics, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Return the full rates: what the layers hold are those of the step."""
        return {"rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the full rates."""
        self.rates = state_dict["rates"]


class MaxNorm(Callback):
    """Keeps the norm of the weights into each unit within a limit.

    Args:
        limit: The largest norm.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Shorten what the step made longer."""
        max_norm_(pl_module, self.limit)


class AdaptiveClip(Callback):
    """Clips the gradient of each unit by the norm of its weights, except in the last layer.

    Args:
        clip: The largest norm of a gradient, in norms of its weights.
    """

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second way to clip.

        Raises:
            InputError: The trainer clips gradients too.
        """
        run: Any = trainer
        if run.gradient_clip_val:
            raise InputError(
                f"model.reg.adaptive_clip={self.clip} and trainer.gradient_clip_val="
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

    Ranks whose batch norm is not synchronized have statistics of their own batches alone.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average those that will be validated."""
        average_buffers(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average those that the training ends with."""
        average_buffers(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Average those that will be saved, in place: the checkpoint holds the same tensors."""
        average_buffers(pl_module)
        run: Any = trainer
        for callback in run.callbacks:
            average = averaged_model(callback) if isinstance(callback, WeightAveraging) else None
            if average is not None:
                average_buffers(average)


class PreciseBatchNorm(Callback):
    """Recomputes the running statistics of batch norms before each validation.

    It takes training examples as they are, without augmentation.

    Args:
        batches: How many, at most.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recompute, with the weights that will be validated."""
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
