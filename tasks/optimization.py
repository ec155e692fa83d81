"""How weights are found: the optimizer and the schedule of its learning rate."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler


@dataclass(frozen=True)
class Optimization:
    """How the weights are found.

    Args:
        optimizer: SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter 2019).
        lr: Highest learning rate.
        momentum: Of SGD.
        schedule: `one_cycle` rises for `warmup` of all steps from a 25th of the rate, and falls to
            zero along a cosine (Smith & Topin 2018); `cosine` begins at the highest rate;
            `constant` stays there.
        warmup: Share of all steps, of `one_cycle`.
        bias_lr: Factor on the rate of the biases of norms, which may move faster than weights
            (Jordan 2024, arXiv 2404.00498).
        ema: Decay of an exponential moving average of weights and batch-norm buffers, which is
            what is validated, tested and saved; 0 for none.

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

    def __post_init__(self) -> None:
        for name in ("lr", "bias_lr"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is more than 0, not {getattr(self, name)!r}")
        for name in ("momentum", "warmup", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is in [0, 1), not {getattr(self, name)!r}")

    def build(
        self,
        groups: list[dict[str, Any]],
        steps: int,
        fused: bool = True,
        biases: Collection[nn.Parameter] = (),
    ) -> dict[str, Any]:
        """Make the optimizer of parameter groups and its schedule, stepped after every batch.

        Args:
            groups: As `parameter_groups` makes them.
            steps: Number of optimizer steps of the whole training.
            fused: Whether all parameters are moved in one pass over their memory.
            biases: Those of the parameters that `bias_lr` is for.
        """
        if self.bias_lr != 1.0:
            apart = {id(bias) for bias in biases}
            groups = [part for group in groups for part in self._divided(group, apart)]
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

    def _divided(self, group: dict[str, Any], apart: set[int]) -> list[dict[str, Any]]:
        """Split parameters off a group, by their identity, with the learning rate of biases."""
        fast = [parameter for parameter in group["params"] if id(parameter) in apart]
        others = [parameter for parameter in group["params"] if id(parameter) not in apart]
        parts = ({"params": others}, {"params": fast, "lr": self.lr * self.bias_lr})
        # No optimizer takes a group without parameters.
        return [group | part for part in parts if part["params"]]
