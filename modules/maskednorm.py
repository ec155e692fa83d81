"""Batch norm over the valid steps of padded sequences, on the CPU in one pass of its own.

The loops of kernels.c leave padding out as they go; PyTorch's batch norm needs the valid steps in
a tensor of their own, gathered before it and scattered after it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from modules.channelnorm import mask_steps
from modules.kernels import kernel, usable
from modules.torchnorm import update_running


def one_pass(norm: _BatchNorm, x: Tensor) -> bool:
    """Whether `normalize_valid` can take the place of a call of `norm`.

    Not where somebody listens to that call, nor where parameters are of another type than x.
    """
    listened = norm._forward_hooks or norm._forward_pre_hooks
    same = norm.weight is None or norm.weight.dtype == x.dtype
    derived = forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    return same and not listened and not derived and usable("norm_forward", x)


class _Normalize(torch.autograd.Function):
    """The norm of x (batch, channels, ..., time), its mean and variance of each channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y = torch.empty_like(x)
        mean, variance = x.new_empty(2, x.shape[1])
        sizes = (*x.shape[:2], x[0, 0].numel() // x.shape[-1], x.shape[-1], count)
        kernel("norm_forward", x.dtype)(
            *map(_address, (x, mask, weight, bias, y, mean, variance)),
            *(*sizes, eps, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, mask, weight, bias, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.sizes, ctx.eps = sizes, eps
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> Any:
        x, mask, weight, bias, mean, variance = ctx.saved_tensors
        upstream = upstream.contiguous()
        if torch.is_grad_enabled():
            # Its own derivative is asked for: by operations that have one.
            inputs = [one for one in (x, weight, bias) if one is not None and one.requires_grad]
            y = _by_operations(x, mask, weight, bias, ctx.eps, ctx.sizes[-1])
            found = iter(torch.autograd.grad(y, inputs, upstream, create_graph=True))
            wanted = (one is not None and one.requires_grad for one in (x, weight, bias))
            x_grad, weight_grad, bias_grad = (next(found) if want else None for want in wanted)
            return x_grad, None, weight_grad, bias_grad, None, None
        x_grad = torch.empty_like(x)
        weight_grad, bias_grad = torch.empty_like(mean), torch.empty_like(mean)
        kernel("norm_backward", x.dtype)(
            *map(_address, (upstream, x, mask, weight, mean, variance)),
            *map(_address, (x_grad, weight_grad, bias_grad)),
            *(*ctx.sizes, ctx.eps, torch.get_num_threads()),
        )
        if weight is None:
            return x_grad, None, None, None, None, None
        return x_grad, None, weight_grad, bias_grad, None, None


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _by_operations(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
) -> Tensor:
    """Do what the kernel does, as operations that autograd can derive twice."""
    dims = [0, *range(2, x.dim())]
    shape = (1, -1, *(1,) * (x.dim() - 2))
    mean = mask_steps(x, mask).sum(dims) / count
    away = mask_steps(x - mean.view(shape), mask)
    y = away * (away.square().sum(dims) / count + eps).rsqrt().view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return mask_steps(y, mask)


def normalize_valid(norm: _BatchNorm, x: Tensor, mask: Tensor) -> Tensor:
    """Normalize as `norm` does in training, over the valid steps; the others become zero.

    Args:
        norm: Of the batch of this process. Its running statistics move.
        x: (batch, channels, ..., time), float32 or float64, on the CPU.
        mask: (batch, time), True at valid steps.

    Raises:
        ValueError: There are fewer than two valid values a channel.

    Example:
        >>> norm, mask = torch.nn.BatchNorm1d(2), torch.tensor([[True, True, False]])
        >>> x = torch.tensor([[[1.0, 3.0, 9.0]] * 2])
        >>> normalize_valid(norm, x, mask)[0, 0].round().tolist()
        [-1.0, 1.0, 0.0]
    """
    count = int(mask.sum()) * (x[0, 0].numel() // x.shape[-1])
    if count < 2:
        raise ValueError(
            f"batch norm in training needs more than one valid value a channel, not {count}"
        )
    y, mean, variance = _Normalize.apply(
        x, mask.contiguous(), norm.weight, norm.bias, norm.eps, count
    )
    update_running(norm, mean, variance, count)
    typed: Tensor = y
    return typed
