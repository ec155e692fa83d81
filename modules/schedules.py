"""Schedules of dropout rates over the steps of training."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .checks import check_amount
from .dropout import DropoutLayer

SCHEDULES = ("constant", "linear", "curriculum", "early", "late")


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """Return the rate of each dropout layer of a model by its name, PyTorch's layers included.

    Learned rates (`LearnedDropout`) are not included.

    Args:
        model: The model.

    Example:
        >>> dropout_rates(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
        {'1': 0.3}
    """
    return {
        name: float(layer.p)
        for name, layer in model.named_modules()
        if isinstance(layer, (DropoutLayer, _DropoutNd))
    }


@dataclass(frozen=True)
class DropoutSchedule:
    """A factor on all dropout rates of a model as a function of the training step.

    `constant` is 1. `linear` rises from 0 to 1 over `steps` (scheduled drop path, Zoph et al.
    2018). `curriculum` rises as 1 - exp(-10 t / steps) (Morerio et al. 2017). `early` is 1 for
    `steps` and then 0, which reduces underfitting; `late` is 0 for `steps` and then 1 (both Liu et
    al. 2023).

    Args:
        kind: One of the above.
        steps: Optimizer steps, at least 1.

    Raises:
        ValueError: `kind` is unknown, or `steps` is not a whole number of at least 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
        >>> rates = dropout_rates(model)
        >>> DropoutSchedule("linear", steps=100).apply(model, rates, step=50)
        {'1': 0.15}
        >>> model[1].p
        0.15
    """

    kind: Literal["constant", "linear", "curriculum", "early", "late"] = "constant"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"kind is one of {', '.join(SCHEDULES)}, not {self.kind!r}")
        check_amount("steps", self.steps, whole=True)
        if self.steps < 1:
            raise ValueError(f"steps is a whole number of at least 1, not {self.steps!r}")

    def factor(self, step: int) -> float:
        """Return the factor at a step, counted from 0; it is in [0, 1]."""
        if self.kind == "linear":
            return min(1.0, step / self.steps)
        if self.kind == "curriculum":
            return 1.0 - math.exp(-10.0 * step / self.steps)
        if self.kind == "early":
            return float(step < self.steps)
        if self.kind == "late":
            return float(step >= self.steps)
        return 1.0

    def apply(self, model: nn.Module, rates: dict[str, float], step: int) -> dict[str, float]:
        """Set the rate of each layer for a step, and return these rates.

        Args:
            model: The model; the rates of its layers are changed.
            rates: Full rates by name, from `dropout_rates` before the first step.
            step: The optimizer step, counted from 0.
        """
        factor = self.factor(step)
        scheduled = {name: factor * rate for name, rate in rates.items()}
        for name, rate in scheduled.items():
            layer: Any = model.get_submodule(name)
            layer.p = rate
        return scheduled
