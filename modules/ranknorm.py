"""The computation of batch norm over the batches of all ranks, on the CPU and on the GPU."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncBatchNorm
from torch.nn.modules.batchnorm import _NormBase

from .torchnorm import check_input, update_running


class _SyncBatchNorm(torch.autograd.Function):
    """Normalizes by the statistics of all ranks; the backward pass sums over all ranks too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: distributed.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        if wide.numel():
            variance, mean = torch.var_mean(wide, dims, correction=0)
        else:
            variance, mean = wide.new_zeros(2, wide.shape[1])
        local = torch.cat((count, mean, variance))
        ranks = [torch.empty_like(local) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(ranks, local, group)
        every, channels = torch.stack(ranks), wide.shape[1]
        counts, means, variances = (
            every[:, :1],
            every[:, 1 : channels + 1],
            every[:, channels + 1 :],
        )
        # Chan, Golub & LeVeque (1979): a sum of squares would lose digits.
        total = counts.sum()
        if total < 2:
            raise ValueError(
                "batch norm needs more than one value a channel in training, over all ranks; "
                f"input of this rank: {tuple(x.shape)}"
            )
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        scale = (variance + eps).rsqrt()
        shape = (1, -1, *(1,) * (x.dim() - 2))
        normed = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normed, weight, scale, total)
        ctx.group = group
        ctx.dims = dims
        ctx.shape = shape
        y = normed if weight is None else normed * weight.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> Any:
        normed, weight, scale, total = ctx.saved_tensors
        upstream_wide = upstream.to(normed.dtype)
        bias_grad = upstream_wide.sum(ctx.dims)
        weight_grad = (upstream_wide * normed).sum(ctx.dims)
        sums = torch.stack((bias_grad, weight_grad))
        distributed.all_reduce(sums, group=ctx.group)
        means = (sums / total).view(2, *ctx.shape)
        x_grad = upstream_wide - means[0] - normed * means[1]
        x_grad = x_grad * (scale if weight is None else scale * weight).view(ctx.shape)
        return (
            x_grad.to(upstream.dtype),
            None if weight is None else weight_grad,
            bias_grad if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def has_peers(group: distributed.ProcessGroup | None) -> bool:
    """Whether a distributed run has several ranks in this group."""
    running = distributed.is_available() and distributed.is_initialized()
    return running and distributed.get_world_size(group) > 1


def normalize_synchronized(
    norm: _NormBase, x: Tensor, group: distributed.ProcessGroup | None
) -> Tensor:
    """Normalize a batch in training by the statistics of all ranks, and update the running ones.

    Args:
        norm: The batch norm.
        x: (batch, channels, ...), the batch of this rank.
        group: The ranks; all if None.

    Raises:
        ValueError: All ranks together have a single value a channel.
    """
    check_input(norm, x)
    if x.is_cuda:
        return _on_gpu(norm, x, group)
    y, mean, variance, count = _SyncBatchNorm.apply(x, norm.weight, norm.bias, norm.eps, group)
    update_running(norm, mean, variance, count)
    found: Tensor = y
    return found


def _on_gpu(norm: _NormBase, x: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Call the autograd function of `nn.SyncBatchNorm` for a batch norm."""
    weight = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            weight = 1.0 / float(norm.num_batches_tracked)
    y: Tensor = TorchSyncBatchNorm.apply(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        weight,
        group or distributed.group.WORLD,
        distributed.get_world_size(group),
    )
    return y
