"""Batch renormalization: batch norm that trains with nearly the statistics it is evaluated with."""

from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import MaskedBatchNorm
from .checks import check_amount
from .normkinds import register_norm
from .renormalize import RenormLimits, renormalize
from .torchnorm import BatchNormBase, check_tracked, stock_batch_norm
from .tracing import recordable


class BatchRenorm(BatchNormBase):
    """Corrects the statistics of each batch towards the running ones (Ioffe 2017).

    The output is that of batch norm times r plus d, which lead from the batch's mean and standard
    deviation to the running ones, as far as the limits allow; no gradient passes through r and d.
    For small or dependent batches. It begins as batch norm: after `warmup` batches the limits grow
    linearly, to `r_max` at 8 times and `d_max` at 5 times `warmup`, the proportions of the paper.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        r_max: Upper limit of r, at least 1; the lower limit is its inverse.
        d_max: Limit of d, in standard deviations, at least 0.
        warmup: Number of batches with plain batch norm; in the paper 5,000 of about 160,000.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: True; this norm needs running statistics.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        (batch, channels, ...); the output has the same shape.

    Raises:
        ValueError: A limit is out of its range.

    Example:
        >>> BatchRenorm(8, dims=2)(torch.randn(4, 8, 5, 5)).shape
        torch.Size([4, 8, 5, 5])
    """

    kind = "renorm"

    def __init__(
        self,
        features: int,
        dims: int = 2,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 100,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_tracked("batch renorm", track_running_stats)
        check_amount("r_max", r_max)
        if r_max < 1.0:
            raise ValueError(f"r_max is at least 1, not {r_max!r}")
        check_amount("d_max", d_max)
        check_amount("warmup", warmup, whole=True)
        super().__init__(features, dims, momentum, eps, affine, device=device, dtype=dtype)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup = warmup

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return the limits of scale and shift at this batch."""
        assert self.num_batches_tracked is not None
        return RenormLimits(self.r_max, self.d_max, self.warmup).at(self.num_batches_tracked)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return stock_batch_norm(self, x)
        return renormalize(self, x, RenormLimits(self.r_max, self.d_max, self.warmup))

    def extra_repr(self) -> str:
        own = f"r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"
        return f"{super().extra_repr()}, {own}"  # type: ignore[no-untyped-call]


@register_norm("renorm", needs_batch=True)
def _renorm(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    if masked:
        return MaskedBatchNorm(features, dims, "renorm", **options)
    return BatchRenorm(features, dims, **options)
