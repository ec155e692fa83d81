"""Norms of each example by itself, for comparison with batch norm: layer, RMS and group norm."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from modules.masks import in_format_of, mask_steps, spread, valid_steps
from modules.torchnorm import AroundNorm, check_norm
from modules.tracing import recordable


class ChannelNorm(AroundNorm):
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) over the channels.

    Each position of a map is normalized by itself, as transformers do it and ConvNeXt (Liu et al.
    2022): nothing depends on the batch, nor on how long a sequence is padded.

    Args:
        features: Number of channels.
        kind: `layer` subtracts the mean and divides by the standard deviation, `rms` divides by the
            root mean square.
        eps: Added to the variance.
        affine: Whether to learn a scale, and with `layer` a shift.
        device: Where the parameters are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ...). mask: (batch, time), True at valid steps, or None for all. The
        output has the shape of x; what the mask leaves out is zero.

    Example:
        >>> y = ChannelNorm(8)(torch.randn(2, 8, 5))
        >>> y.mean(dim=1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(
        self,
        features: int,
        kind: Literal["layer", "rms"] = "layer",
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_norm(features, None, eps)
        if kind not in ("layer", "rms"):
            raise ValueError(f"kind is 'layer' or 'rms', not {kind!r}")
        norm = nn.LayerNorm if kind == "layer" else nn.RMSNorm
        self.norm = norm(features, eps=eps, elementwise_affine=affine, device=device, dtype=dtype)

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return mask_steps(self.norm(x.movedim(1, -1)).movedim(-1, 1), mask)


def group_norm_valid(
    x: Tensor,
    mask: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize groups of channels over the valid steps of each example. See `MaskedGroupNorm`."""
    valid = valid_steps(mask, x)
    wide = mask_steps(x, valid).to(torch.promote_types(x.dtype, torch.float32))
    # (batch, groups, channels of a group, ..., time)
    grouped = wide.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    dims = list(range(2, grouped.dim()))
    step = spread(valid, grouped)
    # A sequence without a valid step is all zeros, and shall not divide by their number.
    count = step.sum(dims, keepdim=True).clamp(min=1) * math.prod(grouped.shape[2:-1])
    # A vector's channels are no steps.
    count = count * grouped.shape[-1] if x.dim() == 2 else count
    zero = grouped.new_zeros(())
    centred = torch.where(step, grouped - grouped.sum(dims, keepdim=True) / count, zero)
    variance = centred.square().sum(dims, keepdim=True) / count
    normed = (centred * (variance + eps).rsqrt()).flatten(1, 2)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    if weight is not None:
        normed = normed * weight.view(shape)
    if bias is not None:
        normed = normed + bias.view(shape)
    return in_format_of(x, mask_steps(normed.to(x.dtype), valid))


# A graph of a single layer calls them as a whole: a trace has no values to check.
torch.fx.wrap("mask_steps")
torch.fx.wrap("group_norm_valid")


class MaskedGroupNorm(AroundNorm):
    """Group norm (Wu & He 2018) over the valid steps of each example.

    Args:
        features: Number of channels.
        groups: Number of groups; if None the largest divisor of `features` up to the paper's 32
            that leaves at least two channels to a group.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        device: Where the parameters are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ...). mask: (batch, time), True at valid steps, or None for all. The
        output has the shape of x; what the mask leaves out is zero.

    Raises:
        ValueError: `features` is not a multiple of `groups`.

    Example:
        >>> MaskedGroupNorm(8, groups=2)(torch.randn(2, 8, 5)).shape
        torch.Size([2, 8, 5])
    """

    def __init__(
        self,
        features: int,
        groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_norm(features, None, eps)
        if groups is None:
            # The one value of a vector's channel, normalized by itself, would be zero.
            most = max(1, min(32, features // 2))
            groups = max(g for g in range(1, most + 1) if features % g == 0)
        if isinstance(groups, bool) or groups < 1 or features % groups:
            raise ValueError(f"{features} features do not divide into groups={groups!r}")
        self.norm = nn.GroupNorm(groups, features, eps, affine, device, dtype)

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        norm = self.norm
        if mask is None:
            y: Tensor = norm(x)
            return y
        return group_norm_valid(x, mask, norm.num_groups, norm.weight, norm.bias, norm.eps)


class MaskedIdentity(nn.Identity):
    """Stands where a masked norm would: normalizes nothing, sets the masked steps to zero."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return mask_steps(x, mask)
