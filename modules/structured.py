"""Dropout of structures larger than a unit or a channel."""

import torch
from torch import Tensor

from modules.dropout import _Rate, scaled_mask


def drop_path(
    x: Tensor, p: float = 0.1, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each example's residual branch to zero with probability `p`. See `DropPath`."""
    if not training or p == 0.0:
        return x
    return x * scaled_mask(x, (x.shape[0],) + (1,) * (x.dim() - 1), p, generator)


class DropPath(_Rate):
    """Drops a residual branch, example by example (stochastic depth, Huang et al. 2016).

    Args:
        p: Probability to drop the branch, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, ...); the output has the same shape.

    Example:
        >>> x = DropPath(0.5)(torch.ones(8, 3))
        >>> set(x.flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.p, self.training, self.generator)
