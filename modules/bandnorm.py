"""Batch norm with separate statistics for each frequency band."""

import torch
from torch import Tensor, nn

from .batchnorm import masked_norm
from .checks import check_amount
from .tracing import recordable


def _check_bands(x: Tensor, bands: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"expected 4D input (got {x.dim()}D input)")
    if x.shape[2] % bands:
        raise ValueError(f"{x.shape[2]} frequencies do not divide into {bands} bands")


class SubSpectralBatchNorm(nn.Module):
    """Batch norm with separate statistics for each frequency band (Chang et al. 2021).

    Args:
        features: Number of channels.
        bands: Number of equal bands that the frequency axis is cut into.
        kind: `batch`, `ghost`, `renorm`, `sync`, `frozen` or `split`.
        momentum: Weight of the batch in the running average; a plain average if None.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift.
        ghost_size: Smallest number of examples that `ghost` normalizes together.
        track_running_stats: Whether to keep running statistics; without them evaluation too uses
            those of the batch.
        device: Where the parameters and statistics are made; PyTorch's default if None.
        dtype: Their type; PyTorch's default if None.

    Shape:
        x: (batch, channels, frequency, time), frequency a multiple of `bands`. mask: (batch, time).
        The output has the shape of x.

    Raises:
        ValueError: The frequency axis is not a multiple of `bands`, or a value is out of its range.

    Example:
        >>> SubSpectralBatchNorm(8, bands=5)(torch.randn(2, 8, 40, 10)).shape
        torch.Size([2, 8, 40, 10])
    """

    def __init__(
        self,
        features: int,
        bands: int = 5,
        kind: str = "batch",
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        ghost_size: int = 32,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind in ("layer", "group", "rms"):
            raise ValueError(f"kind is a batch norm such as 'batch', not {kind!r}")
        check_amount("bands", bands, whole=True)
        if bands < 1:
            raise ValueError(f"bands is a whole number of at least 1, not {bands!r}")
        self.bands = bands
        self.norm = masked_norm(
            features * bands,
            2,
            kind,
            momentum,
            eps,
            affine,
            ghost_size,
            track_running_stats,
            device,
            dtype,
        )

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        _check_bands(x, self.bands)
        batch, channels, frequency, time = x.shape
        banded = x.reshape(batch, channels * self.bands, frequency // self.bands, time)
        normed: Tensor = self.norm(banded, mask)
        return normed.reshape(batch, channels, frequency, time)

    def reset_parameters(self) -> None:
        """Set scale, shift and running statistics to their first values."""
        self.norm.reset_parameters()  # type: ignore[operator]

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0 and variance 1."""
        self.norm.reset_running_stats()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return f"bands={self.bands}"
