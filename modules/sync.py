"""Batch norm over the batches of all ranks, and the conversion of models to it."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import MaskedBatchNorm
from .normkinds import register_norm
from .ranknorm import has_peers, normalize_synchronized
from .torchnorm import BatchNormBase, check_dims, check_input_dim, check_norm
from .tracing import recordable


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks together (Peng et al. 2018, MegDet).

    On one process, and in evaluation, it is PyTorch's batch norm. Its state dict is that of
    `nn.BatchNorm*`, so that a checkpoint of several ranks loads on one. On the GPU it is
    `nn.SyncBatchNorm`, which refuses CPU tensors; this one works there too, over gloo. The batches
    of the ranks may differ in size, and one may be empty.

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

    # Not a subclass of `nn.SyncBatchNorm`: DistributedDataParallel refuses those on the CPU.
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
        check_input_dim(self.dims, input)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if self.training and has_peers(self.group):
            return normalize_synchronized(self, x, self.group)
        y: Tensor = super().forward(x)
        return y


def convert_sync_batchnorm(
    model: nn.Module, group: distributed.ProcessGroup | None = None
) -> nn.Module:
    """Let the batch norms of a model use the statistics of the batches of all ranks.

    Each `nn.BatchNorm1d`, `2d` and `3d` becomes a `SyncBatchNorm`, and each `MaskedBatchNorm` of
    kind `batch` one of kind `sync`. The layers themselves change, as lazy layers do: parameters,
    buffers, keys, hooks and references stay. Other kinds and subclasses are not changed.

    Args:
        model: The model, or a single norm; it is changed in place.
        group: The ranks whose batches belong together; all if None.

    Returns:
        The model.

    Raises:
        ValueError: The `forward` of a norm has been replaced, so that it would not be synchronized.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> type(convert_sync_batchnorm(model)[1]).__name__
        'SyncBatchNorm'
    """
    layers = [*model.modules()]
    # The second norm of a `SplitBatchNorm`.
    inside = {c for layer in layers if isinstance(layer, BatchNormBase) for c in layer.children()}
    plain = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    changed: list[Any] = [layer for layer in layers if type(layer) in plain]
    for layer in changed:
        if "forward" in vars(layer):
            raise ValueError(
                f"the forward of a {type(layer).__name__} has been replaced; convert before that"
            )
    for layer in changed:
        layer.dims, layer.group = plain[type(layer)], group
        layer.__class__ = SyncBatchNorm
    for layer in layers:
        if isinstance(layer, BatchNormBase) and layer.kind == "batch" and layer not in inside:
            masked: Any = layer
            masked.kind, masked.group = "sync", group
    return model


@register_norm("sync", needs_batch=True)
def _sync(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    if masked:
        return MaskedBatchNorm(features, dims, "sync", **options)
    return SyncBatchNorm(features, dims, **options)
