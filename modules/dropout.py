"""Dropout on units, channels and words: a function and a thin module that calls it.

Everywhere `p` is the probability to DROP, as in PyTorch; papers that give the probability to keep
mean 1 - p. What is kept is scaled by 1 / (1 - p), so the mean does not change.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    check_rate("p", p)
    return x.new_empty(shape).bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each element to zero with probability `p`, independently. See `Dropout`."""
    if not training or p == 0.0:
        return x
    if generator is None:
        return F.dropout(x, p)
    return x * scaled_mask(x, tuple(x.shape), p, generator)


def channel_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each channel to zero as a whole with probability `p`. See `ChannelDropout`."""
    if not training or p == 0.0:
        return x
    return x * scaled_mask(x, tuple(x.shape[:2]) + (1,) * (x.dim() - 2), p, generator)


def locked_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Drop each feature with probability `p`, the same for all time steps. See `LockedDropout`."""
    if not training or p == 0.0:
        return x
    return x * scaled_mask(x, (x.shape[0], 1, x.shape[2]), p, generator)


def word_dropout(
    ids: Tensor,
    p: float,
    replacement: int,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace each token id by `replacement` with probability `p` (Iyyer et al. 2015).

    Args:
        ids: Token ids.
        p: Probability to replace a token, in [0, 1).
        replacement: The id put in the place of a dropped token, usually that of the unknown word.
        keep: True where a token must stay (padding, special tokens).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        ids and keep: (batch, time). The output has the same shape.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 0]])
        >>> word_dropout(ids, 0.0, replacement=1).tolist()
        [[5, 6, 7, 0]]
    """
    if check_rate("p", p) == 0.0:
        return ids
    drop = torch.rand(ids.shape, device=ids.device, generator=generator) < p
    if keep is not None:
        drop &= ~keep
    return ids.masked_fill(drop, replacement)


class _Rate(nn.Module):
    """What every dropout layer shares: a checked `p`, shown in its repr."""

    def __init__(self, p: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.p = check_rate("p", p)
        self.generator = generator

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(_Rate):
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


class ChannelDropout(_Rate):
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


class LockedDropout(_Rate):
    """Drops features with one mask for all time steps (Gal & Ghahramani 2016; Merity et al. 2018).

    A fresh mask at each step would destroy what a recurrent network carries along.

    Args:
        p: Probability to drop a feature, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, time, features); the output has the same shape.

    Example:
        >>> x = LockedDropout(0.5)(torch.ones(2, 5, 3))
        >>> bool((x == x[:, :1]).all())
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        return locked_dropout(x, self.p, self.training, self.generator)
