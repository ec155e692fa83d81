"""Dropout on units, channels and features: a function and a thin module that calls it.

Everywhere `p` is the probability to DROP, as in PyTorch; papers that give the probability to keep
mean 1 - p. What is kept is scaled by 1 / (1 - p), so the mean does not change.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.bitmask import bitmask_dropout, worth_a_kernel
from modules.checks import check_amount as check_amount
from modules.checks import check_flag, check_generator, check_probability
from modules.checks import check_rate as check_rate
from modules.replay import repeated
from modules.tracing import is_proxy, record_function, recordable, transformed

# What SELU tends to for very negative inputs: -scale * alpha (Klambauer et al. 2017).
SELU_LOWEST = -1.0507009873554805 * 1.6732632423543772
SELU_LOWEST_SQUARED = SELU_LOWEST * SELU_LOWEST


def uniform(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw numbers in [0, 1)."""
    return _drawn(torch.rand, shape, dtype, device, generator)


def normal(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw normal numbers of mean 0 and variance 1."""
    return _drawn(torch.randn, shape, dtype, device, generator)


def _drawn(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    if generator is None:
        # The overload that takes a generator takes no symbolic shapes.
        return draw(shape, dtype=dtype, device=device)
    with repeated(generator):
        return draw(shape, dtype=dtype, device=device, generator=generator)


def keep_mask(
    x: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask of the given shape with 0 at rate `p` and 1 elsewhere, like `x`."""
    if transformed():
        # In single precision: the smaller types have too few values near p.
        return (uniform(shape, torch.float32, x.device, generator) >= p).to(x.dtype)
    if generator is None:
        return x.new_empty(shape).bernoulli_(1.0 - p)
    with repeated(generator):
        return x.new_empty(shape).bernoulli_(1.0 - p, generator=generator)


def scaled_mask(
    x: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask of the given shape with 0 at rate `p` and 1 / (1 - p) elsewhere, like `x`."""
    mask = keep_mask(x, shape, p, generator)
    # Nothing is kept at a rate of 1, and so nothing scaled.
    return mask if p == 1.0 else mask.div_(1.0 - p)


def masked(
    x: Tensor,
    shape: tuple[int, ...],
    p: float,
    generator: torch.Generator | None = None,
    inplace: bool = False,
    scale: bool = True,
) -> Tensor:
    """Multiply `x` by a mask of the given shape; at a rate of 1 the output is zero whatever `x` is.

    Args:
        x: The input.
        shape: Of the mask, broadcast to that of `x`.
        p: Probability of a zero, in (0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change `x` itself.
        scale: Whether to divide what is kept by 1 - p.
    """
    if p == 1.0:
        return nothing_kept(x, inplace)
    mask = (scaled_mask if scale else keep_mask)(x, shape, p, generator)
    return x.mul_(mask) if inplace else x * mask


def nothing_kept(x: Tensor, inplace: bool = False) -> Tensor:
    """Return zeros in the shape of `x`, whose gradient is zero too, also if `x` is not finite."""
    if inplace:
        return x.zero_()
    return x.masked_fill(torch.ones((), dtype=torch.bool, device=x.device), 0.0)


def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Tensor:
    """Set each element to zero with probability `p`, independently. See `Dropout`."""
    check_probability("p", p)
    if is_proxy(x):
        return record_function(dropout, x, p, training, generator, inplace)
    if not training or p == 0.0:
        return x
    if x.is_nested:
        return F.dropout(x, p, True, inplace)
    if p == 1.0:
        return nothing_kept(x, inplace)
    # Compiled, F.dropout would be compiled anew for each p.
    if not torch.compiler.is_compiling():
        if not inplace and worth_a_kernel(x):
            if generator is None:
                return bitmask_dropout(x, p)
            with repeated(generator):
                return bitmask_dropout(x, p, generator)
        if generator is None:
            return F.dropout(x, p, True, inplace)
    return masked(x, tuple(x.shape), p, generator, inplace)


def channel_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    inplace: bool = False,
    dims: int | None = None,
) -> Tensor:
    """Set each channel to zero as a whole with probability `p`. See `ChannelDropout`.

    Raises:
        ValueError: `x` has not `dims` dimensions after the channels, or no channels.
    """
    check_probability("p", p)
    if is_proxy(x):
        return record_function(channel_dropout, x, p, training, generator, inplace, dims)
    if dims is not None and x.dim() not in (dims + 1, dims + 2):
        raise ValueError(
            f"channel dropout with dims={dims} takes (batch, channels, ...) of {dims + 2} "
            f"dimensions or (channels, ...) of {dims + 1}, not {x.dim()}"
        )
    if not training or p == 0.0:
        return x
    drawn = 1 if dims is not None and x.dim() == dims + 1 else 2
    shape = tuple(x.shape[:drawn]) + (1,) * (x.dim() - drawn)
    return masked(x, shape, p, generator, inplace)


def locked_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    dim: int = 1,
) -> Tensor:
    """Drop each feature with probability `p`, the same for all time steps. See `LockedDropout`."""
    check_probability("p", p)
    if is_proxy(x):
        return record_function(locked_dropout, x, p, training, generator, dim)
    if not training or p == 0.0:
        return x
    shape = list(x.shape)
    shape[dim] = 1
    return masked(x, tuple(shape), p, generator)


def gaussian_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Multiply each element by noise of mean 1 and variance p / (1 - p). See `GaussianDropout`."""
    check_probability("p", p)
    if is_proxy(x):
        return record_function(gaussian_dropout, x, p, training, generator)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return nothing_kept(x)
    std = math.sqrt(p / (1.0 - p))
    if generator is None:
        if transformed():
            return x * (1.0 + std * torch.randn(x.shape, dtype=x.dtype, device=x.device))
        return x * torch.empty_like(x).normal_(1.0, std)
    with repeated(generator):
        return x * torch.empty_like(x).normal_(1.0, std, generator=generator)


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
    # The affine map that gives an input of mean 0 and variance 1 the same again.
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * SELU_LOWEST_SQUARED))
    shift = -p * SELU_LOWEST * scale
    if not torch.compiler.is_compiling():
        if not inplace and worth_a_kernel(x):
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


class DropoutLayer(nn.Module):
    """What every dropout layer shares: a checked `p`, shown in its repr.

    A `DropoutSchedule` finds the layers of a model by it and sets their `p`. Everything is dropped
    at a `p` of 1.
    """

    # Whether one draw serves the whole batch, so that repeating an example in it draws nothing new.
    shared_draw = False

    def __init__(self, p: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.p = check_probability("p", p)
        check_generator(generator)
        self.generator = generator

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(DropoutLayer):
    """Drops single units during training (Srivastava et al. 2014, JMLR 15).

    Args:
        p: Probability to drop a unit, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change the input itself.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> layer = Dropout(0.5).eval()
        >>> layer(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self, p: float = 0.5, generator: torch.Generator | None = None, inplace: bool = False
    ) -> None:
        super().__init__(p, generator)
        self.inplace = check_flag("inplace", inplace)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training, self.generator, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", inplace=True" if self.inplace else "")


class ChannelDropout(DropoutLayer):
    """Drops whole channels during training (Tompson et al. 2015, "spatial dropout").

    Neighbouring positions of a feature map say nearly the same, so that dropping single units
    takes hardly any information away; dropping the map does.

    Args:
        p: Probability to drop a channel, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change the input itself.
        dims: Number of dimensions after the channels. With it an input of `dims + 1` dimensions is
            one example without a batch, as `nn.Dropout1d`, 2d and 3d take it. Without it the first
            dimension is always the batch, for (channels, length) cannot be told from (batch,
            channels).

    Shape:
        (batch, channels, ...), or (channels, ...) if `dims` says so; the output has the same shape.

    Raises:
        ValueError: An argument is out of its range, or an input does not have `dims` dimensions
            after the channels.

    Example:
        >>> x = ChannelDropout(0.5)(torch.ones(2, 8, 4, 4))
        >>> set(x.mean(dim=(2, 3)).flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def __init__(
        self,
        p: float = 0.5,
        generator: torch.Generator | None = None,
        inplace: bool = False,
        dims: int | None = None,
    ) -> None:
        super().__init__(p, generator)
        self.inplace = check_flag("inplace", inplace)
        if dims is not None:
            check_amount("dims", dims, whole=True)
        self.dims = dims

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return channel_dropout(x, self.p, self.training, self.generator, self.inplace, self.dims)

    def extra_repr(self) -> str:
        shown = f"p={self.p}" + (", inplace=True" if self.inplace else "")
        return shown if self.dims is None else f"{shown}, dims={self.dims}"


class LockedDropout(DropoutLayer):
    """Drops features with one mask for all time steps (Gal & Ghahramani 2016; Merity et al. 2018).

    A fresh mask at each step would destroy what a recurrent network carries along.

    Args:
        p: Probability to drop a feature, in [0, 1].
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

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return locked_dropout(x, self.p, self.training, self.generator, self.dim)


class GaussianDropout(DropoutLayer):
    """Multiplies units by Gaussian noise during training (Srivastava et al. 2014, section 10).

    The noise has the mean and variance that dropout with the same `p` has, 1 and p / (1 - p), and
    drops nothing altogether; it is also the starting point of variational dropout (Kingma et al.
    2015).

    Args:
        p: The dropout rate whose variance the noise has, in [0, 1].
        generator: Source of randomness; the default one of the device if None.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> x = GaussianDropout(0.2, torch.Generator().manual_seed(0))(torch.ones(100_000))
        >>> round(x.mean().item(), 1), round(x.std().item(), 1)
        (1.0, 0.5)
    """

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return gaussian_dropout(x, self.p, self.training, self.generator)


class AlphaDropout(DropoutLayer):
    """Dropout for networks of SELU units (Klambauer et al. 2017).

    What is dropped takes the lowest value of SELU instead of zero, and an affine map then brings
    inputs of mean 0 and variance 1 back to mean 0 and variance 1, so that the network goes on
    normalizing itself. After other activations use `Dropout`.

    Args:
        p: Probability to drop a unit, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change the input itself.

    Shape:
        Any shape; the output has the same.

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
