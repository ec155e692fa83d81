"""Batch norm over the batches of all ranks, on the CPU as on the GPU."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from modules.torchnorm import check_dims, check_input, check_norm, update_running
from modules.tracing import recordable


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
        # Chan, Golub & LeVeque (1979): stable, where a sum of squares would cancel.
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


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks together (Peng et al. 2018, MegDet).

    Without a distributed run, and in evaluation, it is the batch norm of PyTorch; its state dict is
    that of `nn.BatchNorm*` always, so that a checkpoint of several ranks opens on one. On the GPU
    it is `nn.SyncBatchNorm`, which refuses tensors on the CPU; this one works there too, over gloo.
    The batches of the ranks may differ in size, and one may be empty.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        group: The ranks whose batches belong together; all if None.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        (batch, channels, ...); the output has the same shape.

    Raises:
        ValueError: All ranks together have a single value a channel in training.

    Example:
        >>> SyncBatchNorm(8, dims=2)(torch.randn(4, 8, 5, 5)).shape
        torch.Size([4, 8, 5, 5])
    """

    # A batch norm itself, and not `nn.SyncBatchNorm`: the data-parallel wrapper refuses a model on
    # the CPU that holds that one.
    def __init__(
        self,
        features: int,
        dims: int = 2,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        group: distributed.ProcessGroup | None = None,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dims(dims)
        check_norm(features, momentum, eps)
        super().__init__(features, eps, momentum, affine, track_running_stats, device, dtype)
        self.dims = dims
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - As PyTorch calls it.
        # `nn.BatchNorm1d` takes vectors and sequences.
        known = (2, 3) if self.dims < 2 else (self.dims + 2,)
        if input.dim() not in known:
            expected = " or ".join(f"{dims}D" for dims in known)
            raise ValueError(f"expected {expected} input (got {input.dim()}D input)")

    @property
    def together(self) -> bool:
        """Whether there are other ranks whose batches belong to this one's."""
        running = distributed.is_available() and distributed.is_initialized()
        return running and distributed.get_world_size(self.group) > 1

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.together:
            y: Tensor = super().forward(x)
            return y
        check_input(self, x)
        if x.is_cuda:
            return _on_gpu(self, x, self.group)
        y, mean, variance, count = _SyncBatchNorm.apply(
            x, self.weight, self.bias, self.eps, self.group
        )
        update_running(self, mean, variance, count)
        return y


def _on_gpu(norm: _BatchNorm, x: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Call what `nn.SyncBatchNorm` calls, with the parameters and buffers of a batch norm."""
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
