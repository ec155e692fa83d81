"""Dropout on the CPU by masks of one bit a value, and its derivatives.

PyTorch draws such a mask one value after the other, as floats, and keeps the floats for the
backward pass. The loops of kernels.c draw it while they read the input, and keep the bits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from modules.kernels import compiled_kernels, kernel, usable

# Of fewer values PyTorch's own operations make shorter work.
FEWEST = 4096
# A rate is met to so many binary places.
PLACES = 48
WORD = 64


def worth_a_kernel(x: Tensor) -> bool:
    """Whether dropout of `x` is better done by a kernel than by PyTorch's operations."""
    return x.numel() >= FEWEST and usable("dropout", x)


def _key(generator: torch.Generator | None) -> int:
    """Draw what the random numbers of one mask follow from."""
    key = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return int(key) % 2**64


def _laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return `x` in the memory layout that its mask was drawn for."""
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


class _Apply(torch.autograd.Function):
    """scale * x where a bit is set, else zero; of x seen as rows, each with words of its own.

    It is linear in x, so that its derivatives of any order are itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, rows: int, scale: float) -> Tensor:
        ctx.save_for_backward(bits)
        ctx.save_for_forward(bits)
        ctx.rows, ctx.scale, ctx.strides = rows, scale, x.stride()
        y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        kernel("apply", x.dtype)(
            *(x.data_ptr(), y.data_ptr(), bits.data_ptr()),
            *(rows, x.numel() // rows, scale, torch.get_num_threads()),
        )
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        grad = _Apply.apply(_laid_out(upstream, ctx.strides), bits, ctx.rows, ctx.scale)
        return grad, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Any:
        return _Apply.backward(ctx, tangent)[0]


class _Dropout(torch.autograd.Function):
    """scale * x + shift where a value is kept, else `dropped`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, key: int, p: float, scale: float, shift: float, dropped: float
    ) -> Tensor:
        y = torch.empty_like(x)
        if y.stride() != x.stride():  # What has gaps in memory, or overlaps.
            x = x.contiguous()
            y = torch.empty_like(x)
        bits = torch.empty(math.ceil(x.numel() / WORD), dtype=torch.int64)
        high, low = divmod(round(p * 2**PLACES), 2**32)
        kernel("dropout", x.dtype)(
            *(x.data_ptr(), y.data_ptr(), bits.data_ptr(), x.numel()),
            *(key, high, low, scale, shift, dropped, torch.get_num_threads()),
        )
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
    """Replace each value by `dropped` with probability `p`; of the others take an affine map.

    Args:
        x: Any shape, on the CPU, such as `worth_a_kernel` says.
        p: Probability to drop a value, in (0, 1).
        generator: Source of randomness; the default one if None.
        scale: Factor of what is kept; 1 / (1 - p) if None.
        shift: Added to what is kept.
        dropped: What is put in the place of the others.

    Example:
        >>> sorted(set(bitmask_dropout(torch.ones(5000), 0.75).tolist()))
        [0.0, 4.0]
    """
    scale = 1.0 / (1.0 - p) if scale is None else scale
    y: Tensor = _Dropout.apply(x, _key(generator), p, scale, shift, dropped)
    return y


def bitmask_blocks(
    x: Tensor, p: float, block: int, generator: torch.Generator | None = None
) -> Tensor:
    """Set blocks of neighbouring positions to zero, a share `p` of all, and scale the others.

    Args:
        x: (batch, channels, ...) with one to three further dimensions, on the CPU, such as
            `worth_a_kernel` says.
        p: Probability to drop a position, in (0, 1).
        block: Side of a block.
        generator: Source of randomness; the default one if None.

    Example:
        >>> sorted(set(bitmask_blocks(torch.ones(2, 3, 40, 40), 0.5, 3).flatten().tolist()))
        [0.0, 2.0]
    """
    loaded = compiled_kernels()
    assert loaded is not None
    x = x.contiguous()
    sizes = [1] * (5 - x.dim()) + list(x.shape[2:])
    sides = [1] * (5 - x.dim()) + [block] * (x.dim() - 2)
    rows = x.shape[0] * x.shape[1]
    bits = torch.empty(rows, math.ceil(math.prod(sizes) / WORD), dtype=torch.int64)
    # A position is kept if none of the blocks that could cover it begins.
    log_stay = math.log1p(-p) / math.prod(sides)
    shapes = torch.tensor([sizes, sides])
    loaded.blocks(
        *(bits.data_ptr(), rows, shapes[0].data_ptr(), shapes[1].data_ptr()),
        *(log_stay, _key(generator), torch.get_num_threads()),
    )
    y: Tensor = _Apply.apply(x, bits, rows, 1.0 / (1.0 - p))
    return y
