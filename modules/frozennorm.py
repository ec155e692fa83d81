"""Frozen batch norm: batch norm with constant statistics."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import MaskedBatchNorm
from .normkinds import register_norm
from .sync import SyncBatchNorm
from .torchnorm import BatchNormBase, check_tracked, normalize_frozen
from .tracing import recordable

# Dimensions after the channels, by the exact class: a subclass may do more than normalize.
DIMS = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: None}


class FrozenBatchNorm(BatchNormBase):
    """Batch norm with constant statistics, in training too.

    For fine-tuning with small batches (He et al. 2017, Mask R-CNN): `FrozenBatchNorm.of(norm)`.
    A new layer has mean 0 and variance 1, so that it only scales and shifts.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        momentum: Has no effect: the running average does not move.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: True; this norm needs running statistics.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        (batch, channels, ...); the output has the same shape.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> norm = nn.BatchNorm1d(4)
        >>> _ = norm(torch.randn(8, 4) + 3)
        >>> frozen, x = FrozenBatchNorm.of(norm), torch.randn(2, 4)
        >>> torch.equal(frozen.train()(x), norm.eval()(x))
        True
    """

    kind = "frozen"

    def __init__(
        self,
        features: int,
        dims: int = 2,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_tracked("frozen batch norm", track_running_stats)
        super().__init__(features, dims, momentum, eps, affine, device=device, dtype=dtype)

    @classmethod
    def of(cls, norm: _BatchNorm) -> Self:
        """Make a frozen copy of a trained batch norm; its scale and shift are frozen too.

        Args:
            norm: An `nn.BatchNorm*`, `nn.SyncBatchNorm` or `SyncBatchNorm`; it is not changed.

        Raises:
            ValueError: It is of another class, or has no running statistics.
        """
        if type(norm) not in (*DIMS, SyncBatchNorm):
            raise ValueError(f"a {type(norm).__name__} cannot be frozen")
        check_tracked("frozen batch norm", norm.running_mean is not None)
        frozen = cls(norm.num_features, affine=norm.affine, device="meta")
        frozen.dims = norm.dims if isinstance(norm, SyncBatchNorm) else DIMS[type(norm)]
        frozen.eps, frozen.momentum = norm.eps, norm.momentum
        for name, parameter in norm._parameters.items():
            copy = None if parameter is None else parameter.detach().clone()
            frozen.register_parameter(name, None if copy is None else nn.Parameter(copy, False))
        for name, buffer in norm._buffers.items():
            frozen.register_buffer(name, None if buffer is None else buffer.clone())
        return frozen.train(norm.training)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return normalize_frozen(self, x)


@register_norm("frozen")
def _frozen(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    if masked:
        return MaskedBatchNorm(features, dims, "frozen", **options)
    return FrozenBatchNorm(features, dims, **options)
