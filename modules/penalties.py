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

from .checks import check_amount

# Layers whose weights are not penalized.
EXEMPT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
# Layers in which every tensor with two or more dimensions is a weight.
WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
# Target that `cross_entropy` ignores by default.
IGNORED = -100
# In other layers, parameters with such names are position embeddings and class tokens.
EMBEDDED = re.compile(r"position|pos_?emb|pos_?enc|_tokens?$")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into a group with weight decay and a group without.

    The weights of linear, convolutional and recurrent layers decay. Norms and biases do not: they
    are few and do not overfit (He et al. 2019, "Bag of Tricks"). Embeddings do not: rows of words
    that are not in a batch get no gradient and would shrink to zero. Position embeddings, class
    tokens, channel scales of any shape, and the magnitudes of weight norm do not decay either, nor
    do the parameters listed by a model's `no_weight_decay()`, a convention of timm.

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
    """List the trainable parameters that are penalized; see `parameter_groups`."""
    exempt = _exempt(model)
    trained = (p for p in model.parameters() if p.requires_grad)
    return [p for p in trained if p.ndim > 1 and id(p) not in exempt]


def _exempt(model: nn.Module) -> set[int]:
    """Return the ids of parameters that are not penalized although they have several dimensions."""
    exempt = set()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, EXEMPT):
            exempt |= {id(parameter) for parameter in own.values()}
        elif isinstance(module, nn.MultiheadAttention):
            # These are biases: rows that are appended to keys and values.
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
    """Whether a parameter has one value per channel, or is one row that all examples share."""
    return sum(size > 1 for size in parameter.shape) < 2 or parameter.shape[0] == 1


def l1_penalty(model: nn.Module) -> Tensor:
    """Return the sum of the absolute weights (Tibshirani 1996, the lasso), a scalar.

    Like all penalties here, it covers the weights that decay in `parameter_groups`.

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

    With the factor 1/2 its gradient is the weight itself. Under plain SGD, this penalty times a
    factor is the same as weight decay of that factor; under AdamW it is not (Loshchilov & Hutter
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
    """Limit the norm of the weights of each unit, in place (Srivastava et al. 2014, max-norm).

    The weights of a unit are a row of a linear or recurrent layer, or a kernel of a convolution.
    Shorter ones are not changed. Under weight norm, the computed weight is limited.

    Args:
        model: The model, after a step of its optimizer.
        limit: Largest Euclidean norm, more than 0; 3 or 4 in the paper.

    Raises:
        ValueError: `limit` is out of its range, or a weight is computed by spectral norm, pruning
            or another parametrization, so that its norm cannot be set.

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
    # The hooks of `nn.utils.weight_norm` would not update the weight before the next call.
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
    """List magnitude, direction and dimension of each weight of a module under weight norm.

    Raises:
        ValueError: A trained weight is computed in another way.
    """
    found = []
    # Name of each other computed weight, what computes it, and the tensors it is computed from.
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
                f"{type(step).__name__.removeprefix('_')} computes it from another tensor; use "
                "only one of the two"
            )
    return found


def _unit_dim(module: nn.Module) -> int:
    """Return the dimension of a module's weight that indexes its units."""
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def _units(module: nn.Module, weight: Tensor) -> int:
    groups = module.groups if isinstance(module, _ConvTransposeNd) else 1
    return groups * weight.shape[_unit_dim(module)]


def _shortened(module: nn.Module, weight: Tensor, limit: float) -> Tensor:
    """Return the weight with the norm of each unit limited to `limit`."""
    if not isinstance(module, _ConvTransposeNd):
        return torch.renorm(weight, 2, 0, limit)
    # (inputs, outputs / groups, ...): only the inputs of its group lead into a unit.
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
    """Return the R-Drop loss of two passes under dropout (Liang et al. 2021).

    It is the mean of both cross-entropies, plus `alpha` times the mean of the two divergences
    KL(first || second) and KL(second || first). The paper adds the cross-entropies up: its loss is
    twice this one with `alpha` halved.

    Args:
        first: Logits of one pass.
        second: Logits of the other pass on the same batch.
        targets: Class indices, or class probabilities. The index -100 is ignored, as in
            `cross_entropy`, in the divergence too.
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
    # KL(p || q) + KL(q || p) as one product.
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(1)
    if not targets.is_floating_point():
        divergence = divergence[targets != IGNORED]
    divergence = divergence.mean()
    return sum(entropies, torch.zeros_like(divergence)) / 2 + alpha * divergence / 2
