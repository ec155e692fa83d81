"""Where a model that was not written for `regain` can be regularized: found by its layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from .attention import AttentionDropout
from .dropout import DropoutLayer
from .montecarlo import RATES
from .structured import DropPath

Role = Literal["hidden", "head", "attention", "path", "tokens"]
# How the names of activations end: those of PyTorch, timm and transformers. Gates such as Sigmoid
# are none.
ACTIVATIONS = ("elu", "relu6", "silu", "swish", "mish", "tanh", "softplus")
# Classes whose activations belong to a gate (squeeze and excitation).
GATES = ("squeezeexcit", "semodule")
# Where torchvision, timm and transformers keep their classifier.
HEADS = ("classifier", "score", "fc", "heads", "head", "out_proj", "last_linear")
BATCH_NORM_DIMS = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
PACKAGE = __name__.rpartition(".")[0] + "."


@dataclass(frozen=True)
class FoundSite:
    """A place for dropout in a hidden layer.

    Attributes:
        name: Name of the layer there.
        layer: An activation, or a dropout of the model's own.
        features: Number of channels, if it is certain.
        dims: Number of dimensions after the channels.
        time: Whether the last dimension is time.
    """

    name: str
    layer: nn.Module
    features: int | None
    dims: int
    time: bool


def foreign_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a model with their names, except the insides of layers of `regain`."""
    inside: tuple[str, ...] = ()
    for name, layer in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if type(layer).__module__.startswith(PACKAGE):
            inside = (*inside, f"{name}.")
        yield name, layer


def is_activation(layer: nn.Module) -> bool:
    """Whether a layer is an activation of a hidden layer, by the name of its class."""
    name = type(layer).__name__.lower().removesuffix("activation")
    return name.endswith(ACTIVATIONS) and not any(layer.children())


def activations(model: nn.Module, head: nn.Module | None) -> list[FoundSite]:
    """List the activations of hidden layers: not those of gates, nor after the head in sequence."""
    found = []
    for site in sites(model, is_activation):
        parent = type(model.get_submodule(site.name.rpartition(".")[0])).__name__.lower()
        behind = head is not None and _is_behind(model, site.layer, head)
        if not behind and not any(gate in parent for gate in GATES):
            found.append(site)
    return found


def sites(model: nn.Module, choose: Callable[[nn.Module], bool]) -> list[FoundSite]:
    """Describe the places of some layers by the weighted layer that was made before each.

    The order in which layers are called cannot be seen without an input. A layer that is made
    before all weighted ones is described by the first of these.
    """
    layers = list(foreign_layers(model))
    weighted = [layer for _, layer in layers if _dims(layer) is not None]
    found, before = [], weighted[0] if weighted else None
    for name, layer in layers:
        if _dims(layer) is not None:
            before = layer
        elif choose(layer):
            dims = (_dims(before) if before is not None else 0) or 0
            time = isinstance(before, nn.Conv1d)
            found.append(FoundSite(name, layer, _features(model, layer), dims, time))
    return found


def _dims(layer: nn.Module) -> int | None:
    """Return the number of dimensions after the channels; None where a layer does not say."""
    if isinstance(layer, _ConvNd):
        return len(layer.kernel_size)
    return 0 if isinstance(layer, nn.Linear) else None


def dims_before(model: nn.Module, layer: nn.Module) -> int:
    """Return the number of dimensions after the channels of the layer before another one."""
    return sites(model, lambda other: other is layer)[0].dims


def _features(model: nn.Module, layer: nn.Module) -> int | None:
    """Return the number of channels of a layer's input, if its place in a sequence shows it."""
    for parent in model.modules():
        members = list(parent.children())
        if isinstance(parent, nn.Sequential) and layer in members:
            for before in reversed(members[: members.index(layer)]):
                if isinstance(before, _ConvNd):
                    return before.out_channels
                if isinstance(before, nn.Linear):
                    return before.out_features
                if not isinstance(before, _BatchNorm) and not is_activation(before):
                    return None
    return None


def _is_behind(model: nn.Module, layer: nn.Module, head: nn.Module) -> bool:
    members = next(
        (
            children
            for parent in model.modules()
            if isinstance(parent, nn.Sequential)
            and {layer, head} <= set(children := list(parent.children()))
        ),
        [head],
    )
    return layer in members and members.index(layer) > members.index(head)


def head_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Find the last linear layer, the classifier; None if the model has none that is known.

    It is the last one in what timm's `get_classifier` returns, or in a part with one of the names
    that torchvision, timm and transformers use; otherwise the layer of the model that was made
    last, if it is linear.
    """
    names = {layer: name for name, layer in model.named_modules()}
    getter = getattr(model, "get_classifier", None)
    parts = [getter()] if callable(getter) else [getattr(model, name, None) for name in HEADS]
    for part in parts:
        inside = list(part.modules()) if isinstance(part, nn.Module) else []
        linear = [layer for layer in inside if isinstance(layer, (nn.Linear, _ConvNd))]
        if linear:
            return names[linear[-1]], linear[-1]
    with_parameters = [layer for layer in names if [*layer.parameters(recurse=False)]]
    last = with_parameters[-1] if with_parameters else None
    # A body of transformers ends in its pooler.
    if callable(getter) or hasattr(model, "config") or not isinstance(last, nn.Linear):
        return None
    return names[last], last


def input_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Find the first convolution, linear layer or embedding of a model."""
    kinds = (_ConvNd, nn.Linear, nn.Embedding)
    layers = foreign_layers(model)
    return next(((name, layer) for name, layer in layers if isinstance(layer, kinds)), None)


def own_dropouts(model: nn.Module, head: nn.Module | None) -> dict[str, Role]:
    """Find the dropout layers of a model, PyTorch's and those of other libraries, and their roles.

    A dropout beside the classifier is that of the head; one in a layer called something with
    "attention" is that of the probabilities, except after the projection.
    """
    found: dict[str, Role] = {}
    layers = list(foreign_layers(model))
    parents = {name: name.rpartition(".")[0] for name, _ in layers}
    for name, layer in layers:
        if rate_name(layer) is not None:
            kind = type(layer).__name__.lower()
            parent = type(model.get_submodule(parents[name])).__name__.lower()
            own = name.rpartition(".")[2].lower()
            if isinstance(layer, DropPath) or "path" in kind or "stochasticdepth" in kind:
                found[name] = "path"
            elif "patch" in kind or "token" in kind:
                found[name] = "tokens"
            elif isinstance(layer, AttentionDropout) or _is_attention(own, parent):
                found[name] = "attention"
            else:
                found[name] = "hidden"
    if head is not None:
        leaves = [
            (name, layer)
            for name, layer in layers
            if not any(layer.children()) and not isinstance(layer, (nn.Identity, nn.Flatten))
        ]
        place = [layer for _, layer in leaves].index(head)
        parent_of_head = parents[leaves[place][0]]
        in_order = isinstance(model.get_submodule(parent_of_head), nn.Sequential)
        before = [name for name, _ in leaves[max(0, place - 1) : place]]
        # DistilBert makes it after the classifier.
        after = [] if in_order else [name for name, _ in leaves[place + 1 : place + 2]]
        after = [name for name in after if parents[name] == parent_of_head]
        beside = next((name for name in (*before, *after) if found.get(name) == "hidden"), None)
        if beside is not None:
            found[beside] = "head"
    return found


def _is_attention(own: str, parent: str) -> bool:
    named = "attn" in own or "attention" in own
    return named or ("attention" in parent and not own.startswith(("proj", "out", "resid")))


def rate_name(layer: nn.Module) -> str | None:
    """Return the name of the rate of a dropout layer; None if the layer is none."""
    if isinstance(layer, (_DropoutNd, DropoutLayer)):
        return "p"
    name = type(layer).__name__.lower()
    if any(layer.children()) or not ("drop" in name or "stochasticdepth" in name):
        return None
    return next((rate for rate in RATES if is_rate(getattr(layer, rate, None))), None)


def is_rate(value: object) -> bool:
    """Whether a value is a number, as a rate is."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
