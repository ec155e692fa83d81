"""Dropout on units, channels and features: a function and a thin module that calls it.

Everywhere `p` is the probability to DROP, as in PyTorch; papers that give the probability to keep
mean 1 - p. What is kept is scaled by 1 / (1 - p), so the mean does not change.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.bitmask import bitmask_dropout, worth_a_kernel

# What SELU tends to for very negative inputs: -scale * alpha (Klambauer et al. 2017).
SELU_LOWEST = -1.0507009873554805 * 1.6732632423543772


def check_rate(name: str, value: float) -> float:
    """Return `value` if it is a rate in [0, 1), and otherwise raise an error that names it.

    Raises:
        ValueError: `value` is not a number, is NaN, or lies outside [0, 1).
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or math.isnan(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is a rate to drop in [0, 1), not {value!r}")
    return float(value)


def check_amount(name: str, value: float, whole: bool = False) -> None:
    """Raise an error that names `value` if it is no finite amount of at least 0.

    Raises:
        ValueError: `value` is not a number (if `whole`, an integer), is NaN, infinite or negative.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is a {kind} of at least 0, not {value!r}")


def scaled_mask(
    x: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask of the given shape with 0 at rate `p` and 1 / (1 - p) elsewhere, like `x`."""
    return x.new_empty(shape).bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each element to zero with probability `p`, independently. See `Dropout`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    if worth_a_kernel(x):
        return bitmask_dropout(x, p, generator)
    if generator is None:
        return F.dropout(x, p)
    return x * scaled_mask(x, tuple(x.shape), p, generator)


def channel_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each channel to zero as a whole with probability `p`. See `ChannelDropout`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    return x * scaled_mask(x, tuple(x.shape[:2]) + (1,) * (x.dim() - 2), p, generator)


def locked_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    dim: int = 1,
) -> Tensor:
    """Drop each feature with probability `p`, the same for all time steps. See `LockedDropout`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    shape = list(x.shape)
    shape[dim] = 1
    return x * scaled_mask(x, tuple(shape), p, generator)


def gaussian_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Multiply each element by noise of mean 1 and variance p / (1 - p). See `GaussianDropout`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    std = math.sqrt(p / (1.0 - p))
    return x * torch.empty_like(x).normal_(1.0, std, generator=generator)


def alpha_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each element to SELU's lowest value with probability `p`. See `AlphaDropout`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    # The affine map that gives an input of mean 0 and variance 1 the same again.
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * SELU_LOWEST**2))
    shift = -p * SELU_LOWEST * scale
    if worth_a_kernel(x):
        return bitmask_dropout(x, p, generator, scale, shift, SELU_LOWEST * scale + shift)
    if generator is None:
        return F.alpha_dropout(x, p, training=True)
    keep = torch.empty_like(x).bernoulli_(1.0 - p, generator=generator)
    return torch.where(keep > 0, x, SELU_LOWEST) * scale + shift


class DropoutLayer(nn.Module):
    """What every dropout layer shares: a checked `p`, shown in its repr.

    A `DropoutSchedule` finds the layers of a model by it and sets their `p`.
    """

    # Whether one draw serves the whole batch, so that repeating an example in it draws nothing new.
    shared_draw = False

    def __init__(self, p: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.p = check_rate("p", p)
        self.generator = generator

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(DropoutLayer):
    """Drops single units during training (Srivastava et al. 2014, JMLR 15).

    Args:
        p: Probability to drop a unit, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> layer = Dropout(0.5).eval()
        >>> layer(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training, self.generator)


class ChannelDropout(DropoutLayer):
    """Drops whole channels during training (Tompson et al. 2015, "spatial dropout").

    Neighbouring positions of a feature map say nearly the same, so that dropping single units
    takes hardly any information away; dropping the map does.

    Args:
        p: Probability to drop a channel, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, channels, ...); the output has the same shape.

    Example:
        >>> x = ChannelDropout(0.5)(torch.ones(2, 8, 4, 4))
        >>> set(x.mean(dim=(2, 3)).flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        return channel_dropout(x, self.p, self.training, self.generator)


class LockedDropout(DropoutLayer):
    """Drops features with one mask for all time steps (Gal & Ghahramani 2016; Merity et al. 2018).

    A fresh mask at each step would destroy what a recurrent network carries along.

    Args:
        p: Probability to drop a feature, in [0, 1).
        generator: Source of randomness; the default one of the device if None.
        dim: The dimension of time.

    Shape:
        (batch, time, features) or, with another `dim`, any shape; the output has the same.

    Example:
        >>> x = LockedDropout(0.5)(torch.ones(2, 5, 3))
        >>> bool((x == x[:, :1]).all())
        True
    """

    def __init__(
        self, p: float = 0.5, generator: torch.Generator | None = None, dim: int = 1
    ) -> None:
        super().__init__(p, generator)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return locked_dropout(x, self.p, self.training, self.generator, self.dim)


class GaussianDropout(DropoutLayer):
    """Multiplies units by Gaussian noise during training (Srivastava et al. 2014, section 10).

    The noise has the mean and variance that dropout with the same `p` has, 1 and p / (1 - p), and
    drops nothing altogether; it is also the starting point of variational dropout (Kingma et al.
    2015).

    Args:
        p: The dropout rate whose variance the noise has, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> x = GaussianDropout(0.2, torch.Generator().manual_seed(0))(torch.ones(100_000))
        >>> round(x.mean().item(), 1), round(x.std().item(), 1)
        (1.0, 0.5)
    """

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_dropout(x, self.p, self.training, self.generator)


class AlphaDropout(DropoutLayer):
    """Dropout for networks of SELU units (Klambauer et al. 2017).

    What is dropped takes the lowest value of SELU instead of zero, and an affine map then brings
    inputs of mean 0 and variance 1 back to mean 0 and variance 1, so that the network goes on
    normalizing itself. After other activations use `Dropout`.

    Args:
        p: Probability to drop a unit, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> x = AlphaDropout(0.2, torch.Generator().manual_seed(0))(torch.randn(100_000))
        >>> abs(round(x.mean().item(), 1)), round(x.std().item(), 1)
        (0.0, 1.0)
    """

    def forward(self, x: Tensor) -> Tensor:
        return alpha_dropout(x, self.p, self.training, self.generator)
