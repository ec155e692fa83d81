"""The base of dropout layers with learned rates."""

from typing import Any

import torch
from torch import Tensor, nn


class LearnedDropout(nn.Module):
    """Base of dropout layers that learn their rates by gradient descent.

    Schedules do not change these rates. The loss alone would drive them to zero: add the `penalty`
    of each layer, divided by the number of training examples.
    """

    generator: torch.Generator | None = None

    @property
    def p(self) -> Tensor:
        """The current rate, a scalar with a gradient."""
        raise NotImplementedError

    @staticmethod
    def whole(parameter: Tensor) -> Tensor:
        """Return the full parameter: under `fully_shard` each rank holds a shard."""
        held: Any = parameter
        # A torch.fx proxy has every attribute.
        if isinstance(held, Tensor) and hasattr(held, "full_tensor"):
            held = held.full_tensor()
        return held  # type: ignore[no-any-return]

    def penalty(self) -> Tensor:
        """Return the KL divergence from the prior, a scalar with a gradient."""
        raise NotImplementedError
