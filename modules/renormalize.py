"""The computation of batch renormalization (Ioffe 2017)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .torchnorm import BatchNormBase, check_input, stock_batch_norm, update_running


class RenormLimits(NamedTuple):
    """How far the statistics of a batch may be corrected; see `BatchRenorm`."""

    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 100

    def at(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the limits of scale and shift after `seen` batches."""
        # On the device: reading the count would synchronize with it at each step.
        past = (seen - self.warmup) / max(1, self.warmup)
        r = 1.0 + (self.r_max - 1.0) * (past / 7.0).clamp(0.0, 1.0)
        return r, self.d_max * (past / 4.0).clamp(0.0, 1.0)


def corrected_affine(
    norm: BatchNormBase, mean: Tensor, variance: Tensor, limits: RenormLimits
) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that include the correction by r and d.

    Args:
        norm: The norm; it has running statistics.
        mean: Mean of each channel of the batch.
        variance: Its biased variance.
        limits: Limits of r and d.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        std, running_std = (v.add(norm.eps).sqrt() for v in (variance, norm.running_var))
        r_limit, d_limit = limits.at(norm.num_batches_tracked)
        r = torch.clamp(std / running_std, 1.0 / r_limit, r_limit)
        d = torch.clamp((mean - norm.running_mean) / running_std, -d_limit, d_limit)
    if not norm.affine:
        return r, d
    return norm.weight * r, norm.weight * d + norm.bias


def renormalize(norm: BatchNormBase, x: Tensor, limits: RenormLimits) -> Tensor:
    """Normalize a batch in training, and update the running statistics of `norm`."""
    check_input(norm, x)
    assert norm.running_mean is not None
    count = x.numel() // x.shape[1]
    if count == 0:
        # An empty batch leaves the statistics as they are.
        return stock_batch_norm(norm, x)
    if count == 1:
        raise ValueError(f"batch norm needs more than one value a channel: {tuple(x.shape)}")
    with torch.no_grad():
        wide = x.to(norm.running_mean.dtype)
        variance, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    weight, bias = corrected_affine(norm, mean, variance, limits)
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)
    update_running(norm, mean, variance, count)
    return y
