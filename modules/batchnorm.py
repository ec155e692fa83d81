"""Batch normalization (Ioffe & Szegedy 2015), composed around PyTorch's own layers.

A layer here holds an `nn.BatchNorm*` and hands it the right elements; it never overrides its
forward, so converters that replace the class (synchronization, quantization) keep working.
"""

from typing import Any, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modules.channelnorm import ChannelNorm, MaskedGroupNorm
from modules.dropout import check_amount
from modules.frozennorm import FrozenBatchNorm
from modules.ghostnorm import normalize_parts
from modules.kernels import has_values
from modules.maskednorm import (
    check_input,
    gather_valid,
    is_observed,
    normalize_masked,
    normalize_valid,
    one_pass,
    scatter_valid,
)
from modules.masks import mask_steps, valid_steps
from modules.renorm import BatchRenorm
from modules.sync import SyncBatchNorm
from modules.torchnorm import AroundBatchNorm, check_dims, plain_batch_norm
from modules.tracing import is_proxy, recordable

Kind = Literal["batch", "ghost", "renorm", "sync", "frozen", "split", "layer", "group", "rms"]


def batch_norm(
    features: int,
    dims: int,
    kind: Kind = "batch",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    ghost_size: int = 32,
    track_running_stats: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make the norm for `features` channels followed by `dims` further dimensions.

    Args:
        features: Number of channels (dimension 1 of the input).
        dims: Number of dimensions after the channels: 0 for vectors, 1 for sequences, 2 for images
            and spectrograms, 3 for volumes.
        kind: Batch norm or one of its kinds, or, for comparison, layer, group or RMS norm.
        momentum: Weight of the batch in the running average; a plain average of all batches if
            None. The last three kinds have none.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        ghost_size: Examples that `ghost` normalizes together, at least.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch. `renorm` and `frozen` need them; the last three kinds have none.
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
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    options = made | {"momentum": momentum, "eps": eps, "affine": affine}
    options["track_running_stats"] = track_running_stats
    if kind == "batch":
        return plain_batch_norm(features, dims, **options)
    if kind == "renorm":
        return BatchRenorm(features, dims, **options)
    if kind == "sync":
        return SyncBatchNorm(features, dims, **options)
    if kind == "frozen":
        return FrozenBatchNorm(features, dims, **options)
    return masked_norm(features, dims, kind, ghost_size=ghost_size, **options)


def masked_norm(
    features: int,
    dims: int,
    kind: Kind = "batch",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    ghost_size: int = 32,
    track_running_stats: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make the norm that is called as `norm(x, mask)`, with a mask (batch, time) of valid steps.

    Arguments and errors are those of `batch_norm`.

    Example:
        >>> norm = masked_norm(4, dims=1, kind="layer")
        >>> norm(torch.randn(2, 4, 5), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 4, 5])
    """
    check_dims(dims)
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    if kind == "layer" or kind == "rms":
        return ChannelNorm(features, kind, eps, affine, **made)
    if kind == "group":
        return MaskedGroupNorm(features, eps=eps, affine=affine, **made)
    options = made | {"momentum": momentum, "eps": eps, "affine": affine}
    options["track_running_stats"] = track_running_stats
    if kind == "ghost":
        return GhostBatchNorm(features, dims, ghost_size, **options)
    if kind == "split":
        return SplitBatchNorm(features, dims, **options)
    return MaskedBatchNorm(features, dims, kind, **options)


class MaskedBatchNorm(AroundBatchNorm):
    """Batch norm over the valid steps of padded sequences; padding enters no statistic.

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
        ValueError: A value is out of its range, or `kind` is none of those; in `forward`, x or the
            mask does not fit, or there are fewer than two valid values a channel.

    Example:
        >>> x = torch.randn(2, 4, 5)
        >>> mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        >>> MaskedBatchNorm(4, dims=1)(x, mask)[1, :, 3:].abs().max().item()
        0.0
    """

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
        super().__init__()
        if kind not in ("batch", "renorm", "sync", "frozen"):
            raise ValueError(f"there is no masked batch norm of kind {kind!r}")
        self.norm = batch_norm(
            features,
            dims,
            kind,
            momentum,
            eps,
            affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        # The statistics are the same however the elements are laid out, so that the valid steps
        # can go through the norm as a plain (elements, channels) batch.
        self.dims = dims

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        traced = is_proxy(x)
        if not traced:
            _check_dims(x, self.dims)
        if mask is None or not _over_the_batch(self.norm):
            return mask_steps(self.norm(x), mask)
        valid, norm = valid_steps(mask, x), self.norm
        if not traced and x.numel() == 0:
            return cast(Tensor, norm(x))
        if not traced and _of_one_process(norm):
            check_input(norm, x)
            if not is_observed(norm):
                if one_pass(norm, x):
                    return normalize_valid(norm, x, valid)
                if not has_values(x):
                    return normalize_masked(norm, x, valid)
        return scatter_valid(norm(gather_valid(x, valid, self.dims)), x, valid)


# A graph of a single layer calls them as a whole: a trace has no values to check.
for _name in ("mask_steps", "valid_steps", "gather_valid", "scatter_valid"):
    torch.fx.wrap(_name)


def _check_dims(x: Tensor, dims: int) -> None:
    """Raise an error if a norm of so many dimensions after the channels is not for `x`."""
    # `nn.BatchNorm1d` takes vectors and sequences.
    known = (2, 3) if dims < 2 else (dims + 2,)
    if x.dim() not in known:
        raise ValueError(f"dims={dims} is for inputs of {known[-1]} dimensions, not of {x.dim()}")


def _over_the_batch(norm: nn.Module) -> bool:
    """Whether a norm takes its statistics from the batch, so that padding must not enter."""
    untracked = isinstance(norm, _BatchNorm) and norm.running_mean is None
    return (norm.training or untracked) and not isinstance(norm, FrozenBatchNorm)


def _of_one_process(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a norm takes its statistics from the batch of this process, as PyTorch's own do."""
    if type(norm) is SyncBatchNorm:
        return not (norm.training and norm.together)
    return type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GhostBatchNorm(AroundBatchNorm):
    """Normalizes parts of a batch by themselves (Hoffer et al. 2017).

    A large batch keeps the noise that the statistics of a small one have, which regularizes. The
    running statistics move with each part, as in the paper's algorithm 1.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        size: Examples that are normalized together, at least; a batch is cut evenly.
        momentum: Weight of a part in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ...). mask: (batch, time), True at valid steps, or None for all. The
        output has the shape of x.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> GhostBatchNorm(8, dims=2, size=16)(torch.randn(64, 8, 5, 5)).shape
        torch.Size([64, 8, 5, 5])
    """

    def __init__(
        self,
        features: int,
        dims: int = 2,
        size: int = 32,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_amount("size", size, whole=True)
        if size < 1:
            raise ValueError(f"size is a whole number of at least 1, not {size!r}")
        self.size = size
        self.norm = MaskedBatchNorm(
            features, dims, "batch", momentum, eps, affine, track_running_stats, device, dtype
        )

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.training:
            return normalize_parts(self.norm, x, mask, self.size)
        return cast(Tensor, self.norm(x, mask))

    def extra_repr(self) -> str:
        return f"size={self.size}"


class SplitBatchNorm(AroundBatchNorm):
    """Normalizes clean and augmented examples apart (Xie et al. 2020, AdvProp).

    Augmented examples have statistics of their own, which would spoil those that are used in
    evaluation, where all examples are clean. In training the first half of the batch is clean, the
    larger one if they differ, and the second half augmented.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels.
        momentum: Weight of the batch in the running averages; plain averages if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift, for each of the two.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, ...). mask: (batch, time), True at valid steps, or None for all. The
        output has the shape of x.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> SplitBatchNorm(8, dims=2)(torch.randn(64, 8, 5, 5)).shape
        torch.Size([64, 8, 5, 5])
    """

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
        self.clean, self.augmented = (
            MaskedBatchNorm(
                features, dims, "batch", momentum, eps, affine, track_running_stats, device, dtype
            )
            for _ in range(2)
        )

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training:
            return cast(Tensor, self.clean(x, mask))
        half = (x.shape[0] + 1) // 2
        valid = None if mask is None else valid_steps(mask, x)
        masks = (None, None) if valid is None else (valid[:half], valid[half:])
        return torch.cat((self.clean(x[:half], masks[0]), self.augmented(x[half:], masks[1])))
