"""Support of layers for torch.compile, torch.export, torch.fx, torch.jit and torch.func."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy

Forward = TypeVar("Forward", bound=Callable[..., Any])


def transformed() -> bool:
    """Whether operations are compiled, exported, traced by `torch.jit` or under `torch.func`.

    Random numbers then cannot be drawn in place, and control flow cannot depend on values.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def is_proxy(x: object) -> bool:
    """Whether `x` is the proxy of a tensor in a `torch.fx` trace."""
    return isinstance(x, Proxy)


def recordable(forward: Forward) -> Forward:
    """Let `torch.fx` record a call of a layer as one step, as for PyTorch's layers.

    The graph calls the layer itself, so that `train()`, `eval()` and changes of its `p` have an
    effect. A layer that is traced alone, without a model, has no name in the graph; its operations
    are recorded instead.

    Args:
        forward: The layer's `forward`.
    """

    @functools.wraps(forward)
    def call(layer: Any, *inputs: Any, **named: Any) -> Any:
        if inputs and is_proxy(inputs[0]):
            tracer = inputs[0].tracer
            name = tracer.path_of_module(layer)
            if name:
                return tracer.create_proxy("call_module", name, inputs, named)
        return forward(layer, *inputs, **named)

    return call  # type: ignore[return-value]


def record_function(function: Callable[..., Tensor], x: Any, *inputs: Any) -> Tensor:
    """Let `torch.fx` record a call of a function as one step.

    Args:
        function: The function.
        x: Its first input, a `torch.fx.Proxy`.
        inputs: Its other inputs.
    """
    recorded: Tensor = x.tracer.create_proxy("call_function", function, (x, *inputs), {})
    return recorded
