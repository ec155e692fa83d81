"""Batch renormalization: batch norm that trains with nearly the statistics it is evaluated with."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from modules.dropout import check_amount
from modules.torchnorm import (
    AroundBatchNorm,
    check_input,
    check_tracked,
    plain_batch_norm,
    update_running,
)
from modules.tracing import recordable


def _limits(norm: _BatchNorm, r_max: float, d_max: float, warmup: int) -> tuple[Tensor, Tensor]:
    assert norm.num_batches_tracked is not None
    # On the device: to read the count would make each step wait for it.
    past = (norm.num_batches_tracked - warmup) / max(1, warmup)
    r = 1.0 + (r_max - 1.0) * (past / 7.0).clamp(0.0, 1.0)
    return r, d_max * (past / 4.0).clamp(0.0, 1.0)


def _renormalize(norm: _BatchNorm, x: Tensor, r_max: float, d_max: float, warmup: int) -> Tensor:
    """Normalize a batch in training, and move the running statistics of `norm`."""
    check_input(norm, x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    count = x.numel() // x.shape[1]
    if count == 0:
        # An empty batch leaves the statistics alone.
        return cast(Tensor, norm(x))
    if count == 1:
        raise ValueError(f"batch norm needs more than one value a channel: {tuple(x.shape)}")
    with torch.no_grad():
        wide = x.to(norm.running_mean.dtype)
        variance, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
        std, running_std = (v.add(norm.eps).sqrt() for v in (variance, norm.running_var))
        r_limit, d_limit = _limits(norm, r_max, d_max, warmup)
        r = torch.clamp(std / running_std, 1.0 / r_limit, r_limit)
        d = torch.clamp((mean - norm.running_mean) / running_std, -d_limit, d_limit)
    weight = r if norm.weight is None else norm.weight * r
    bias = d if norm.weight is None else norm.weight * d + norm.bias
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)
    update_running(norm, mean, variance, count)
    return y


class BatchRenorm(AroundBatchNorm):
    """Corrects the statistics of each batch towards the running ones (Ioffe 2017).

    The output is that of batch norm times r plus d, which lead from the batch's mean and standard
    deviation to the running ones, as far as the limits allow; no gradient passes through r and d.
    For small or dependent batches. It begins as batch norm: after `warmup` batches the limits grow
    linearly, to `r_max` at 8 and to `d_max` at 5 times as many, the proportions of the paper.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        r_max: Limit of the scale, and its inverse the other one; at least 1.
        d_max: Limit of the shift, in standard deviations.
        warmup: Number of batches with plain batch norm; 5,000 in the paper, of 160,000 or so.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: True: this norm is made of its running statistics.
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
        super().__init__()
        check_tracked("batch renorm", track_running_stats)
        check_amount("r_max", r_max)
        if r_max < 1.0:
            raise ValueError(f"r_max is at least 1, not {r_max!r}")
        check_amount("d_max", d_max)
        check_amount("warmup", warmup, whole=True)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup = warmup
        self.norm = plain_batch_norm(
            features, dims, momentum, eps, affine, device=device, dtype=dtype
        )

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return the limits of scale and shift at this batch."""
        return _limits(self.norm, self.r_max, self.d_max, self.warmup)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, self.norm(x))
        return _renormalize(self.norm, x, self.r_max, self.d_max, self.warmup)

    def extra_repr(self) -> str:
        return f"r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"
