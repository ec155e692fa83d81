"""Penalties on weights and on predictions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd

from modules.dropout import check_amount

# Layers whose weights no penalty is for.
EXEMPT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group with and one without weight decay.

    Decay is for the matrices and kernels of linear, convolutional and recurrent layers. Norms and
    biases are few and do not overfit (He et al. 2019, "Bag of Tricks"); the rows of an embedding
    that a batch does not touch would fade without a gradient to hold them.

    Args:
        model: The model to be trained.
        weight_decay: Decay of the first group; the second has none.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> [(len(g["params"]), g["weight_decay"]) for g in parameter_groups(model, 0.1)]
        [(1, 0.1), (3, 0.0)]
    """
    decayed = decayed_weights(model)
    chosen = {id(p) for p in decayed}
    kept = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def decayed_weights(model: nn.Module) -> list[nn.Parameter]:
    """List the trainable parameters that a penalty is for; see `parameter_groups`."""
    # Known by their layer, for their weights may be matrices too.
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EXEMPT)
        for parameter in module.parameters(recurse=False)
    }
    # Rows that attention adds to its keys and values: biases, though of three dimensions.
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            exempt |= {id(module.bias_k), id(module.bias_v)}
    trained = (p for p in model.parameters() if p.requires_grad)
    return [p for p in trained if p.ndim > 1 and id(p) not in exempt]


def l1_penalty(model: nn.Module) -> Tensor:
    """Return the sum of the absolute weights (Tibshirani 1996, the lasso), a scalar.

    It is of the weights that `parameter_groups` decays, as all penalties here.

    Args:
        model: The model to be trained.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(linear.weight, -3.0)
        >>> l1_penalty(linear).item()
        6.0
    """
    return _total([p.abs().sum() for p in decayed_weights(model)])


def l2_penalty(model: nn.Module) -> Tensor:
    """Return half the sum of the squared weights (Hoerl & Kennard 1970), a scalar.

    Half of it, so that its gradient is the weight itself: under plain SGD a factor of this penalty
    is the same as weight decay of that factor, and under AdamW it is not (Loshchilov & Hutter
    2019).

    Args:
        model: The model to be trained.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(linear.weight, -3.0)
        >>> l2_penalty(linear).item()
        9.0
    """
    return _total([p.square().sum() for p in decayed_weights(model)]) / 2


def elastic(model: nn.Module, l1: float, l2: float) -> Tensor:
    """Return `l1` times the L1 and `l2` times the L2 penalty (Zou & Hastie 2005), a scalar.

    Args:
        model: The model to be trained.
        l1: Factor of `l1_penalty`, at least 0.
        l2: Factor of `l2_penalty`, at least 0.

    Raises:
        ValueError: A factor is out of its range.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(linear.weight, -3.0)
        >>> elastic(linear, l1=1.0, l2=2.0).item()
        24.0
    """
    check_amount("l1", l1)
    check_amount("l2", l2)
    penalty = torch.zeros(())
    if l1:
        penalty = l1 * l1_penalty(model)
    if l2:
        penalty = penalty + l2 * l2_penalty(model)
    return penalty


def _total(sums: list[Tensor]) -> Tensor:
    return torch.stack(sums).sum() if sums else torch.zeros(())


@torch.no_grad()
def max_norm_(model: nn.Module, limit: float) -> None:
    """Shorten the weights into each unit to at most `limit`, in place (Srivastava et al. 2014).

    A unit's weights are a row of a linear or recurrent layer, or a kernel of a convolution; what is
    shorter stays as it is.

    Args:
        model: The model, after a step of its optimizer.
        limit: Largest Euclidean norm, more than 0; 3 or 4 in the paper.

    Raises:
        ValueError: `limit` is out of its range.

    Example:
        >>> linear = nn.Linear(4, 1)
        >>> _ = nn.init.constant_(linear.weight, 3.0)
        >>> max_norm_(linear, 2.0)
        >>> round(linear.weight.norm().item(), 4)
        2.0
    """
    check_amount("limit", limit)
    if not limit:
        raise ValueError(f"limit is more than 0, not {limit!r}")
    # A transposed convolution has its units along the second dimension.
    transposed = {
        id(module.weight) for module in model.modules() if isinstance(module, _ConvTransposeNd)
    }
    for weight in decayed_weights(model):
        torch.renorm(weight, 2, 1 if id(weight) in transposed else 0, limit, out=weight)


def r_drop_loss(
    first: Tensor,
    second: Tensor,
    targets: Tensor,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of two passes under dropout that shall agree (Liang et al. 2021, R-Drop).

    The mean of both cross-entropies, plus `alpha` times the mean of the two divergences
    KL(first || second) and KL(second || first). The paper sums the cross-entropies up: its loss is
    twice this one with `alpha` halved.

    Args:
        first: Logits of one pass.
        second: Logits of the other pass on the same batch.
        targets: Classes, or probabilities of all classes.
        alpha: Factor of the divergence, at least 0.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.

    Shape:
        first and second: (batch, classes). targets: (batch,) or (batch, classes). The output is a
        scalar.

    Raises:
        ValueError: `alpha` is out of its range.

    Example:
        >>> logits, targets = torch.zeros(1, 2), torch.tensor([0])
        >>> round(r_drop_loss(logits, logits, targets).item(), 4)
        0.6931
    """
    check_amount("alpha", alpha)
    entropies = [
        F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        for logits in (first, second)
    ]
    p, q = first.log_softmax(1), second.log_softmax(1)
    # KL(p || q) + KL(q || p), from one product.
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
    return sum(entropies, torch.zeros_like(divergence)) / 2 + alpha * divergence / 2
