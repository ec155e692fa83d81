"""PyTorch's own batch norms: making one, and moving its running statistics."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modules.dropout import check_amount

_BY_DIMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def check_dims(dims: int) -> None:
    """Raise an error that names `dims` if there is no batch norm for so many dimensions.

    Raises:
        ValueError: `dims` is not 0, 1, 2 or 3.
    """
    if isinstance(dims, bool) or dims not in _BY_DIMS:
        raise ValueError(f"dims is one of 0, 1, 2 and 3, not {dims!r}")


def check_norm(features: int, momentum: float | None, eps: float) -> None:
    """Raise an error that names the value if there is no norm with such options.

    Raises:
        ValueError: A value is out of its range.
    """
    check_amount("features", features, whole=True)
    if features < 1:
        raise ValueError(f"features is at least 1, not {features!r}")
    check_amount("eps", eps)
    if momentum is not None:
        check_amount("momentum", momentum)
        if momentum > 1.0:
            raise ValueError(f"momentum is in [0, 1] or None, not {momentum!r}")


def plain_batch_norm(
    features: int, dims: int, momentum: float | None = 0.1, eps: float = 1e-5, affine: bool = True
) -> _BatchNorm:
    """Make the `nn.BatchNorm*` for `features` channels followed by `dims` dimensions."""
    check_dims(dims)
    check_norm(features, momentum, eps)
    return _BY_DIMS[dims](features, momentum=momentum, eps=eps, affine=affine)


@torch.no_grad()
def update_running(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Move the running statistics of a batch norm towards those of a batch, as PyTorch does.

    Args:
        norm: The batch norm; one that tracks no statistics stays as it is.
        mean: Mean of each channel.
        variance: Variance of each channel, biased; the running one is unbiased.
        count: Number of values a channel that they are of.
    """
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight: Tensor | float = norm.momentum if norm.momentum is not None else 0.0
    if norm.momentum is None:
        weight = 1.0 / norm.num_batches_tracked.to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), weight)
