"""The changes of `convert`, planned first, so that an error leaves the model unchanged."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace as with_values
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attached import (
    attach_activation,
    attach_to_branch,
    attach_to_input,
    attach_to_output,
    attach_to_weight,
    remember,
    replace,
    take_over,
)
from .branches import branch_ends
from .examplenorm import MaskedGroupNorm
from .foreign import (
    BATCH_NORM_DIMS,
    PACKAGE,
    FoundSite,
    activations,
    dims_before,
    foreign_layers,
    head_of,
    input_layer,
    own_dropouts,
    rate_name,
    sites,
)
from .regularization import Regularization

log = logging.getLogger(__name__)

DEFAULT = Regularization()
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Plan:
    """The changes of one conversion.

    Args:
        model: The model; it stays as it is until `carry_out`.
        reg: What it is to be regularized by.

    Raises:
        ValueError: The model has no layer for a setting of `reg`.
    """

    def __init__(self, model: nn.Module, reg: Regularization) -> None:
        self.model = model
        self.reg = reg
        self.kind = type(model).__name__
        self.head = head_of(model)
        self.own = own_dropouts(model, self.head[1] if self.head else None)
        self.changes: dict[str, list[str]] = {}
        self.steps: list[Callable[[], Any]] = []
        self._plan_norms()
        # Before attached layers, which would be taken for the model's own.
        self._plan_hidden()
        self._plan_attention()
        self._plan_head()
        self._plan_input()
        self._plan_tokens()
        self._plan_branches()
        self._plan_function_rates()
        self._plan_weights()

    def carry_out(self) -> None:
        """Make the changes."""
        for step in self.steps:
            step()

    def _report(self, change: str, name: str) -> None:
        self.changes.setdefault(change, []).append(name)

    def _add(self, change: str, name: str, step: Callable[[], Any]) -> None:
        self._report(change, name)
        self.steps.append(step)

    def _layer(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _named(self, role: str) -> list[str]:
        return [name for name, found in self.own.items() if found == role]

    def _refuse(self, setting: str, reason: str) -> ValueError:
        value = getattr(self.reg, setting)
        return ValueError(f"{setting}={value} {reason} in {self.kind}; leave it out")

    def _plan_norms(self) -> None:
        if not self.reg.normalized:
            return
        norms = [
            (name, layer)
            for name, layer in foreign_layers(self.model)
            if isinstance(layer, _BatchNorm) and not type(layer).__module__.startswith(PACKAGE)
        ]
        if not norms:
            log.warning(
                f"normalization={self.reg.normalization} changes nothing in {self.kind}: it has no "
                "batch norm, and other norms stay as they are"
            )
        dropped = False
        for name, old in norms:
            new = self._norm_for(name, old)
            # A subclass changes: ranks synchronize `nn.BatchNorm*` alone.
            if type(new) is type(old):
                values = {"momentum": new.momentum, "eps": new.eps}
                self.steps.append(partial(vars(old).update, values))
                continue
            kept = _has_statistics(new)
            dropped = dropped or not kept
            change = f"{type(old).__name__} becomes {type(new).__name__}"
            self._add(change, name, partial(_swap, self.model, name, new, kept))
        if dropped:
            log.warning(
                f"normalization={self.reg.normalization} has no running statistics: the outputs of "
                f"the converted {self.kind} are not those of the original"
            )

    def _norm_for(self, name: str, old: _BatchNorm) -> nn.Module:
        dims = BATCH_NORM_DIMS.get(type(old))
        if type(old) is nn.SyncBatchNorm:
            dims = dims_before(self.model, old)
        elif {"drop", "act"} == set(old._modules) and isinstance(old, nn.BatchNorm2d):
            dims = 2
        if dims is None:
            raise self._refuse(
                "normalization", f"cannot take the place of {name}, a {type(old).__name__},"
            )
        if old.running_mean is None:
            raise self._refuse(
                "normalization", f"cannot take the place of {name}, which tracks no statistics,"
            )
        reg = self.reg
        keep: dict[str, Any] = {}
        if reg.norm_eps == DEFAULT.norm_eps:
            keep["norm_eps"] = old.eps
        if reg.norm_momentum == DEFAULT.norm_momentum:
            keep["norm_momentum"] = old.momentum
        new = with_values(reg, norm_affine=old.affine, **keep).norm_layer(old.num_features, dims)
        if isinstance(new, MaskedGroupNorm):
            return nn.GroupNorm(new.num_groups, old.num_features, new.eps, old.affine)
        return new

    def _plan_hidden(self) -> None:
        reg, hidden = self.reg, self._named("hidden")
        recurrent = [
            (name, layer)
            for name, layer in foreign_layers(self.model)
            if isinstance(layer, nn.RNNBase) and layer.num_layers > 1
        ]
        for name, layer in recurrent:
            self._set_attribute(name, layer, "dropout", reg.dropout)
        if not reg.dropout or reg.dropout_kind == "unit":
            for name in hidden:
                self._set_rate(name, reg.dropout)
        else:
            chosen = {self._layer(name) for name in hidden}
            for site in sites(self.model, chosen.__contains__):
                new = self._hidden_layer(site)
                step = partial(self._replace, site.name, new)
                self._add(f"{type(site.layer).__name__} becomes {new}", site.name, step)
        if not reg.dropout or hidden or recurrent:
            return
        found = activations(self.model, self.head[1] if self.head else None)
        if not found:
            raise self._refuse(
                "dropout",
                "finds no activation layer and no dropout layer (an activation that is called as a "
                "function cannot be found)",
            )
        for site in found:
            new = self._hidden_layer(site)
            step = partial(attach_to_output, site.layer, new)
            self._add(f"{new} after activations", site.name, step)

    def _hidden_layer(self, site: FoundSite) -> nn.Module:
        selu = isinstance(site.layer, nn.SELU)
        try:
            new = self.reg.dropout_layer(site.features or 1, site.dims, site.time, selu)
        except ValueError as error:
            raise ValueError(f"{self.kind}, {site.name}: {error}") from None
        if site.features is None and new.state_dict():
            raise self._refuse(
                "dropout_kind",
                f"needs a number of channels, which is not certain at {site.name}",
            )
        weight = next(self.model.parameters(), None)
        return new if weight is None else new.to(weight.device, weight.dtype)

    def _plan_attention(self) -> None:
        p = getattr(self.reg.attention_dropout_layer(), "p", 0.0)
        names = self._named("attention")
        for name in names:
            self._set_rate(name, p)
        functions = [
            (name, layer, rate)
            for name, layer in foreign_layers(self.model)
            for rate in _attention_rates(layer)
        ]
        for name, layer, rate in functions:
            self._set_attribute(name, layer, rate, p)
        if self.reg.attention_dropout and not names and not functions:
            raise self._refuse("attention_dropout", "finds no dropout of attention")

    def _plan_head(self) -> None:
        names = self._named("head")
        for name in names:
            self._set_rate(name, self.reg.head_dropout, " of the head")
        if not self.reg.head_dropout or names:
            return
        if self.head is None:
            raise self._refuse("head_dropout", "finds no linear layer that is its classifier")
        name, layer = self.head
        new = self.reg.head_dropout_layer()
        self._add(f"{new} before the head", name, partial(attach_to_input, layer, new))

    def _plan_input(self) -> None:
        if not self.reg.input_dropout:
            return
        first = input_layer(self.model)
        if first is None:
            raise self._refuse("input_dropout", "finds no first layer")
        name, layer = first
        if isinstance(layer, nn.Embedding):
            new = self.reg.words_dropout_layer()
            self._add(f"{new} after the embedding", name, partial(attach_to_output, layer, new))
        else:
            new = self.reg.input_dropout_layer()
            self._add(f"{new} at the input", name, partial(attach_to_input, layer, new))

    def _plan_tokens(self) -> None:
        names = self._named("tokens")
        for name in names:
            self._set_rate(name, self.reg.token_dropout)
        if self.reg.token_dropout and not names:
            raise self._refuse("token_dropout", "finds no layer that drops tokens")

    def _plan_branches(self) -> None:
        if not self.reg.drop_path:
            for name in self._named("path"):
                self._set_rate(name, 0.0)
            return
        ends = branch_ends(self.model)
        if not ends:
            raise self._refuse(
                "drop_path",
                "needs blocks whose residual branches are known (of ResNets and ViTs of "
                "torchvision, of encoders of transformers, or with a slot called drop_path), and "
                "finds none",
            )
        blocks = list(dict.fromkeys(end.block for end in ends))
        for end in ends:
            new = self.reg.drop_path_layer(blocks.index(end.block), len(blocks))
            change = f"DropPath, p up to {self.reg.drop_path}, in residual branches"
            if end.way == "attached":
                # By its name: a norm there is another one by then.
                self._add(change, end.name, partial(self._attach_to_branch, end.name, new))
            else:
                self._add(change, end.name, partial(self._replace, end.name, new, path=True))

    def _attach_to_branch(self, name: str, new: nn.Module) -> None:
        attach_to_branch(self._layer(name), new)

    def _plan_function_rates(self) -> None:
        p, found = self.reg.layer_drop, False
        copies: dict[int, Any] = {}
        for name, layer in foreign_layers(self.model):
            if rate_name(layer) is not None or isinstance(layer, nn.RNNBase):
                continue
            for rate in _rates(layer):
                if rate not in _attention_rates(layer):
                    found = found or _is_layer_drop(rate)
                    self._set_attribute(name, layer, rate, p if _is_layer_drop(rate) else 0.0)
            config: Any = vars(layer).get("config")
            values = {rate: p for rate in _rates(config) if _is_layer_drop(rate)}
            if values and id(config) not in copies:
                found = True
                copies[id(config)] = copy = deepcopy(config)
                vars(copy).update(values)
                self._report(f"layer drop in config set to {p}", name or self.kind)
            if id(config) in copies:
                # The user's object, which other models may share, stays as it is.
                self.steps.append(partial(setattr, layer, "config", copies[id(config)]))
        if p and not found:
            raise self._refuse("layer_drop", "finds no layer drop")

    def _plan_weights(self) -> None:
        p = self.reg.weight_drop
        if not p:
            return
        linear = [
            (name, layer)
            for name, layer in foreign_layers(self.model)
            # Of timm too, which has a class of the same name.
            if isinstance(layer, nn.Linear) and type(layer).__name__ == "Linear"
        ]
        if not linear:
            raise self._refuse("weight_drop", "finds no linear layer")
        for name, layer in linear:
            self._add(f"WeightDropout(p={p}) of weights", name, partial(attach_to_weight, layer, p))

    def _set_rate(self, name: str, p: float, of: str = "") -> None:
        layer = self._layer(name)
        rate = rate_name(layer)
        assert rate is not None
        if p or getattr(layer, rate):
            self._report(f"rate of {type(layer).__name__}{of} set to {p}", name)
        self.steps.append(partial(setattr, layer, rate, p))

    def _set_attribute(self, name: str, layer: nn.Module, rate: str, p: float) -> None:
        """Set a rate that a layer drops at by a function: schedules and MC dropout miss it."""
        if p or getattr(layer, rate):
            self._report(f"{rate} of {type(layer).__name__} set to {p}", name or self.kind)
        self.steps.append(partial(setattr, layer, rate, p))

    def _replace(self, name: str, new: nn.Module, path: bool = False) -> None:
        parent, _, own = name.rpartition(".")
        old = getattr(self._layer(parent), own)
        off = nn.Identity() if path and type(old).__name__ != "StochasticDepth" else deepcopy(old)
        if path and hasattr(off, "p"):
            off.p = 0.0
        remember(new, off)
        setattr(self._layer(parent), own, new.train(self._layer(parent).training))


def _is_layer_drop(rate: str) -> bool:
    return rate.lower().replace("_", "") == "layerdrop"


def _rates(holder: object) -> list[str]:
    """List the rates to drop among the attributes of an object."""
    values = getattr(holder, "__dict__", {})
    return [
        name
        for name, value in values.items()
        if "drop" in name.lower() and isinstance(value, float) and 0.0 <= value <= 1.0
    ]


def _attention_rates(layer: nn.Module) -> list[str]:
    """List the attributes that attention drops probabilities at by a function."""
    if "attention" not in type(layer).__name__.lower() or rate_name(layer) is not None:
        return []
    rates = _rates(layer)
    return [rate for rate in rates if "att" in rate.lower()] or rates


def _has_statistics(norm: nn.Module) -> bool:
    return any(name.endswith("running_mean") for name, _ in norm.named_buffers())


def _swap(model: nn.Module, name: str, new: nn.Module, kept: bool) -> None:
    """Put a norm in the place of a batch norm, with its parameters and, if `kept`, statistics."""
    old = model.get_submodule(name)
    state = old.state_dict(keep_vars=True)
    own = {key: value for key, value in state.items() if "." not in key}
    if not kept:
        own = {key: value for key, value in own.items() if key not in STATISTICS}
    take_over(new, own, strict=kept)
    if kept:
        remember(new, old)
    if set(old._modules) == {"drop", "act"}:
        attach_activation(new, old.get_submodule("drop"), old.get_submodule("act"))
    replace(model, {old: new.train(old.training)})
