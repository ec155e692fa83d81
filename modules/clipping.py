"""Adaptive gradient clipping: no step is large beside the weights that it changes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from modules.dropout import check_amount

# Gradients below it are not divided by.
LEAST = 1e-6


def _unit_norms(x: Tensor) -> Tensor:
    """Norm of each unit: of a row of the first dimension, or of a vector as a whole."""
    dims = list(range(1, x.dim())) if x.dim() > 1 else None
    wide = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=x.dim() > 1, dtype=wide)
    return norms


@torch.no_grad()
def adaptive_clip_(
    parameters: Iterable[Tensor] | Tensor, clip: float = 0.01, eps: float = 1e-3
) -> None:
    """Shorten gradients that are long beside their weights, in place (Brock et al. 2021, AGC).

    The norm of the gradient of each unit is limited to `clip` times the norm of its weights. A
    unit is a row of a linear layer or a kernel of a convolution; a bias or a gain is taken as a
    whole. It lets networks without batch norm train at the learning rates of those with it.

    Args:
        parameters: Those to clip, after the backward pass. The paper leaves the last layer out.
        clip: Largest norm of a gradient in norms of its weights, more than 0; 0.01 in the paper,
            for batches of 4096.
        eps: Least norm of weights that is counted, so that weights of zero can grow.

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
        factor = limit.div_(_unit_norms(gradient).clamp_(min=LEAST)).clamp_(max=1.0)
        gradient.mul_(factor)
