"""Gradient checkpointing calls a layer twice: the second call must draw what the first one drew.

`torch.utils.checkpoint` saves and restores the default random number generators alone. Here a layer
also repeats the draws of generators of its own, and whatever else its first call began with.

Values are kept on the object of PyTorch that stands for one checkpointed call, which the autograd
graph owns: they live as long as the graph does. That object is found on the Python stack. All that
is used of PyTorch's private parts stands in this file.
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
# Where the stored values are on PyTorch's object.
_ATTRIBUTE = "_regain_first_calls"


class _FirstCalls:
    """Values of one checkpointed call, in the order of the calls that stored them."""

    def __init__(self) -> None:
        self.values: list[tuple[object, Any]] = []
        # By the backward pass that calls again: how many values it has taken.
        self.taken: dict[int, int] = {}

    def take(self, owner: object, backward_pass: int) -> Any:
        index = self.taken.get(backward_pass, 0)
        self.taken[backward_pass] = index + 1
        if index >= len(self.values) or self.values[index][0] is not owner:
            raise RuntimeError(
                f"gradient checkpointing: the second call of {_name(owner)} finds no first "
                "call. Either the checkpointed function does not call the same layers in the same "
                "order both times, or one composable checkpoint within another hides its calls"
            )
        return self.values[index][1]


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


def _of(region: Any) -> _FirstCalls:
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
    """Find a checkpointed call that is not on the stack: of PyTorch's composable checkpoint."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__qualname__", None) != HOOK:
        return None
    cells = dict(zip(hooks[0].__code__.co_freevars, hooks[0].__closure__, strict=True))
    return cells["frame"].cell_contents


def _reentrant_backward(frame: FrameType) -> tuple[Any, int]:
    return frame.f_locals["ctx"], torch._C._current_graph_task_id()


def _backward(frame: FrameType) -> tuple[Any, int]:
    return frame.f_locals["frame"], frame.f_locals["gid"]


# What packs a tensor that a checkpointed call would keep.
HOOK = "_checkpoint_hook.__init__.<locals>.pack_hook"
# Functions of torch.utils.checkpoint by name: those that run a checkpointed function for the first
# time, and those that run it again.
FIRST: dict[str, Callable[[FrameType], Any]] = {
    "CheckpointFunction.forward": _reentrant_forward,
    "_checkpoint_impl": _forward,
    # PyTorch before 2.14.
    "checkpoint": _forward,
}
AGAIN: dict[str, Callable[[FrameType], tuple[Any, int]]] = {
    "CheckpointFunction.backward": _reentrant_backward,
    "_checkpoint_hook.__init__.<locals>.unpack_hook": _backward,
}


def may_be_checkpointed() -> bool:
    """Whether a checkpointed function may be on the stack; far quicker than to look for one.

    PyTorch itself compiles a checkpoint.

    The first call of a reentrant checkpoint runs without gradients, the others have hooks for what
    the graph keeps, and a second call runs in a backward pass or has such hooks.
    """
    return not torch.compiler.is_compiling() and (
        not torch.is_grad_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        or torch._C._current_graph_task_id() != -1
    )


# Compiled, it would not see the stack of each call.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def first_call(owner: object, value: Callable[[], Value]) -> tuple[Value, bool]:
    """Return `value()`, or what it was at the first call if this is the second one.

    Args:
        owner: Whose value it is: the same object at both calls.
        value: Called at the first call, and where nothing is checkpointed. What it returns is kept
            for the second call, so it must be a copy.

    Returns:
        The value, and whether this is the second call.

    Raises:
        RuntimeError: This is a second call, and there is no value of the first one.

    Example:
        >>> first_call("anybody", lambda: 3)
        (3, False)
    """
    if not may_be_checkpointed():
        return value(), False
    # Checkpointed calls that are on their way, the innermost first.
    regions = []
    frame: FrameType | None = sys._getframe(1)
    found, again = None, False
    while frame is not None:
        code = frame.f_code
        if code.co_filename == FILE:
            if code.co_qualname in AGAIN:
                region, backward_pass = AGAIN[code.co_qualname](frame)
                found, again = _of(region).take(owner, backward_pass), True
                break
            if code.co_qualname in FIRST:
                regions.append(FIRST[code.co_qualname](frame))
        frame = frame.f_back
    if not again:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{_name(owner)} is called in a backward pass, and not by torch.utils.checkpoint "
                "itself: its first call cannot be repeated. Use torch.utils.checkpoint, and not "
                "within torch.compile, or layers without a generator of their own"
            )
        found = value()
    hidden = _hidden_forward()
    if not any(region is hidden for region in regions):
        regions.append(hidden)
    for region in regions:
        # A region within a second call is a new one, with a second call of its own.
        if region is not None:
            _of(region).values.append((owner, found))
    return found, again  # type: ignore[return-value]


@contextmanager
def repeated(generator: torch.Generator | None) -> Iterator[None]:
    """Draw from a generator what the first call drew, if this is the second one.

    Args:
        generator: A second call leaves it in the state in which it found it. None is the default
            generator, which PyTorch itself takes care of.

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
