"""Masks of valid time steps: checks and application."""

import torch
from torch import Tensor, nn

from .kernels import has_values


def valid_steps(mask: Tensor, x: Tensor) -> Tensor:
    """Check a mask, and return it as booleans of shape (batch, time).

    Args:
        mask: (batch, time); sizes of 1 are broadcast. Booleans, or numbers 0 and 1, such as the
            attention mask of a tokenizer. Booleans are faster, for numbers are checked. A vector
            has a single step.
        x: (batch, channels, ..., time), on the same device.

    Raises:
        ValueError: The mask has another shape, device or value.

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
        raise ValueError(f"the mask is on {mask.device}, the input on {x.device}")
    if mask.dtype != torch.bool:
        valid = mask == 1
        # Values are unknown in a compiled model, for example.
        if has_values(mask) and not (valid | (mask == 0)).all():
            wrong = mask[~(valid | (mask == 0))][0].item()
            raise ValueError(f"a mask holds 1 at valid steps and 0 at others, not {wrong!r}")
        mask = valid
    return mask.expand(shape)


def mask_steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the steps that the mask excludes to zero.

    Args:
        x: The values.
        mask: The valid steps.

    Shape:
        x: (batch, channels, ..., time). mask: (batch, time), True at valid steps, or None for all;
        numbers 0 and 1, and sizes of 1, are accepted too.

    Raises:
        ValueError: The mask does not fit the input.

    Example:
        >>> mask_steps(torch.ones(1, 1, 3), torch.tensor([[True, True, False]])).tolist()
        [[[1.0, 1.0, 0.0]]]
    """
    if mask is None:
        return x
    # `torch.where`: a product would spread NaN and infinity of the padding, and `masked_fill`
    # changes the memory format.
    return torch.where(spread(valid_steps(mask, x), x), x, x.new_zeros(()))


def spread(valid: Tensor, x: Tensor) -> Tensor:
    """Reshape booleans (batch, time) to (batch, 1, ..., time), with as many dimensions as `x`."""
    return valid.view(valid.shape[0], *(1,) * (x.dim() - 2), valid.shape[1])


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` in the memory format of `x`, channels last or contiguous; the shapes are equal."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return y
    form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return y.contiguous(memory_format=form) if x.is_contiguous(memory_format=form) else y


# torch.fx records a call as one step: while tracing there are no values to check.
torch.fx.wrap("mask_steps")


class MaskedIdentity(nn.Identity):
    """Identity with the arguments of a masked norm; sets masked steps to zero.

    Example:
        >>> norm, mask = MaskedIdentity(), torch.tensor([[True, False]])
        >>> norm(torch.ones(1, 1, 2), mask).tolist()
        [[[1.0, 0.0]]]
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return mask_steps(x, mask)
