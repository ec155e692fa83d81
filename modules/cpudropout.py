"""Dropout on the CPU with masks of one bit per value, and its derivatives.

PyTorch draws a mask of floats, value by value, and saves it for the backward pass. The kernels of
kernels.c draw the mask while they read the input, and save one bit per value. Without a compiler,
PyTorch operations draw the same mask from the same key.
"""

import math
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .kernels import WORD, readable, usable
from .philox import kept_positions, kept_values

# Below this number of values F.dropout is faster.
MIN_SIZE = 4096
# Template of a key: on the CPU, whatever the default device is.
_KEY = torch.empty((), dtype=torch.int64, device="cpu")


def uses_bitmask(x: Tensor) -> bool:
    """Whether dropout of `x` uses a mask of bits, which a kernel draws if there is one."""
    return readable("dropout", x) and x.numel() >= MIN_SIZE


def _key(generator: torch.Generator | None) -> int:
    """Draw the RNG key of one mask."""
    return int(torch.empty_like(_KEY).random_(-(2**63), None, generator=generator)) % 2**64


def _with_strides(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return `x` in the memory layout of its mask."""
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _dense(x: Tensor) -> Tensor:
    """Return `x`, copied if it has gaps in memory or overlaps itself."""
    return x if x.is_contiguous() or torch.empty_like(x).stride() == x.stride() else x.contiguous()


def _unpacked(bits: Tensor, rows: int, columns: int) -> Tensor:
    """Return bits as booleans (rows, columns); the bits of each row start a new word."""
    single = bits.view(rows, -1, 1) >> torch.arange(WORD, device="cpu") & 1
    return single.view(rows, -1)[:, :columns].bool().contiguous()


def _masked(x: Tensor, bits: Tensor, rows: int, scale: float, strides: tuple[int, ...]) -> Tensor:
    """Return scale * x where a bit is set, else zero.

    It uses the kernel, or PyTorch operations for tensors without plain memory, such as batched
    gradients.
    """
    if usable("apply", x):
        y: Tensor = _Apply.apply(_with_strides(x, strides), bits, rows, scale)
        return y
    keep = _unpacked(bits, rows, x.numel() // rows).as_strided(x.shape, strides)
    return torch.where(keep, x * scale, 0.0)


class _Apply(torch.autograd.Function):
    """Returns scale * x where a bit is set, else zero. The bits of each row start a new word.

    It is linear in x, so that it is its own derivative of any order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, rows: int, scale: float) -> Tensor:
        ctx.save_for_backward(bits)
        ctx.save_for_forward(bits)
        ctx.rows, ctx.scale, ctx.strides = rows, scale, x.stride()
        return kernels.apply(x, bits, rows, scale)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        return _masked(upstream, bits, ctx.rows, ctx.scale, ctx.strides), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Any:
        return _Apply.backward(ctx, tangent)[0]


class _Dropout(torch.autograd.Function):
    """Returns scale * x + shift where a value is kept, else `dropped`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, key: int, p: float, scale: float, shift: float, dropped: float
    ) -> Tensor:
        y, bits = kernels.dropout(x, key, p, scale, shift, dropped)
        ctx.save_for_backward(bits)
        ctx.save_for_forward(bits)
        ctx.rows, ctx.scale, ctx.strides = 1, scale, y.stride()
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return _Apply.backward(ctx, upstream)[0], None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Any:
        return _Apply.backward(ctx, tangent)[0]


def bitmask_dropout(
    x: Tensor,
    p: float,
    generator: torch.Generator | None = None,
    scale: float | None = None,
    shift: float = 0.0,
    dropped: float = 0.0,
) -> Tensor:
    """Replace each value by `dropped` with probability `p`; apply an affine map to the others.

    Args:
        x: Any shape, on the CPU; `uses_bitmask(x)` is true.
        p: Probability to drop a value, in (0, 1).
        generator: Source of randomness; the default one if None.
        scale: Factor of kept values; 1 / (1 - p) if None.
        shift: Added to kept values.
        dropped: Value of dropped elements.

    Example:
        >>> sorted(set(bitmask_dropout(torch.ones(5000), 0.75).tolist()))
        [0.0, 4.0]
    """
    scale = 1.0 / (1.0 - p) if scale is None else scale
    key, x = _key(generator), _dense(x)
    if kernels.compiled_kernels() is not None:
        y: Tensor = _Dropout.apply(x, key, p, scale, shift, dropped)
        return y
    keep = kept_values(x.numel(), p, key).as_strided(x.shape, x.stride())
    return torch.where(keep, x * scale + shift if shift else x * scale, dropped)


def bitmask_blocks(
    x: Tensor,
    p: float,
    block: int,
    generator: torch.Generator | None = None,
    couple_channels: bool = False,
) -> Tensor:
    """Set blocks of adjacent positions to zero, a fraction `p` of all, and scale the others.

    Args:
        x: (batch, channels, ...) with one to three further dimensions, on the CPU;
            `uses_bitmask(x)` is true.
        p: Probability to drop a position, in (0, 1).
        block: Side of a block.
        generator: Source of randomness; the default one if None.
        couple_channels: Whether all channels of an example share one mask.

    Example:
        >>> sorted(set(bitmask_blocks(torch.ones(2, 3, 40, 40), 0.5, 3).flatten().tolist()))
        [0.0, 2.0]
    """
    batch, channels, *inner = x.shape
    sizes = [1] * (3 - len(inner)) + inner
    sides = [1] * (3 - len(inner)) + [block] * len(inner)
    rows = batch if couple_channels else batch * channels
    # A position is kept if none of the blocks that can cover it starts.
    log_stay = math.log1p(-p) / math.prod(sides)
    key, scale = _key(generator), 1.0 / (1.0 - p)
    strides = _dense(x).stride()
    if kernels.compiled_kernels() is not None:
        bits = kernels.blocks(rows, sizes, sides, log_stay, key)
        if not couple_channels:
            y: Tensor = _Apply.apply(x.contiguous(), bits, rows, scale)
            # In the memory format of x.
            return _with_strides(y, strides)
        keep = _unpacked(bits, rows, math.prod(inner))
    else:
        keep = kept_positions(rows, sizes, sides, log_stay, key)
    return _with_strides(torch.where(keep.view(batch, -1, *inner), x * scale, 0.0), strides)
