"""PyTorch's own batch norms: making one, checking its input, moving its running statistics."""

from typing import Any

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


def check_input(norm: _BatchNorm, x: Tensor) -> None:
    """Refuse an input of a batch norm that the norm itself would refuse.

    Raises:
        ValueError: It has the wrong number of dimensions.
        RuntimeError: It has the wrong number of channels.
    """
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    if x.shape[1] != norm.num_features:
        raise RuntimeError(
            f"running_mean should contain {x.shape[1]} elements not {norm.num_features}"
        )


def check_tracked(layer: str, track_running_stats: bool) -> None:
    """Refuse to go without the running statistics that a layer is made of.

    Raises:
        ValueError: They are not to be tracked.
    """
    if not track_running_stats:
        raise ValueError(
            f"{layer} uses the running statistics in training too, and "
            f"track_running_stats={track_running_stats!r} keeps none"
        )


class AroundNorm(nn.Module):
    """A layer that holds one or more norms and stands where a norm of PyTorch would.

    It opens the state dict of that norm, and resets as that norm does.
    """

    def reset_parameters(self) -> None:
        """Set scale, shift and running statistics to their first values."""
        for norm in self.children():
            norm.reset_parameters()  # type: ignore[operator]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        # The norms inside are loaded after this, from what stands in `state_dict` then.
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if prefix + name in state_dict:
                value = state_dict.pop(prefix + name)
                for place, (child, _) in enumerate(self.named_children()):
                    # With assign=True the tensor itself becomes the parameter.
                    state_dict[f"{prefix}{child}.{name}"] = value if not place else value.clone()
        super()._load_from_state_dict(state_dict, prefix, *options)


class AroundBatchNorm(AroundNorm):
    """A layer around one or more batch norms."""

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0 and variance 1."""
        for norm in self.children():
            norm.reset_running_stats()  # type: ignore[operator]


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
