"""Dropout layers attached to another layer: its parameters keep their names.

An attached layer is a child of the layer that it drops the input or output of, called by a hook, so
that schedules, `mc_dropout` and `named_modules` find it. Hooks are functions of this file: a model
with them can be copied and pickled.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from .dropout import Dropout, DropoutLayer

HANDLES = "_regain_handles"
PLAIN = "_regain_plain"
CLASS = "_regain_class"
ADDED = {"regain_input_dropout", "regain_dropout", "regain_drop_path", "regain_weight_dropout"}


class WeightDropout(Dropout):
    """Dropout of a weight, which one draw drops for the whole batch."""

    shared_draw = True


class DroppedLinear(nn.Linear):
    """A linear layer whose weights are dropped by an attached layer."""

    def forward(self, x: Tensor) -> Tensor:
        dropped: Any = self.regain_weight_dropout
        return F.linear(x, dropped(self.weight), self.bias)


def _drop_input(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.regain_input_dropout(inputs[0]), *inputs[1:])


def _drop_output(layer: Any, inputs: Any, output: Tensor) -> Any:
    return layer.regain_dropout(output)


def _drop_branch(layer: Any, inputs: Any, output: Tensor) -> Any:
    return layer.regain_drop_path(output)


def _activate(layer: Any, inputs: Any, output: Tensor) -> Any:
    return layer.act(layer.drop(output))


def attach_to_input(layer: nn.Module, added: nn.Module) -> None:
    """Let `added` drop what goes into a layer as its first input."""
    layer.add_module("regain_input_dropout", added.train(layer.training))
    _keep(layer, layer.register_forward_pre_hook(_drop_input))


def attach_to_output(layer: nn.Module, added: nn.Module) -> None:
    """Let `added` drop what a layer returns."""
    layer.add_module("regain_dropout", added.train(layer.training))
    _keep(layer, layer.register_forward_hook(_drop_output))


def attach_to_branch(layer: nn.Module, added: nn.Module) -> None:
    """Let `added` drop the residual branch that ends with a layer."""
    layer.add_module("regain_drop_path", added.train(layer.training))
    _keep(layer, layer.register_forward_hook(_drop_branch))


def attach_to_weight(layer: nn.Linear, p: float) -> None:
    """Let the weights of a linear layer be dropped."""
    # The class changes instead of the weight's name, which `WeightDrop` around it would change.
    vars(layer)[CLASS] = type(layer)
    layer.__class__ = DroppedLinear
    layer.add_module("regain_weight_dropout", WeightDropout(p).train(layer.training))


def attach_activation(norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
    """Let dropout and activation follow a norm, as in timm's `BatchNormAct2d`."""
    norm.add_module("drop", drop)
    norm.add_module("act", act)
    _keep(norm, norm.register_forward_hook(_activate))


def _keep(layer: nn.Module, handle: Any) -> None:
    # Unpickled together with its hooks, a handle keeps the numbers of later hooks from theirs.
    vars(layer).setdefault(HANDLES, []).append(handle)


def remember(new: nn.Module, old: nn.Module) -> None:
    """Keep the structure of a replaced layer, without its values, for `restore`."""
    # Not an attribute set as usual: the layer would become a child.
    vars(new)[PLAIN] = deepcopy(old).to("meta")


def restore(model: nn.Module) -> None:
    """Detach all that was attached, and put back the layers that were replaced."""
    back: dict[nn.Module, nn.Module] = {}
    for layer in list(model.modules()):
        if type(layer) is DroppedLinear:
            layer.__class__ = vars(layer).pop(CLASS)
        for handle in vars(layer).pop(HANDLES, ()):
            handle.remove()
        for name in ADDED & set(layer._modules):
            delattr(layer, name)
    for layer in list(model.modules()):
        plain = vars(layer).get(PLAIN)
        if plain is not None:
            back[layer] = _filled(plain, layer)
    replace(model, back)


def can_be_restored(name: str, layer: nn.Module) -> bool:
    """Whether `restore` removes a layer of this name or puts another one back for it."""
    added = name.rpartition(".")[2] in ADDED
    return added or PLAIN in vars(layer) or type(layer) is DroppedLinear


def _filled(plain: nn.Module, layer: nn.Module) -> nn.Module:
    """Give a layer of structure `plain` the values of the layer that replaced it."""
    held = layer.state_dict(keep_vars=True)
    state = {name: held[name] for name in plain.state_dict()}
    take_over(plain, state)
    if isinstance(layer, DropoutLayer) and isinstance(plain, _DropoutNd):
        plain.p = layer.p
    return plain.train(layer.training)


def take_over(layer: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Give a layer the parameters and buffers of another one themselves, not copies.

    An optimizer keeps them, and they stay trainable or not.
    """
    trainable = [(one, one.requires_grad) for one in state.values()]
    layer.load_state_dict(state, strict=strict, assign=True)
    for one, needs_gradient in trainable:
        one.requires_grad_(needs_gradient)


def replace(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Replace layers of a model, each in all places where it is used."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in layers:
                parent._modules[name] = layers[child]
