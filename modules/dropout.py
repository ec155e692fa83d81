"""Dropout on units, channels and features: a function and a thin module that calls it.

`p` is always the probability to DROP, as in PyTorch; papers that give a keep probability mean
1 - p. The kept elements are scaled by 1 / (1 - p), which preserves the mean.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_amount as check_amount
from .checks import check_flag, check_generator, check_probability
from .checks import check_rate as check_rate
from .cpudropout import bitmask_dropout, uses_bitmask
from .dropoutkinds import DropoutSite, register_dropout, unsuitable
from .replay import repeated
from .tracing import is_proxy, record_function, recordable, transformed


def uniform(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw uniform numbers in [0, 1)."""
    return _sample(torch.rand, shape, dtype, device, generator)


def normal(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw normal numbers with mean 0 and variance 1."""
    return _sample(torch.randn, shape, dtype, device, generator)


def _sample(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    if generator is None:
        # The overload with a generator does not accept symbolic shapes.
        return draw(shape, dtype=dtype, device=device)
    with repeated(generator):
        return draw(shape, dtype=dtype, device=device, generator=generator)


def keep_mask(
    x: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask with the type and device of `x`: 0 with probability `p`, otherwise 1."""
    if transformed():
        # In float32: smaller types have too few values near p.
        return (uniform(shape, torch.float32, x.device, generator) >= p).to(x.dtype)
    if generator is None:
        return x.new_empty(shape).bernoulli_(1.0 - p)
    with repeated(generator):
        return x.new_empty(shape).bernoulli_(1.0 - p, generator=generator)


def scaled_mask(
    x: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask like `keep_mask`, whose kept elements are 1 / (1 - p)."""
    mask = keep_mask(x, shape, p, generator)
    # With p = 1 nothing is kept; the division would be by zero.
    return mask if p == 1.0 else mask.div_(1.0 - p)


def masked(
    x: Tensor,
    shape: tuple[int, ...],
    p: float,
    generator: torch.Generator | None = None,
    inplace: bool = False,
    scale: bool = True,
) -> Tensor:
    """Multiply `x` by a random mask. With `p` = 1 the output is zero even where `x` is not finite.

    Args:
        x: The input.
        shape: Shape of the mask, broadcast to that of `x`.
        p: Probability of a zero, in (0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change `x` itself.
        scale: Whether to divide the kept elements by 1 - p.
    """
    if p == 1.0:
        return nothing_kept(x, inplace)
    mask = (scaled_mask if scale else keep_mask)(x, shape, p, generator)
    return x.mul_(mask) if inplace else x * mask


def nothing_kept(x: Tensor, inplace: bool = False) -> Tensor:
    """Return zeros like `x` with a gradient of zero, even where `x` is not finite."""
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
    # In a compiled model F.dropout would cause a recompilation for each p.
    if not torch.compiler.is_compiling():
        if not inplace and uses_bitmask(x):
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
        ValueError: `x` does not have `dims` dimensions after the channels, or has no channels.
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


class DropoutLayer(nn.Module):
    """Base of the dropout layers: checks `p` and shows it in the repr.

    A `DropoutSchedule` sets the `p` of all layers of this class. With `p` = 1 everything is
    dropped.
    """

    # Whether the whole batch shares one draw: then copies of an example get the same mask.
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

    Raises:
        ValueError: An argument is out of its range.

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

    Adjacent positions of a feature map are strongly correlated, so that dropping single units
    removes little information. Dropping the whole map removes it.

    Args:
        p: Probability to drop a channel, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        inplace: Whether to change the input itself.
        dims: Number of dimensions after the channels. If given, an input of `dims + 1` dimensions
            is one example without a batch, as in `nn.Dropout1d`, 2d and 3d. If None, the first
            dimension is always the batch: (channels, length) and (batch, channels) look the same.

    Shape:
        (batch, channels, ...), or (channels, ...) if `dims` is given; the output has the same
        shape.

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
        text = f"p={self.p}" + (", inplace=True" if self.inplace else "")
        return text if self.dims is None else f"{text}, dims={self.dims}"


class LockedDropout(DropoutLayer):
    """Drops features with one mask for all time steps (Gal & Ghahramani 2016; Merity et al. 2018).

    A new mask at each step would destroy the state that a recurrent network carries from step to
    step.

    Args:
        p: Probability to drop a feature, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        dim: The dimension of time.

    Shape:
        (batch, time, features) or, with another `dim`, any shape; the output has the same.

    Raises:
        ValueError: An argument is out of its range.

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

    The noise has the mean and variance of dropout with the same `p`, 1 and p / (1 - p), but sets no
    unit to zero. Variational dropout (Kingma et al. 2015) is based on it.

    Args:
        p: Dropout rate with the same variance as the noise, in [0, 1].
        generator: Source of randomness; the default one of the device if None.

    Shape:
        Any shape; the output has the same.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> x = GaussianDropout(0.2, torch.Generator().manual_seed(0))(torch.ones(100_000))
        >>> round(x.mean().item(), 1), round(x.std().item(), 1)
        (1.0, 0.5)
    """

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return gaussian_dropout(x, self.p, self.training, self.generator)


@register_dropout("unit")
def _unit(p: float, site: DropoutSite) -> nn.Module:
    return Dropout(p)


@register_dropout("channel")
def _channel(p: float, site: DropoutSite) -> nn.Module:
    # In a vector each channel is a single unit.
    return ChannelDropout(p) if site.dims else Dropout(p)


@register_dropout("locked")
def _locked(p: float, site: DropoutSite) -> nn.Module:
    if not site.time:
        raise unsuitable(
            "locked", "uses one mask for all time steps, and this layer has no time dimension"
        )
    return LockedDropout(p, dim=-1)


@register_dropout("gaussian")
def _gaussian(p: float, site: DropoutSite) -> nn.Module:
    return GaussianDropout(p)
