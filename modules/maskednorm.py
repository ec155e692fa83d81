"""Batch norm over the valid steps of padded sequences.

On the CPU the loops of kernels.c exclude padding in one pass. PyTorch's batch norm needs the valid
steps in a tensor of their own, gathered before it and scattered after it. Where a gather is
impossible, as in a compiled model, the statistics are sums over the masked values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase

from . import kernels
from .kernels import has_values, usable
from .masks import in_format_of, mask_steps
from .torchnorm import update_running

TOO_FEW = "batch norm in training needs more than one valid value a channel"


def one_pass(norm: _NormBase, x: Tensor) -> bool:
    """Whether `normalize_valid` can normalize `x`.

    It cannot if a parameter has another type than x, or one of them has a tangent.
    """
    if not usable("norm_forward", x):
        return False
    given = [one for one in (norm.weight, norm.bias) if one is not None]
    # Outside of a dual level no tensor has a tangent.
    dual = forward_ad._current_level >= 0 and any(map(_is_dual, (x, *given)))
    return not dual and all(one.dtype == x.dtype and usable("norm_forward", one) for one in given)


def _is_dual(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


class _Normalize(torch.autograd.Function):
    """The norm of x (batch, channels, ..., time), its mean and variance of each channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        y, mean, variance, count = kernels.norm_forward(x, mask, weight, bias, eps)
        ctx.save_for_backward(x, mask, weight, bias, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.count, ctx.eps = count, eps
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        x, mask, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled() or not usable("norm_backward", upstream):
            # A second derivative is wanted, or a batch of gradients.
            grads = _gradients(upstream, x, mask, weight, ctx.eps, ctx.count)
        else:
            grads = kernels.norm_backward(
                *(upstream.contiguous(), x, mask, weight, mean, variance, ctx.eps, ctx.count)
            )
        x_grad, weight_grad, bias_grad = grads
        return (
            x_grad,
            None,
            None if weight is None else weight_grad,
            None if bias is None else bias_grad,
            None,
        )


def _moments(x: Tensor, mask: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel, and x - mean, which is zero at padding."""
    dims = [0, *range(2, x.dim())]
    mean = mask_steps(x, mask).sum(dims) / count
    centred = mask_steps(x - _per_channel(mean, x), mask)
    # The rounding error of the mean.
    rest = centred.sum(dims) / count
    centred = mask_steps(centred - _per_channel(rest, x), mask)
    return mean + rest, centred.square().sum(dims) / count, centred


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def _gradients(
    upstream: Tensor, x: Tensor, mask: Tensor, weight: Tensor | None, eps: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias by differentiable operations."""
    dims = [0, *range(2, x.dim())]
    _, variance, centred = _moments(x, mask, count)
    scale = (variance + eps).rsqrt()
    upstream = mask_steps(upstream, mask)
    bias_grad = upstream.sum(dims)
    weight_grad = (upstream * centred).sum(dims) * scale
    slope = weight_grad * scale / count
    x_grad = upstream - _per_channel(bias_grad / count, x) - centred * _per_channel(slope, x)
    factor = scale if weight is None else scale * weight
    return mask_steps(x_grad * _per_channel(factor, x), mask), weight_grad, bias_grad


def normalize_valid(norm: _NormBase, x: Tensor, mask: Tensor) -> Tensor:
    """Normalize by the statistics of the valid steps; the other steps become zero.

    Args:
        norm: A batch norm; in training its running statistics are updated.
        x: (batch, channels, ..., time), not empty, for which `one_pass` is true.
        mask: Booleans (batch, time), True at valid steps.

    Raises:
        ValueError: There are fewer than two valid values a channel.

    Example:
        >>> norm, mask = torch.nn.BatchNorm1d(2), torch.tensor([[True, True, False]])
        >>> x = torch.tensor([[[1.0, 3.0, 9.0]] * 2])
        >>> normalize_valid(norm, x, mask)[0, 0].round().tolist()
        [-1.0, 1.0, 0.0]
    """
    weight, bias = (one if one is None else one.contiguous() for one in (norm.weight, norm.bias))
    y, mean, variance, count = _Normalize.apply(
        x.contiguous(), mask.contiguous(), weight, bias, norm.eps
    )
    _check_count(count)
    _update_statistics(norm, mean, variance, count)
    return in_format_of(x, y)


def normalize_masked(
    norm: _NormBase,
    x: Tensor,
    mask: Tensor,
    affine: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Do the same as `normalize_valid` by operations that PyTorch can record, for any x.

    Args:
        norm: A batch norm; in training its running statistics are updated.
        x: (batch, channels, ..., time), not empty.
        mask: Booleans (batch, time), True at valid steps.
        affine: Computes scale and shift from mean and variance; those of `norm` if None.

    Raises:
        ValueError: There are fewer than two valid values a channel.

    Example:
        >>> norm, mask = torch.nn.BatchNorm1d(2), torch.tensor([[True, True, False]])
        >>> x = torch.tensor([[[1.0, 3.0, 9.0]] * 2])
        >>> normalize_masked(norm, x, mask)[0, 0].round().tolist()
        [-1.0, 1.0, 0.0]
    """
    valid_count = mask.sum() * (x.numel() // (x.shape[1] * mask.numel()))
    if has_values(mask):
        _check_count(int(valid_count))
    elif not mask.is_meta:
        # In a compiled model: checked at each call.
        torch._assert_async(valid_count > 1, TOO_FEW)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = valid_count.to(wide.dtype)
    mean, variance, centred = _moments(wide, mask, count)
    y = centred * _per_channel((variance + norm.eps).rsqrt(), x)
    weight, bias = (norm.weight, norm.bias) if affine is None else affine(mean, variance)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = mask_steps(y + _per_channel(bias, x), mask)
    _update_statistics(norm, mean, variance, count)
    return in_format_of(x, y.to(x.dtype))


def _update_statistics(
    norm: _NormBase, mean: Tensor, variance: Tensor, count: Tensor | int
) -> None:
    if norm.training and norm.track_running_stats:
        update_running(norm, mean, variance, count)


def _check_count(count: int) -> None:
    if count < 2:
        raise ValueError(f"{TOO_FEW}, not {count}")


def gather_valid(x: Tensor, valid: Tensor, dims: int) -> Tensor:
    """Return the valid steps of x (batch, channels, ..., time) as those of a single example.

    The values of a channel are adjacent in memory, so that PyTorch sums them in double precision.
    If channels were adjacent it would sum in single precision, which for a mean of 1000 and a
    million values is wrong in the first digit.

    Args:
        x: The values.
        valid: Booleans (batch, time).
        dims: Number of dimensions after the channels that the result has, at least one.

    Example:
        >>> x, valid = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[True, False, True]])
        >>> gather_valid(x, valid, 1).tolist()
        [[[1.0, 3.0]]]
    """
    flat = x.transpose(0, 1)[:, _expand_steps(valid, x)]
    return flat.view(1, *flat.shape, *(1,) * (dims - 1))


def scatter_valid(normed: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """Put the result for `gather_valid(x, ...)` back to its steps; the others become zero."""
    y = torch.zeros_like(x, dtype=normed.dtype)
    y.transpose(0, 1).masked_scatter_(_expand_steps(valid, x), normed)
    return y


def _expand_steps(valid: Tensor, x: Tensor) -> Tensor:
    """Expand booleans (batch, time) to the shape of x without its channels."""
    inner = (1,) * (x.dim() - 3)
    # A vector is a single step.
    shape = (valid.shape[0], *inner, valid.shape[1]) if x.dim() > 2 else valid.shape[:1]
    return valid.reshape(shape).expand(x.shape[0], *x.shape[2:])
