"""Repeated draws under gradient checkpointing, which calls each layer twice.

`torch.utils.checkpoint` saves and restores only the default random number generators. The functions
here also repeat draws from other generators, and restore other state of the first call.

Values are stored on the PyTorch object of one checkpointed call, which the autograd graph owns:
they live as long as the graph. That object is found on the Python stack. All uses of private parts
of `torch.utils.checkpoint` are in this file.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, GeneratorType
from typing import Any, TypeVar

import torch
from torch.utils import checkpoint as checkpointing

Value = TypeVar("Value")

FILE = checkpointing.__file__
# Attribute of PyTorch's object that holds the stored values.
_ATTRIBUTE = "_regain_first_calls"


class _FirstCalls:
    """Values stored by the layers of one checkpointed call, in order."""

    def __init__(self) -> None:
        self.values: list[tuple[object, Any]] = []
        # Number of values that each backward pass has taken.
        self.taken: dict[int, int] = {}

    def take(self, owner: object, backward_pass: int) -> Any:
        index = self.taken.get(backward_pass, 0)
        self.taken[backward_pass] = index + 1
        if index >= len(self.values) or self.values[index][0] is not owner:
            raise RuntimeError(
                f"gradient checkpointing: the second call of {_name(owner)} finds no first "
                "call. Either the checkpointed function does not call the same layers in the same "
                "order both times, or composable checkpoints are nested, which is not supported"
            )
        return self.values[index][1]


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


def _calls_of(region: Any) -> _FirstCalls:
    calls = getattr(region, _ATTRIBUTE, None)
    if calls is None:
        calls = _FirstCalls()
        setattr(region, _ATTRIBUTE, calls)
    return calls


def _reentrant_forward(frame: FrameType) -> Any:
    return frame.f_locals["ctx"]


def _forward(frame: FrameType) -> Any:
    # The generator is suspended while the checkpointed function runs.
    running = frame.f_locals.get("gen")
    if isinstance(running, GeneratorType) and running.gi_frame is not None:
        return running.gi_frame.f_locals.get("new_frame")
    return None


def _hidden_forward() -> Any:
    """Find a call of PyTorch's composable checkpoint, which is not on the stack."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__qualname__", None) != HOOK:
        return None
    cells = dict(zip(hooks[0].__code__.co_freevars, hooks[0].__closure__, strict=True))
    return cells["frame"].cell_contents


def _reentrant_backward(frame: FrameType) -> tuple[Any, int]:
    return frame.f_locals["ctx"], torch._C._current_graph_task_id()


def _backward(frame: FrameType) -> tuple[Any, int]:
    return frame.f_locals["frame"], frame.f_locals["gid"]


# The hook that packs the saved tensors of a checkpointed call.
HOOK = "_checkpoint_hook.__init__.<locals>.pack_hook"
# Functions of torch.utils.checkpoint by name: those that run a checkpointed function for the first
# time, and those that run it for the second time.
FIRST: dict[str, Callable[[FrameType], Any]] = {
    "CheckpointFunction.forward": _reentrant_forward,
    "_checkpoint_impl": _forward,
    # Before PyTorch 2.14.
    "checkpoint": _forward,
}
AGAIN: dict[str, Callable[[FrameType], tuple[Any, int]]] = {
    "CheckpointFunction.backward": _reentrant_backward,
    "_checkpoint_hook.__init__.<locals>.unpack_hook": _backward,
}


def may_be_checkpointed() -> bool:
    """Whether a checkpointed function may be on the stack; much faster than to search the stack.

    In a reentrant checkpoint the first call runs without gradients; in others it has hooks for
    saved tensors. A second call runs in a backward pass or has such hooks. Checkpoints in compiled
    code are compiled by PyTorch and do not need the functions of this file.
    """
    return not torch.compiler.is_compiling() and (
        not torch.is_grad_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        or torch._C._current_graph_task_id() != -1
    )


# In compiled code it could not inspect the stack of each call.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def first_call(owner: object, value: Callable[[], Value]) -> tuple[Value, bool]:
    """Return `value()`, or in the second call of a checkpoint the value of the first call.

    Args:
        owner: Object that the value belongs to, the same in both calls.
        value: Called in the first call, and without a checkpoint. Its result is stored for the
            second call, so it must be a copy.

    Returns:
        The value, and whether this is the second call.

    Raises:
        RuntimeError: This is a second call, but the first call stored no value.

    Example:
        >>> first_call("layer", lambda: 3)
        (3, False)
    """
    if not may_be_checkpointed():
        return value(), False
    # Active checkpointed calls, the innermost first.
    regions = []
    frame: FrameType | None = sys._getframe(1)
    found, again = None, False
    while frame is not None:
        code = frame.f_code
        if code.co_filename == FILE:
            if code.co_qualname in AGAIN:
                region, backward_pass = AGAIN[code.co_qualname](frame)
                found, again = _calls_of(region).take(owner, backward_pass), True
                break
            if code.co_qualname in FIRST:
                regions.append(FIRST[code.co_qualname](frame))
        frame = frame.f_back
    if not again:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{_name(owner)} is called in a backward pass, and not by torch.utils.checkpoint: "
                "its first call cannot be repeated. Use torch.utils.checkpoint, outside of "
                "torch.compile, or use layers without their own generator"
            )
        found = value()
    hidden = _hidden_forward()
    if not any(region is hidden for region in regions):
        regions.append(hidden)
    for region in regions:
        # A nested checkpoint in a second call is new, and will have its own second call.
        if region is not None:
            _calls_of(region).values.append((owner, found))
    return found, again  # type: ignore[return-value]


@contextmanager
def repeated(generator: torch.Generator | None) -> Iterator[None]:
    """Repeat the draws of the first call in the second call of a checkpoint.

    Args:
        generator: The generator; a second call does not change its state. None is the default
            generator, which PyTorch restores itself.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> with repeated(generator):
        ...     x = torch.rand(2, generator=generator)
    """
    if generator is None or not may_be_checkpointed():
        yield
        return
    state, again = first_call(generator, generator.get_state)
    if not again:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
