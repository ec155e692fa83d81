"""Batch normalization (Ioffe & Szegedy 2015), composed around PyTorch's own layers.

A layer here holds an `nn.BatchNorm*` and hands it the right elements; it never overrides its
forward, so converters that replace the class (synchronization, quantization) keep working.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_BY_DIMS: dict[int, Callable[..., nn.Module]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def batch_norm(features: int, dims: int, momentum: float = 0.1, eps: float = 1e-5) -> nn.Module:
    """Make the batch norm for `features` channels followed by `dims` further dimensions.

    Args:
        features: Number of channels (dimension 1 of the input).
        dims: Number of dimensions after the channels: 0 for vectors, 1 for sequences, 2 for images
            and spectrograms, 3 for volumes.
        momentum: Weight of the batch in the running average.
        eps: Added to the variance.

    Raises:
        ValueError: `dims` is not 0, 1, 2 or 3.

    Example:
        >>> batch_norm(64, dims=2)(torch.randn(8, 64, 4, 4)).shape
        torch.Size([8, 64, 4, 4])
    """
    if dims not in _BY_DIMS:
        raise ValueError(f"dims is one of 0, 1, 2 and 3, not {dims!r}")
    return _BY_DIMS[dims](features, momentum=momentum, eps=eps)


def mask_steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the steps that the mask leaves out to zero.

    Shape:
        x: (batch, channels, ..., time). mask: (batch, time), True at valid steps, or None for all.
    """
    if mask is None:
        return x
    # Not a product: what padding holds may be infinite or NaN.
    return x.masked_fill(~mask.view(mask.shape[0], *(1,) * (x.dim() - 2), mask.shape[1]), 0.0)


class MaskedIdentity(nn.Identity):
    """Stands where a masked norm would: normalizes nothing, sets the masked steps to zero."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return mask_steps(x, mask)


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid steps of padded sequences; padding enters no statistic.

    The same as batch norm (Ioffe & Szegedy 2015) on the valid steps of all sequences laid end to
    end. The padded steps of the output are zero.

    Args:
        features: Number of channels.
        dims: Number of dimensions after the channels; the last one is time.

    Shape:
        x: (batch, channels, ..., time). mask: (batch, time), True at valid steps; None if all are.
        The output has the shape of x.

    Example:
        >>> x = torch.randn(2, 4, 5)
        >>> mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        >>> MaskedBatchNorm(4, dims=1)(x, mask)[1, :, 3:].abs().max().item()
        0.0
    """

    def __init__(
        self, features: int, dims: int = 1, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm = batch_norm(features, dims, momentum, eps)
        # The statistics are the same however the elements are laid out, so that the valid steps
        # can go through the norm as a plain (elements, channels) batch.
        self.dims = dims

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or not self.training:
            return mask_steps(self.norm(x), mask)
        last = x.movedim(1, -1)
        valid = mask.view(mask.shape[0], *(1,) * (x.dim() - 3), mask.shape[1]).expand(
            last.shape[:-1]
        )
        steps = last[valid]  # (valid elements, channels)
        flat = self.norm(steps.view(*steps.shape, *(1,) * self.dims)).view_as(steps)
        return (
            torch.zeros_like(last, dtype=flat.dtype)
            .masked_scatter(valid.unsqueeze(-1), flat)
            .movedim(-1, 1)
        )


class SubSpectralBatchNorm(nn.Module):
    """Batch norm with statistics of its own for each frequency band (Chang et al. 2021).

    Args:
        features: Number of channels.
        bands: Number of equal bands that the frequency axis is cut into.

    Shape:
        x: (batch, channels, frequency, time), frequency a multiple of `bands`. mask: (batch, time).
        The output has the shape of x.

    Raises:
        ValueError: The frequency axis is not a multiple of `bands`.

    Example:
        >>> SubSpectralBatchNorm(8, bands=5)(torch.randn(2, 8, 40, 10)).shape
        torch.Size([2, 8, 40, 10])
    """

    def __init__(
        self, features: int, bands: int = 5, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.bands = bands
        self.norm = MaskedBatchNorm(features * bands, dims=2, momentum=momentum, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, channels, frequency, time = x.shape
        if frequency % self.bands:
            raise ValueError(f"{frequency} frequencies do not divide into {self.bands} bands")
        banded = x.reshape(batch, channels * self.bands, frequency // self.bands, time)
        normed: Tensor = self.norm(banded, mask)
        return normed.reshape(batch, channels, frequency, time)
