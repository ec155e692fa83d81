"""Frozen batch norm: batch norm whose statistics no batch moves."""

from copy import deepcopy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from modules.sync import SyncBatchNorm
from modules.torchnorm import AroundBatchNorm, check_input, check_tracked, plain_batch_norm
from modules.tracing import recordable

# Subclasses of them may do more than normalize.
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)


class FrozenBatchNorm(AroundBatchNorm):
    """Batch norm whose statistics stay as they are, in training too.

    For fine-tuning with small batches (He et al. 2017, Mask R-CNN): `FrozenBatchNorm.of(norm)`.
    Made anew it has mean 0 and variance 1, and is batch norm's scale and shift alone.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        momentum: Of the running average, which does not move.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: True: this norm is made of its running statistics.
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

    norm: _BatchNorm

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
        super().__init__()
        check_tracked("frozen batch norm", track_running_stats)
        self.norm = plain_batch_norm(
            features, dims, momentum, eps, affine, device=device, dtype=dtype
        )

    @classmethod
    def of(cls, norm: _BatchNorm) -> Self:
        """Make a frozen copy of a trained batch norm; scale and shift are frozen too.

        Args:
            norm: An `nn.BatchNorm*`, `nn.SyncBatchNorm` or `SyncBatchNorm`, which stays as it is.

        Raises:
            ValueError: It is of another class, or has no running statistics.
        """
        if type(norm) not in KINDS:
            raise ValueError(f"{type(norm).__name__} is no batch norm that can be frozen")
        check_tracked("frozen batch norm", norm.running_mean is not None)
        frozen = cls(norm.num_features, affine=norm.affine, device="meta")
        frozen.norm = deepcopy(norm).requires_grad_(False)
        return frozen.train(norm.training)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        check_input(n, x)
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
