"""Masks of valid steps: one reading of them for every layer that takes one."""

import torch
from torch import Tensor

from modules.kernels import has_values


def valid_steps(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask as booleans of shape (batch, time), after checking it.

    Args:
        mask: (batch, time), either of which may be 1 and is broadcast. Booleans, or numbers that
            are 0 or 1, such as a tokenizer's attention mask. Booleans are fastest: the values of
            others are checked. A vector has a single step.
        x: (batch, channels, ..., time), on the same device.

    Raises:
        ValueError: The mask has another shape or is on another device, or holds another value.

    Example:
        >>> valid_steps(torch.tensor([[1, 1, 0]]), torch.randn(2, 4, 3)).tolist()
        [[True, True, False], [True, True, False]]
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"a mask is a tensor, not {mask!r}")
    shape = (x.shape[0], x.shape[-1] if x.dim() > 2 else 1)
    if mask.dtype == torch.bool and mask.shape == shape and mask.device == x.device:
        return mask
    fits = mask.dim() == 2 and all(
        size in (1, wanted) for size, wanted in zip(mask.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"a mask has the shape (batch, time), here {tuple(shape)}, or 1 for either of them, "
            f"not {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(f"the mask is on {mask.device}, its input on {x.device}")
    if mask.dtype != torch.bool:
        valid = mask == 1
        # Not where the values are unknown, as in a compiled model.
        if has_values(mask) and not (valid | (mask == 0)).all():
            wrong = mask[~(valid | (mask == 0))][0].item()
            raise ValueError(f"a mask holds 1 at valid steps and 0 at others, not {wrong!r}")
        mask = valid
    return mask.expand(shape)


def mask_steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the steps that the mask excludes to zero.

    Shape:
        x: (batch, channels, ..., time). mask: (batch, time), True at valid steps, or None for all;
        numbers 0 and 1, and dimensions of size 1, will do.

    Raises:
        ValueError: The mask does not fit.

    Example:
        >>> mask_steps(torch.ones(1, 1, 3), torch.tensor([[True, True, False]])).tolist()
        [[[1.0, 1.0, 0.0]]]
    """
    if mask is None:
        return x
    # Not a product: padding may hold infinity or NaN. Nor masked_fill: it changes memory formats.
    return torch.where(spread(valid_steps(mask, x), x), x, x.new_zeros(()))


def spread(valid: Tensor, x: Tensor) -> Tensor:
    """Give booleans (batch, time) the dimensions of `x`, (batch, 1, ..., time)."""
    return valid.view(valid.shape[0], *(1,) * (x.dim() - 2), valid.shape[1])


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` in the memory format of `x`, which has its shape: channels last or contiguous."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return y
    form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return y.contiguous(memory_format=form) if x.is_contiguous(memory_format=form) else y
