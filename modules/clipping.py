"""Adaptive gradient clipping: limits gradients relative to the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .checks import check_amount

# Avoids a division by zero.
MIN_GRADIENT_NORM = 1e-6


def _unit_norms(x: Tensor) -> Tensor:
    """Return the norm of each unit: of each row, or of a whole vector."""
    dims = list(range(1, x.dim())) if x.dim() > 1 else None
    wide = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=x.dim() > 1, dtype=wide)
    return norms


@torch.no_grad()
def adaptive_clip_(
    parameters: Iterable[Tensor] | Tensor, clip: float = 0.01, eps: float = 1e-3
) -> None:
    """Clip gradients relative to the norms of their weights, in place (Brock et al. 2021, AGC).

    The norm of the gradient of each unit is limited to `clip` times the norm of its weights. A
    unit is a row of a linear layer or a kernel of a convolution; a bias or gain is one unit. With
    it networks without batch norm train at the learning rates of networks with batch norm.

    Args:
        parameters: Parameters to clip, after the backward pass. The paper excludes the last layer.
        clip: Largest ratio of gradient norm to weight norm, more than 0; 0.01 in the paper, for
            batches of 4096.
        eps: Lower bound of the weight norm, at least 0, so that weights of zero can grow.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> linear = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.constant_(linear.weight, 1.0)
        >>> linear(torch.full((1, 4), 100.0)).backward()
        >>> adaptive_clip_(linear.parameters(), clip=0.5)
        >>> round(linear.weight.grad.norm().item(), 4)
        1.0
    """
    check_amount("clip", clip)
    if not clip:
        raise ValueError(f"clip is more than 0, not {clip!r}")
    check_amount("eps", eps)
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        limit = _unit_norms(parameter).clamp_(min=eps).mul_(clip)
        factor = limit.div_(_unit_norms(gradient).clamp_(min=MIN_GRADIENT_NORM)).clamp_(max=1.0)
        gradient.mul_(factor)
