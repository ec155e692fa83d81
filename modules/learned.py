"""The base of dropout layers whose rates are learned."""

from typing import Any

import torch
from torch import Tensor, nn


class LearnedDropout(nn.Module):
    """Base of the dropout layers that learn their rates by gradient descent.

    No schedule sets such a rate. The loss alone would lead it to zero: add `penalty` of each layer,
    divided by the number of training examples.
    """

    generator: torch.Generator | None = None

    @property
    def p(self) -> Tensor:
        """The rate as it is now, a scalar with a gradient."""
        raise NotImplementedError

    @staticmethod
    def whole(parameter: Tensor) -> Tensor:
        """Return a parameter whole: under `fully_shard` each rank holds a piece of it."""
        held: Any = parameter
        # Not what torch.fx puts in its place, which has any attribute.
        if isinstance(held, Tensor) and hasattr(held, "full_tensor"):
            held = held.full_tensor()
        return held  # type: ignore[no-any-return]

    def penalty(self) -> Tensor:
        """Return the divergence from the prior, a scalar with a gradient."""
        raise NotImplementedError
