"""What layers do differently while PyTorch records or transforms their operations."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy

Forward = TypeVar("Forward", bound=Callable[..., Any])


def transformed() -> bool:
    """Whether operations are compiled, exported, traced by `torch.jit` or under `torch.func`.

    Then random numbers cannot be drawn in place, and no branch can depend on a value.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def is_proxy(x: object) -> bool:
    """Whether `torch.fx` traces a model, and `x` stands for a tensor."""
    return isinstance(x, Proxy)


def recordable(forward: Forward) -> Forward:
    """Let `torch.fx` record a layer as one step, as it does with PyTorch's own layers.

    What it records is the layer itself, which follows `train()`, `eval()` and a change of its `p`.
    A layer that is traced by itself, outside of a model, has no name by which the graph could call
    it; its operations are recorded as they are.

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
