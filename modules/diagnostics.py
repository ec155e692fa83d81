"""Diagnostics of a trained model: variance shift at batch norms, dead units."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from .inference import modes_kept, moving_norms

_RELU: frozenset[Any] = frozenset(
    (F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
)


class _Moments:
    """Mean and variance of each channel over all added batches, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        last = x.movedim(1, -1)
        if mask is not None:
            valid = mask.view(mask.shape[0], *(1,) * (x.dim() - 3), mask.shape[1])
            last = last[valid.expand(last.shape[:-1])]
        rows = last.reshape(-1, x.shape[1]).double()
        if not len(rows):
            return
        # Chan, Golub & LeVeque (1979).
        total = self.count + len(rows)
        mean = rows.mean(0)
        delta = mean - self.mean
        self.squares = self.squares + (rows - mean).square().sum(0)
        self.squares = self.squares + delta.square() * (self.count * len(rows) / total)
        self.mean = self.mean + delta * (len(rows) / total)
        self.count = total


def variance_shift(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> dict[str, float]:
    """Return the ratio of input variance in evaluation to running variance for each batch norm.

    Dropout before a batch norm increases the running variance, but not the variance in evaluation:
    the ratio is v / ((c**2 + v) / (1 - p) - c**2) for inputs of mean c and variance v (Li et al.
    2019). It is 1 if both agree.

    Args:
        model: The model; its modes and statistics are not changed.
        batches: Inputs of the model.
        forward: What is called with each batch; the model itself if None.

    Returns:
        The ratio of each batch norm by its name, averaged over the channels.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> round(variance_shift(norm, [torch.tensor([[1.0], [3.0]])])[""], 3)
        1.0
    """
    moments: dict[str, _Moments] = {}
    names = {norm: name for name, norm in model.named_modules()}
    norms: dict[str, _NormBase] = {names[norm]: norm for norm in moving_norms(model)}
    handles = []

    def watch(name: str, called: nn.Module) -> None:
        moments[name] = _Moments()

        def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            mask = inputs[1] if len(inputs) > 1 else named.get("mask")
            moments[name].add(inputs[0], mask)

        handles.append(called.register_forward_pre_hook(before, with_kwargs=True))

    for name, norm in norms.items():
        watch(name, norm)
    try:
        _run(model, batches, forward)
    finally:
        for handle in handles:
            handle.remove()
    shifts = {}
    for name, found in moments.items():
        if found.count:
            variance = torch.as_tensor(found.squares) / found.count
            running, eps = norms[name].running_var, norms[name].eps
            assert running is not None
            # With eps, as in the norm: the ratio of a constant channel is 1.
            shifts[name] = ((variance + eps) / (running.double() + eps)).mean().item()
    return shifts


class _Activations(TorchFunctionMode):
    """Records the channels with a positive output of each ReLU, by the calling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[str, Tensor] = {}
        # Names of the active layers, each with the number of ReLUs that it has called.
        self.stack: list[tuple[str, int]] = [("", 0)]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # `nn.ReLU6` calls `hardtanh`.
        clipped = func is F.hardtanh and kwargs is not None and kwargs.get("min_val") == 0
        if (func in _RELU or clipped) and result.dim() > 1:
            name, calls = self.stack[-1]
            self.stack[-1] = (name, calls + 1)
            key = name if not calls else f"{name}#{calls + 1}"
            positive = (result > 0).transpose(0, 1).flatten(1).any(1)
            self.alive[key] = positive | self.alive.get(key, torch.zeros_like(positive))
        return result


def dead_units(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> dict[str, float]:
    """Return the fraction of units that a ReLU sets to zero in every example (Lu et al. 2020).

    A unit is a channel (dimension 1). Both `nn.ReLU` and calls such as `x.relu()` are included. A
    call is named after the calling layer; the second call of a layer is `NAME#2`.

    Args:
        model: The model; its modes are not changed.
        batches: Inputs of the model.
        forward: What is called with each batch; the model itself if None.

    Returns:
        For each ReLU, by name, the fraction of dead units in [0, 1].

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> dead_units(model, [torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, -3.0]])])
        {'0': 0.5}
    """
    watched = _Activations()
    handles = []

    def enter(layer: nn.Module, _: Any) -> None:
        watched.stack.append((names[layer], 0))

    def leave(*_: Any) -> None:
        watched.stack.pop()

    names = {layer: name for name, layer in model.named_modules()}
    for layer in names:
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        with watched:
            _run(model, batches, forward)
    finally:
        for handle in handles:
            handle.remove()
    return {name: 1.0 - alive.double().mean().item() for name, alive in watched.alive.items()}


@torch.no_grad()
def _run(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None) -> None:
    with modes_kept(model):
        model.eval()
        for batch in batches:
            (forward or model)(batch)
