"""Regularizes models that were not written for `regain`, and reverts them."""

import logging
from typing import NamedTuple

from torch import nn

from .alphadropout import AlphaDropout
from .attached import can_be_restored, replace, restore
from .conversion import Plan
from .dropout import Dropout, DropoutLayer
from .foreign import PACKAGE, foreign_layers
from .regularization import Regularization

log = logging.getLogger(__name__)

CHANGES = "_regain_conversions"
# Names in a line of the log.
MAX_NAMES = 4
# Settings that would rename parameters, or that a model must ask for.
REFUSED = {
    "norm_affine": "the norms of a model have a scale and a shift",
    "weight_standardization": "it would rename the weights of the model",
    "embedding_dropout": "it would rename the weights of the model",
    "attention_head_dropout": "the heads of attention cannot be found",
}


class Conversion(NamedTuple):
    """One kind of change that `convert` made.

    `change` describes it; `names` are those of the changed layers.
    """

    change: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.names) - MAX_NAMES
        names = ", ".join(self.names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
        return f"{self.change}: {names}"


def conversions(model: nn.Module) -> list[Conversion]:
    """List what `convert` changed in a model; nothing if it was not converted.

    Args:
        model: The model that `convert` returned.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(*conversions(convert(model, Regularization(dropout=0.2))))
        Dropout(p=0.2) after activations: 1
    """
    return list(vars(model).get(CHANGES, ()))


def convert(model: nn.Module, reg: Regularization) -> nn.Module:
    """Regularize a model of any library, and return it; parameters keep their names.

    - Norms. With a kind of batch norm (`batch`, `ghost`, `renorm`, `frozen`, `split`) each
      `nn.BatchNorm*` becomes one of this kind; weights, statistics, `eps` and momentum stay, and so
      does the output in evaluation. With `group`, `layer` or `rms` it becomes such a norm, which
      keeps the weights; the statistics have no counterpart, so that the output changes. With
      `none`, norms stay as they are. Layer norms always do: a model without batch norm is logged
      with a warning.
    - Hidden layers. If the model has dropout layers of its own, they get the rate `dropout`, and
      become layers of `dropout_kind` unless that is `unit`. Otherwise dropout follows each
      activation layer, at each of its calls. What follows is found by the order in which the layers
      were made: an activation is taken to follow the layer that was made before it.
    - `head_dropout` is before the classifier, `input_dropout` before the first layer or after the
      first embedding, `weight_drop` in linear layers.
    - `drop_path` is in the residual branches of known architectures: ResNets and ViTs of
      torchvision, encoders of transformers, and all blocks with a slot called `drop_path`, such as
      timm's.
    - `attention_dropout` and `layer_drop` set rates that the model has; `layer_drop` in a copy of
      its `config`. Other rates that a model drops at by a function become zero.

    Nothing is dropped at a rate of zero, so that the default `Regularization` turns off the dropout
    of a model. `norm_momentum` and `norm_eps` apply where they are not the default.
    `zero_init_gamma` changes nothing: weights stay. A converted model can be converted again.

    Convert before the model is compiled or wrapped. `conversions` lists what was changed, and
    `to_plain` reverts it.

    Args:
        model: The model; it is changed in place.
        reg: What it is regularized by.

    Returns:
        The model itself.

    Raises:
        ValueError: The model has no layer for a setting of `reg`; it is unchanged, except that an
            earlier conversion is undone.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        >>> model = convert(model, Regularization(normalization="ghost", dropout=0.1))
        >>> for change in conversions(model):
        ...     print(change)
        BatchNorm2d becomes GhostBatchNorm: 1
        Dropout(p=0.1) after activations: 2
    """
    for setting, reason in REFUSED.items():
        if getattr(reg, setting) != getattr(Regularization, setting):
            value = getattr(reg, setting)
            raise ValueError(f"{setting}={value} is not for convert: {reason}; leave it out")
    if not [*model.children()]:
        raise ValueError(f"{type(model).__name__} has no layers that convert could change")
    restore(model)
    vars(model).pop(CHANGES, None)
    plan = Plan(model, reg)
    plan.carry_out()
    made = [Conversion(change, tuple(names)) for change, names in plan.changes.items()]
    vars(model)[CHANGES] = made
    for change in made:
        log.info(f"{type(model).__name__}: {change}")
    return model


def to_plain(model: nn.Module) -> nn.Module:
    """Turn a converted model back into one without layers of `regain`, and return it.

    Norms become PyTorch's (or the model's own) with the weights and statistics that they have now,
    inserted dropout and drop path are removed, dropout of the model keeps its rate. Keys and the
    output in evaluation stay. `Dropout` and `AlphaDropout` that the model had itself become
    PyTorch's, other dropout layers `nn.Identity`.

    Args:
        model: The model; it is changed in place.

    Returns:
        The model itself.

    Raises:
        ValueError: It holds a layer of `regain` that PyTorch has no counterpart of; the model stays
            as it is.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        >>> model = to_plain(convert(model, Regularization(normalization="frozen", dropout=0.1)))
        >>> [type(layer).__name__ for layer in model.modules()]
        ['Sequential', 'Linear', 'BatchNorm1d', 'ReLU']
    """
    plain: dict[nn.Module, nn.Module] = {}
    others = []
    for name, layer in foreign_layers(model):
        if not type(layer).__module__.startswith(PACKAGE) or can_be_restored(name, layer):
            continue
        if isinstance(layer, DropoutLayer) and not any(layer.children()):
            plain[layer] = _plain_dropout(layer)
        else:
            others.append(f"{name} ({type(layer).__name__})")
    if others:
        raise ValueError(
            f"PyTorch has no counterpart of these layers of {type(model).__name__}: "
            f"{', '.join(others)}; convert to another kind, or export the model with them"
        )
    restore(model)
    replace(model, plain)
    vars(model).pop(CHANGES, None)
    return model


def _plain_dropout(layer: DropoutLayer) -> nn.Module:
    counterparts = {Dropout: nn.Dropout, AlphaDropout: nn.AlphaDropout}
    kind = counterparts.get(type(layer))
    return (kind(layer.p) if kind else nn.Identity()).train(layer.training)
