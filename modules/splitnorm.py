"""Batch norm with separate parameters and statistics for clean and augmented examples."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .batchnorm import MaskedBatchNorm
from .masks import valid_steps
from .normkinds import register_norm
from .tracing import recordable


class SplitBatchNorm(MaskedBatchNorm):
    """Normalizes clean and augmented examples separately (Xie et al. 2020, AdvProp).

    The parameters and statistics of augmented examples are in `augmented`; those of the layer
    itself are for clean examples, and for evaluation. In training the first half of the batch is
    clean, the larger half if they differ, and the second half augmented.

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
        options = (momentum, eps, affine, track_running_stats, device, dtype)
        super().__init__(features, dims, "batch", *options)
        self.kind = "split"
        self.augmented = MaskedBatchNorm(features, dims, "batch", *options)

    def reset_running_stats(self) -> None:
        """Set the running statistics of both to mean 0 and variance 1."""
        super().reset_running_stats()
        # The constructor of PyTorch resets before there are children.
        for norm in self.children():
            cast(MaskedBatchNorm, norm).reset_running_stats()

    def reset_parameters(self) -> None:
        """Set scale, shift and running statistics of both to their first values."""
        super().reset_parameters()
        for norm in self.children():
            cast(MaskedBatchNorm, norm).reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *options)
        if not any(key.startswith(f"{prefix}augmented.") for key in state_dict):
            # A stock checkpoint: both norms start from it.
            for name in (*self._parameters, *self._buffers):
                if prefix + name in state_dict:
                    # With assign=True the tensor itself becomes the parameter.
                    state_dict[f"{prefix}augmented.{name}"] = state_dict[prefix + name].clone()

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training or self.whole_batch:
            return super().forward(x, mask)
        half = (x.shape[0] + 1) // 2
        valid = None if mask is None else valid_steps(mask, x)
        masks = (None, None) if valid is None else (valid[:half], valid[half:])
        clean = super().forward(x[:half], masks[0])
        return torch.cat((clean, self.augmented(x[half:], masks[1])))


@register_norm("split", needs_batch=True)
def _split(features: int, dims: int, masked: bool, ghost_size: int, **options: Any) -> nn.Module:
    return SplitBatchNorm(features, dims, **options)
