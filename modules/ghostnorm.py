"""Ghost batch norm: each part of a batch is normalized separately."""

from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import MaskedBatchNorm
from .checks import check_amount
from .masks import mask_steps, spread, valid_steps
from .normkinds import register_norm
from .torchnorm import BatchNormBase, check_input
from .tracing import recordable


def normalize_parts(norm: BatchNormBase, x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Normalize each part of a batch separately, without a loop over the parts.

    For compiled models: one graph is valid for batches of every size.

    Args:
        norm: The norm whose parameters and statistics are used.
        x: (batch, channels, ...).
        mask: Booleans (batch, time), True at valid steps, or None for all.
        size: Smallest number of examples in a part; the parts are those of `Tensor.tensor_split`.
    """
    check_input(norm, x)
    batch, channels = x.shape[:2]
    # Symbols, if the batch size is dynamic.
    parts: Any = torch.sym_max(1, batch // size)
    # If the batch does not divide evenly, the first parts have one example more.
    least, longer = batch // parts, batch % parts
    index = torch.arange(batch, device=x.device)
    after = index - longer * (least + 1)
    part = torch.where(after < 0, index // (least + 1), longer + after // least)
    wide = mask_steps(x, mask).to(torch.promote_types(x.dtype, torch.float32))
    dims = list(range(2, x.dim()))
    if 1 in (size * x.shape[2:].numel(), batch * x.shape[2:].numel()):
        raise ValueError(f"batch norm needs more than one value a channel: {tuple(x.shape)}")
    ones = wide.new_ones(()) if mask is None else spread(mask, x).to(wide.dtype)
    values = ones.expand(batch, 1, *x.shape[2:])

    def per_part(values: Tensor) -> Tensor:
        sums = values.sum(dims) if dims else values
        # One empty row more: a size that may be 1 would need a separate graph.
        return sums.new_zeros(parts + 1, sums.shape[1]).index_add(0, part, sums)

    def per_example(found: Tensor) -> Tensor:
        return found[part].view(batch, -1, *(1,) * len(dims))

    count = per_part(values).clamp(min=1.0)
    mean = per_part(wide) / count
    centred = mask_steps(wide - per_example(mean), mask)
    variance = per_part(centred.square()) / count
    shape = (1, channels, *(1,) * len(dims))
    y = centred * per_example((variance + norm.eps).rsqrt())
    if norm.weight is not None:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    _update_running(
        norm, mean.detach(), (variance * count / (count - 1).clamp(min=1.0)).detach(), parts
    )
    return mask_steps(y.to(x.dtype), mask)


@torch.no_grad()
def _update_running(norm: BatchNormBase, mean: Tensor, variance: Tensor, parts: int) -> None:
    """Update the running statistics by each part in turn, as one weighted sum."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(parts)
    # Number of parts after each row; the last row is the empty one.
    later = torch.arange(parts, -1, -1, device=mean.device).to(mean.dtype) - 1
    if norm.momentum is None:
        weights = (1.0 / norm.num_batches_tracked.to(mean.dtype)).expand_as(later)
    else:
        weights = norm.momentum * torch.pow(1.0 - norm.momentum, later)
    weights = weights.masked_fill(later < 0, 0.0).to(mean.dtype)
    for running, found in ((norm.running_mean, mean), (norm.running_var, variance)):
        wide = running.to(found.dtype)
        moved = ((found - wide) * weights[:, None]).sum(0)
        running.copy_(wide + moved)


class GhostBatchNorm(MaskedBatchNorm):
    """Normalizes each part of a batch separately (Hoffer et al. 2017).

    In a large batch the statistics keep the noise of a small one, which regularizes. Each part
    updates the running statistics, as in the paper's algorithm 1.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        size: Smallest number of examples in a part, at least 1; a batch is cut evenly.
        momentum: Weight of a part in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ...). mask: (batch, time), True at valid steps, or None for all. The
        output has the shape of x.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> GhostBatchNorm(8, dims=2, size=16)(torch.randn(64, 8, 5, 5)).shape
        torch.Size([64, 8, 5, 5])
    """

    def __init__(
        self,
        features: int,
        dims: int = 2,
        size: int = 32,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_amount("size", size, whole=True)
        if size < 1:
            raise ValueError(f"size is a whole number of at least 1, not {size!r}")
        super().__init__(
            features, dims, "batch", momentum, eps, affine, track_running_stats, device, dtype
        )
        self.kind = "ghost"
        self.size = size

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training or self.whole_batch:
            return super().forward(x, mask)
        mask = None if mask is None else valid_steps(mask, x)
        if torch.compiler.is_compiling():
            return normalize_parts(self, x, mask, self.size)
        parts = max(1, len(x) // self.size)
        if parts == 1:
            return super().forward(x, mask)
        masks = [None] * parts if mask is None else mask.tensor_split(parts)
        pairs = zip(x.tensor_split(parts), masks, strict=True)
        return torch.cat([MaskedBatchNorm.forward(self, part, valid) for part, valid in pairs])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, size={self.size}"


@register_norm("ghost", needs_batch=True)
def _ghost(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    return GhostBatchNorm(features, dims, ghost_size, **options)
