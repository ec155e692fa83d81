"""Batch norm as PyTorch defines it: construction, input checks, running statistics, state dict."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .checks import check_amount

_BY_DIMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
# Prefixes of the keys that the norms of earlier releases saved: they held an `nn.BatchNorm*`.
OLDER_PREFIXES = ("norm.", "norm.norm.", "clean.norm.")


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
    features: int,
    dims: int,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    track_running_stats: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> _BatchNorm:
    """Make the `nn.BatchNorm*` for `features` channels followed by `dims` dimensions."""
    check_dims(dims)
    check_norm(features, momentum, eps)
    kind = _BY_DIMS[dims]
    return kind(features, eps, momentum, affine, track_running_stats, device, dtype)


def check_input_dim(dims: int | None, x: Tensor) -> None:
    """Raise the error of `nn.BatchNorm*` if an input has the wrong number of dimensions.

    Args:
        dims: Dimensions after the channels; any number if None, as in `nn.SyncBatchNorm`.
        x: The input.

    Raises:
        ValueError: It has another number of dimensions.
    """
    if dims is None:
        known, expected = x.dim() >= 2, "at least 2D"
    elif dims < 2:
        # `nn.BatchNorm1d` takes vectors and sequences.
        known, expected = x.dim() in (2, 3), "2D or 3D"
    else:
        known, expected = x.dim() == dims + 2, f"{dims + 2}D"
    if not known:
        raise ValueError(f"expected {expected} input (got {x.dim()}D input)")


def check_input(norm: _NormBase, x: Tensor) -> None:
    """Raise an error if a batch norm does not fit an input.

    Raises:
        ValueError: The number of dimensions is wrong, or a parameter or buffer of the norm has
            been replaced by one of another size.
        RuntimeError: The number of channels is wrong.
    """
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    features = x.shape[1]
    if features != norm.num_features:
        raise RuntimeError(
            f"running_mean should contain {features} elements not {norm.num_features}"
        )
    # Check before any statistic is updated.
    for name, one in (*norm._parameters.items(), *norm._buffers.items()):
        if one is not None and one.dim() == 1 and one.shape[0] != features:
            raise ValueError(f"{name} has {len(one)} features, the input has {features}")


def check_tracked(layer: str, track_running_stats: bool) -> None:
    """Raise an error if a layer that needs running statistics does not track them.

    Raises:
        ValueError: `track_running_stats` is false.
    """
    if not track_running_stats:
        raise ValueError(
            f"{layer} uses the running statistics in training too, and "
            f"track_running_stats={track_running_stats!r} keeps none"
        )


def adopt_older_keys(state_dict: dict[str, Any], prefix: str) -> None:
    """Rename the keys of a norm in a state dict of an earlier release to the present ones.

    Example:
        >>> state = {"bn1.norm.norm.weight": torch.ones(3)}
        >>> adopt_older_keys(state, "bn1.")
        >>> list(state)
        ['bn1.weight']
    """
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        for older in OLDER_PREFIXES:
            if prefix + older + name in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + older + name)


class BatchNormBase(_NormBase):
    """Base of our kinds of batch norm, with the parameters, buffers and keys of `nn.BatchNorm*`.

    It is not a `_BatchNorm`, because `nn.SyncBatchNorm.convert_sync_batchnorm` replaces each of
    those, and would turn a ghost norm, for example, into a plain one.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: Whether to keep running statistics.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Raises:
        ValueError: A value is out of its range.
    """

    dims: int | None
    kind = "batch"
    whole_batch = False
    """True while statistics are recomputed: the batch is then not split into parts."""

    def __init__(
        self,
        features: int,
        dims: int,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dims(dims)
        check_norm(features, momentum, eps)
        super().__init__(features, eps, momentum, affine, track_running_stats, device, dtype)
        self.dims = dims

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - As PyTorch calls it.
        check_input_dim(self.dims, input)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        adopt_older_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *options)


# Classes of batch norms for `isinstance`, PyTorch's and ours.
BATCH_NORMS = (_BatchNorm, BatchNormBase)


def stock_batch_norm(norm: _NormBase, x: Tensor) -> Tensor:
    """Call the forward of `nn.BatchNorm*` with the tensors of `norm`."""
    y: Tensor = _BatchNorm.forward(norm, x)  # type: ignore[arg-type]
    return y


def normalize_frozen(norm: BatchNormBase, x: Tensor) -> Tensor:
    """Normalize by the running statistics, in training too."""
    check_input(norm, x)
    n = norm
    return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)


@torch.no_grad()
def update_running(norm: _NormBase, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Move the running statistics of a batch norm towards those of a batch, as PyTorch does.

    Args:
        norm: The batch norm; without tracked statistics nothing changes.
        mean: Mean of each channel.
        variance: Variance of each channel, biased; the running one is unbiased.
        count: Number of values per channel in the batch.
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
