"""Penalties on weights and on predictions."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from modules.checks import check_amount

# Layers whose weights no penalty is for.
EXEMPT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
# Layers whose tensors of two or more dimensions are weights, whatever their shape.
WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
# The class that PyTorch's cross-entropy ignores.
IGNORED = -100
# In other layers, parameters of such names are positions and tokens.
EMBEDDED = re.compile(r"position|pos_?emb|pos_?enc|_tokens?$")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group with and one without weight decay.

    Decay is for the matrices and kernels of linear, convolutional and recurrent layers. Norms and
    biases are few and do not overfit (He et al. 2019, "Bag of Tricks"); the rows of an embedding
    that a batch does not touch would fade without a gradient to hold them. Nor do embeddings of
    positions decay, class tokens, scales of channels in any shape, the lengths of weight norm, and
    what a model names in its `no_weight_decay()`, as timm's models do.

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
    exempt = _exempt(model)
    trained = (p for p in model.parameters() if p.requires_grad)
    return [p for p in trained if p.ndim > 1 and id(p) not in exempt]


def _exempt(model: nn.Module) -> set[int]:
    """Return the ids of parameters that have several dimensions and still are no weights."""
    exempt = set()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, EXEMPT):
            exempt |= {id(parameter) for parameter in own.values()}
        elif isinstance(module, nn.MultiheadAttention):
            # Rows that attention adds to its keys and values: biases.
            exempt |= {id(module.bias_k), id(module.bias_v)}
        elif isinstance(module, parametrize.ParametrizationList):
            if any(isinstance(step, _WeightNorm) for step in module):
                exempt.add(id(own["original0"]))
        elif not isinstance(module, WEIGHTED):
            exempt |= {id(p) for name, p in own.items() if _is_row(p) or EMBEDDED.search(name)}
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                exempt.add(id(own[f"{hook.name}_g"]))
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            names = listed()
            exempt |= {id(p) for name, p in module.named_parameters() if name in names}
    return exempt


def _is_row(parameter: Tensor) -> bool:
    """Whether a parameter has one value per channel, or one row for all examples of a batch."""
    return sum(size > 1 for size in parameter.shape) < 2 or parameter.shape[0] == 1


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
    shorter stays as it is. Under weight norm it is the weight that the layer uses which is limited.

    Args:
        model: The model, after a step of its optimizer.
        limit: Largest Euclidean norm, more than 0; 3 or 4 in the paper.

    Raises:
        ValueError: `limit` is out of its range, or a weight is computed from others in a way that
            fixes its norm otherwise: by spectral norm, pruning or another parametrization.

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
    left = {id(weight) for weight in decayed_weights(model)}
    computed = [
        (module, *of_module)
        for path, module in model.named_modules()
        for of_module in _computed_weights(path, module)
        if id(of_module[1]) in left
    ]
    for module, length, direction, dim in computed:
        left.discard(id(direction))
        weight = torch._weight_norm(direction, length, dim)
        shortened = _shortened(module, weight, limit)
        if dim == _unit_dim(module) and length.numel() == _units(module, weight):
            length.clamp_(-limit, limit)
        elif not torch.equal(shortened, weight):
            direction.copy_(shortened)
            length.copy_(torch.norm_except_dim(shortened, 2, dim))
    # Old hooks compute the weight at the next call alone.
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                hook(module, None)
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) in left:
                left.remove(id(parameter))
                parameter.copy_(_shortened(module, parameter, limit))


def _computed_weights(path: str, module: nn.Module) -> list[tuple[Tensor, Tensor, int]]:
    """List lengths, directions and dimension of the weights of a module under weight norm.

    Raises:
        ValueError: A weight is computed in another way.
    """
    found = []
    # What computes another weight, and from which tensors.
    others: list[tuple[str, object, list[Tensor]]] = []
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for name, steps in lists.items():
            if len(steps) == 1 and isinstance(steps[0], _WeightNorm):
                found.append((steps.original0, steps.original1, steps[0].dim))
            else:
                others.append((name, steps[-1], list(steps.parameters())))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            length, direction = (getattr(module, f"{hook.name}_{part}") for part in "gv")
            found.append((length, direction, hook.dim))
        elif isinstance(hook, (SpectralNorm, BasePruningMethod)):
            name = hook.name if isinstance(hook, SpectralNorm) else hook._tensor_name
            others.append((name, hook, [getattr(module, f"{name}_orig")]))
    for name, step, tensors in others:
        trained = any(tensor.requires_grad and tensor.ndim > 1 for tensor in tensors)
        if trained and not isinstance(module, EXEMPT):
            raise ValueError(
                f"max_norm_ cannot limit {f'{path}.{name}'.removeprefix('.')}: "
                f"{type(step).__name__.removeprefix('_')} computes it from another tensor; leave "
                "out one of the two"
            )
    return found


def _unit_dim(module: nn.Module) -> int:
    """Return the dimension of a module's weight along which its units are."""
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def _units(module: nn.Module, weight: Tensor) -> int:
    groups = module.groups if isinstance(module, _ConvTransposeNd) else 1
    return groups * weight.shape[_unit_dim(module)]


def _shortened(module: nn.Module, weight: Tensor, limit: float) -> Tensor:
    """Return a weight whose units have norms of at most `limit`."""
    if not isinstance(module, _ConvTransposeNd):
        return torch.renorm(weight, 2, 0, limit)
    # Inputs by outputs of each group: a unit belongs to its group alone.
    units = weight.view(module.groups, -1, *weight.shape[1:]).transpose(1, 2)
    shortened = torch.renorm(units.flatten(0, 1), 2, 0, limit).view(units.shape)
    return shortened.transpose(1, 2).flatten(0, 1)


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
        targets: Classes, or probabilities of all classes. A class of -100 is ignored, as
            `cross_entropy` does, in the divergence too.
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
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(1)
    if not targets.is_floating_point():
        divergence = divergence[targets != IGNORED]
    divergence = divergence.mean()
    return sum(entropies, torch.zeros_like(divergence)) / 2 + alpha * divergence / 2
