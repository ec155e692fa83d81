"""Batch normalization (Ioffe & Szegedy 2015), also over the valid steps of padded sequences."""

from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn

from .kernels import has_values
from .maskednorm import (
    gather_valid,
    normalize_masked,
    normalize_valid,
    one_pass,
    scatter_valid,
)
from .masks import mask_steps, valid_steps
from .normkinds import NORM_KINDS, register_norm
from .ranknorm import has_peers, normalize_synchronized
from .renormalize import RenormLimits, corrected_affine, renormalize
from .torchnorm import (
    BatchNormBase,
    check_dims,
    check_input,
    check_tracked,
    normalize_frozen,
    plain_batch_norm,
    stock_batch_norm,
)
from .tracing import is_proxy, record_function, recordable


def batch_norm(
    features: int,
    dims: int,
    kind: str = "batch",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    ghost_size: int = 32,
    track_running_stats: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make a norm for `features` channels followed by `dims` further dimensions.

    Args:
        features: Number of channels (dimension 1 of the input).
        dims: Number of dimensions after the channels: 0 for vectors, 1 for sequences, 2 for images
            and spectrograms, 3 for volumes.
        kind: `batch`, which is `nn.BatchNorm*` itself, or another registered kind; those of batch
            norm load and save its state dict. `layer`, `group` and `rms` are for comparison.
        momentum: Weight of the batch in the running average; a plain average of all batches if
            None. Layer, group and RMS norm have none.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        ghost_size: Smallest number of examples that `ghost` normalizes together.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch. `renorm` and `frozen` need them; layer, group and RMS norm have
            none.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> batch_norm(64, dims=2)(torch.randn(8, 64, 4, 4)).shape
        torch.Size([8, 64, 4, 4])
        >>> type(batch_norm(64, dims=2, kind="group")).__name__
        'MaskedGroupNorm'
    """
    check_dims(dims)
    return NORM_KINDS.find(kind)(
        features,
        dims,
        masked=False,
        momentum=momentum,
        eps=eps,
        affine=affine,
        ghost_size=ghost_size,
        track_running_stats=track_running_stats,
        device=device,
        dtype=dtype,
    )


def masked_norm(
    features: int,
    dims: int,
    kind: str = "batch",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    ghost_size: int = 32,
    track_running_stats: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make a norm that is called as `norm(x, mask)`, with a mask (batch, time) of valid steps.

    Arguments and errors are those of `batch_norm`.

    Example:
        >>> norm = masked_norm(4, dims=1, kind="layer")
        >>> norm(torch.randn(2, 4, 5), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 4, 5])
    """
    check_dims(dims)
    return NORM_KINDS.find(kind)(
        features,
        dims,
        masked=True,
        momentum=momentum,
        eps=eps,
        affine=affine,
        ghost_size=ghost_size,
        track_running_stats=track_running_stats,
        device=device,
        dtype=dtype,
    )


class MaskedBatchNorm(BatchNormBase):
    """Batch norm over the valid steps of padded sequences; padding is excluded from statistics.

    The same as batch norm (Ioffe & Szegedy 2015) on the valid steps of all sequences laid end to
    end. The padded steps of the output are zero.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels; the last one is time.
        kind: `batch`, `renorm`, `sync` or `frozen`.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ..., time). mask: (batch, time), True at valid steps; None if all are.
        The output has the shape of x.

    Raises:
        ValueError: A value is out of its range, or `kind` is unknown; in `forward`, x or the
            mask does not fit, or there are fewer than two valid values a channel.

    Example:
        >>> x = torch.randn(2, 4, 5)
        >>> mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        >>> MaskedBatchNorm(4, dims=1)(x, mask)[1, :, 3:].abs().max().item()
        0.0
    """

    group: distributed.ProcessGroup | None = None
    """Ranks whose batches `sync` normalizes together; all if None."""

    def __init__(
        self,
        features: int,
        dims: int = 1,
        kind: Literal["batch", "renorm", "sync", "frozen"] = "batch",
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if kind not in ("batch", "renorm", "sync", "frozen"):
            raise ValueError(f"kind is 'batch', 'renorm', 'sync' or 'frozen', not {kind!r}")
        if kind in ("renorm", "frozen"):
            check_tracked(f"{kind} batch norm", track_running_stats)
        super().__init__(features, dims, momentum, eps, affine, track_running_stats, device, dtype)
        self.kind = kind

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if is_proxy(x):
            return self._record(x, mask)
        # Padding must be excluded from the statistics of a batch.
        of_batch = (self.training or self.running_mean is None) and self.kind != "frozen"
        if mask is None or not of_batch:
            return mask_steps(self._normalize(x), mask)
        check_input(self, x)
        valid = valid_steps(mask, x)
        if x.numel() == 0:
            return self._normalize(x)
        if self.kind == "renorm":
            affine = partial(corrected_affine, self, limits=RenormLimits())
            return normalize_masked(self, x, valid, affine)
        if not self._is_synchronized():
            if one_pass(self, x):
                return normalize_valid(self, x, valid)
            if not has_values(x):
                return normalize_masked(self, x, valid)
        assert self.dims is not None
        return scatter_valid(self._normalize(gather_valid(x, valid, self.dims)), x, valid)

    def _normalize(self, x: Tensor) -> Tensor:
        if self.kind == "frozen":
            return normalize_frozen(self, x)
        if self.kind == "renorm" and self.training:
            return renormalize(self, x, RenormLimits())
        if self._is_synchronized():
            return normalize_synchronized(self, x, self.group)
        return stock_batch_norm(self, x)

    def _is_synchronized(self) -> bool:
        return self.kind == "sync" and self.training and has_peers(self.group)

    def _record(self, x: Any, mask: Any) -> Tensor:
        """Record a call of this layer as one step if it is traced alone, not in a model."""
        tensors = self._parameters | self._buffers
        names = "num_features dims kind momentum eps affine track_running_stats".split()
        options = [getattr(self, name) for name in names]
        return record_function(_call_with, x, mask, tensors, options, self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}"  # type: ignore[no-untyped-call]


def _call_with(
    x: Tensor,
    mask: Tensor | None,
    tensors: dict[str, Tensor | None],
    options: list[Any],
    training: bool,
) -> Tensor:
    """Call a masked batch norm with the given options, parameters and buffers."""
    norm = MaskedBatchNorm(*options).train(training)
    for held in (norm._parameters, norm._buffers):
        held.update({name: tensors[name] for name in held})  # type: ignore[misc]
    y: Tensor = norm(x, mask)
    return y


@register_norm("batch", needs_batch=True)
def _batch(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    make: Any = MaskedBatchNorm if masked else plain_batch_norm
    return cast(nn.Module, make(features, dims, **options))
