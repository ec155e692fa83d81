"""Alpha dropout: dropout for networks of SELU units."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_flag, check_probability
from .cpudropout import bitmask_dropout, uses_bitmask
from .dropout import DropoutLayer, keep_mask, nothing_kept
from .dropoutkinds import DropoutSite, register_dropout, unsuitable
from .replay import repeated
from .tracing import is_proxy, record_function, recordable

# Limit of SELU for very negative inputs: -scale * alpha (Klambauer et al. 2017).
SELU_LOWEST = -1.0507009873554805 * 1.6732632423543772
SELU_LOWEST_SQUARED = SELU_LOWEST * SELU_LOWEST


def alpha_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Tensor:
    """Set each element to SELU's lowest value with probability `p`. See `AlphaDropout`."""
    check_probability("p", p)
    if is_proxy(x):
        return record_function(alpha_dropout, x, p, training, generator, inplace)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return nothing_kept(x, inplace)
    # This affine map restores mean 0 and variance 1.
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * SELU_LOWEST_SQUARED))
    shift = -p * SELU_LOWEST * scale
    if not torch.compiler.is_compiling():
        if not inplace and uses_bitmask(x):
            dropped = SELU_LOWEST * scale + shift
            if generator is None:
                return bitmask_dropout(x, p, None, scale, shift, dropped)
            with repeated(generator):
                return bitmask_dropout(x, p, generator, scale, shift, dropped)
        if generator is None:
            return F.alpha_dropout(x, p, True, inplace)
    dropped_units = keep_mask(x, tuple(x.shape), p, generator) == 0
    if inplace:
        return x.masked_fill_(dropped_units, SELU_LOWEST).mul_(scale).add_(shift)
    return x.masked_fill(dropped_units, SELU_LOWEST) * scale + shift


class AlphaDropout(DropoutLayer):
    """Dropout for networks of SELU units (Klambauer et al. 2017).

    Dropped units take the lowest value of SELU instead of zero. An affine map then restores mean 0
    and variance 1, so that the network stays self-normalizing. After other activations use
    `Dropout`.

    Args:
        p: Probability to drop a unit, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change the input itself.

    Shape:
        Any shape; the output has the same.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> x = AlphaDropout(0.2, torch.Generator().manual_seed(0))(torch.randn(100_000))
        >>> abs(round(x.mean().item(), 1)), round(x.std().item(), 1)
        (0.0, 1.0)
    """

    def __init__(
        self, p: float = 0.5, generator: torch.Generator | None = None, inplace: bool = False
    ) -> None:
        super().__init__(p, generator)
        self.inplace = check_flag("inplace", inplace)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return alpha_dropout(x, self.p, self.training, self.generator, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", inplace=True" if self.inplace else "")


@register_dropout("alpha")
def _alpha(p: float, site: DropoutSite) -> nn.Module:
    if not site.selu:
        raise unsuitable("alpha", "is for SELU units, which only mlp has (model.arch=mlp)")
    return AlphaDropout(p)
