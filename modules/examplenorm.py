"""Norms over single examples, for comparison with batch norm: layer, RMS and group norm."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masks import in_format_of, mask_steps, spread, valid_steps
from .normkinds import register_norm
from .torchnorm import adopt_older_keys, check_norm
from .tracing import recordable


class ChannelNorm(nn.Module):
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) over the channels.

    Each position of a map is normalized separately, as in transformers and ConvNeXt (Liu et al.
    2022). Neither the batch nor the length of the padding has an effect.

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

    weight: nn.Parameter | None
    bias: nn.Parameter | None

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
        self.features = features
        self.kind = kind
        self.eps = eps
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        weight = nn.Parameter(torch.empty(features, **made)) if affine else None
        shifted = affine and kind == "layer"
        bias = nn.Parameter(torch.empty(features, **made)) if shifted else None
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        adopt_older_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *options)

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        last, shape = x.movedim(1, -1), (self.features,)
        if self.kind == "layer":
            y = F.layer_norm(last, shape, self.weight, self.bias, self.eps)
        else:
            y = F.rms_norm(last, shape, self.weight, self.eps)
        return mask_steps(y.movedim(-1, 1), mask)

    def extra_repr(self) -> str:
        return f"{self.features}, kind={self.kind}, eps={self.eps}"


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
    # A sequence without a valid step has count 0: avoid the division by zero.
    count = step.sum(dims, keepdim=True).clamp(min=1) * math.prod(grouped.shape[2:-1])
    # The last dimension of a vector is its channels, not time.
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


# A graph of torch.fx calls them as a whole: while tracing there are no values to check.
torch.fx.wrap("mask_steps")
torch.fx.wrap("group_norm_valid")


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) over the valid steps of each example.

    Args:
        features: Number of channels.
        groups: Number of groups; if None the largest divisor of `features`, at most the paper's
            32, that leaves at least two channels in a group.
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
        check_norm(features, None, eps)
        if groups is None:
            # A vector has one value per channel: a group of one channel would always be zero.
            most = max(1, min(32, features // 2))
            groups = max(g for g in range(1, most + 1) if features % g == 0)
        if isinstance(groups, bool) or groups < 1 or features % groups:
            raise ValueError(f"{features} features do not divide into groups={groups!r}")
        super().__init__(groups, features, eps, affine, device, dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        adopt_older_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *options)

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        return group_norm_valid(x, mask, self.num_groups, self.weight, self.bias, self.eps)


@register_norm("layer")
def _layer(features: int, dims: int, masked: bool, eps: float, affine: bool, **options: Any) -> Any:
    return ChannelNorm(features, "layer", eps, affine, options["device"], options["dtype"])


@register_norm("rms")
def _rms(features: int, dims: int, masked: bool, eps: float, affine: bool, **options: Any) -> Any:
    return ChannelNorm(features, "rms", eps, affine, options["device"], options["dtype"])


@register_norm("group")
def _group(features: int, dims: int, masked: bool, eps: float, affine: bool, **options: Any) -> Any:
    return MaskedGroupNorm(features, None, eps, affine, options["device"], options["dtype"])
