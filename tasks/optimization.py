"""The optimizer and the learning-rate schedule."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler


@dataclass(frozen=True)
class Optimization:
    """Optimizer and learning-rate schedule.

    Args:
        optimizer: SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter 2019).
        lr: Peak learning rate, more than 0.
        momentum: Momentum of SGD, in [0, 1).
        schedule: `one_cycle` warms up linearly from `lr / 25`, then decays to 0 along a cosine
            (Smith & Topin 2018); `cosine` decays from `lr` without warmup; `constant` keeps `lr`.
        warmup: Fraction of all steps that the warmup of `one_cycle` takes, in [0, 1).
        bias_lr: Factor on the learning rate of the biases of norms, more than 0 (Jordan 2024,
            arXiv 2404.00498).
        ema: Decay of an exponential moving average of weights and batch-norm buffers, in [0, 1).
            The average is validated, tested and saved; 0 for none.
        epochs: Number of epochs, at least 1. `trainer.max_epochs` and `trainer.max_steps` are
            exact: with one of them, this and `min_steps` have no effect.
        min_steps: Smallest number of optimizer steps, at least 0: if the epochs have fewer, epochs
            are added, and validation becomes rarer.

    Raises:
        ValueError: A value is out of its range.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.25
    bias_lr: float = 1.0
    ema: float = 0.0
    epochs: int = 20
    min_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "bias_lr"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is more than 0, not {getattr(self, name)!r}")
        for name in ("momentum", "warmup", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is in [0, 1), not {getattr(self, name)!r}")
        for name, least in (("epochs", 1), ("min_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is a whole number of at least {least}, not {value!r}")

    def build(
        self,
        groups: list[dict[str, Any]],
        steps: int,
        fused: bool = True,
        biases: Collection[nn.Parameter] = (),
    ) -> dict[str, Any]:
        """Create the optimizer and its schedule, which is stepped after every batch.

        Args:
            groups: Parameter groups, as `parameter_groups` returns them.
            steps: Number of optimizer steps of the whole training.
            fused: Whether the optimizer uses its fused implementation.
            biases: Parameters that `bias_lr` applies to.
        """
        if self.bias_lr != 1.0:
            bias_ids = {id(bias) for bias in biases}
            groups = [part for group in groups for part in self._split_group(group, bias_ids)]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            optimizer = torch.optim.SGD(
                groups, self.lr, self.momentum, nesterov=nesterov, fused=fused
            )
        else:
            optimizer = torch.optim.AdamW(groups, self.lr, fused=fused)
        rise = round(self.warmup * steps) if self.schedule == "one_cycle" else 0
        scheduler: lr_scheduler.LRScheduler
        if self.schedule == "constant":
            scheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
        else:
            scheduler = lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise))
        if rise:
            warmup = lr_scheduler.LinearLR(optimizer, 1 / 25, total_iters=rise)
            scheduler = lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], [rise])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _split_group(self, group: dict[str, Any], bias_ids: set[int]) -> list[dict[str, Any]]:
        """Split a group into biases, with a learning rate of their own, and other parameters."""
        biases = [parameter for parameter in group["params"] if id(parameter) in bias_ids]
        others = [parameter for parameter in group["params"] if id(parameter) not in bias_ids]
        parts = ({"params": others}, {"params": biases, "lr": self.lr * self.bias_lr})
        # Optimizers reject a group without parameters.
        return [group | part for part in parts if part["params"]]
