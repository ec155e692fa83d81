"""Gradient checkpointing: memory for time, with the state of the layers left right."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(layer: nn.Module, *inputs: Any, call: Callable[..., Any] | None = None) -> Any:
    """Call a layer and keep none of its activations: the backward pass calls it once more.

    Training takes about a third more time and the memory of one layer at a time (Chen et al. 2016).
    The second call is the first one again: the random masks are the same, and buffers, such as the
    running statistics of batch norm, are those of before and do not move twice. Under
    `torch.utils.checkpoint` itself our layers draw the same masks too, but running statistics move
    twice.

    Args:
        layer: The layer.
        inputs: Of the layer.
        call: What is called with the inputs, if not the layer itself.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        >>> recomputed(layer, torch.randn(4, 3)).sum().backward()
        >>> layer[1].num_batches_tracked.item()
        1
    """
    buffers = _Buffers(layer)
    return checkpoint(call or layer, *inputs, use_reentrant=False, context_fn=buffers.contexts)


class _Buffers:
    """The buffers that the first call of a layer began with."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.first: list[tuple[nn.Module, str, Tensor]] = []

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what the first call runs in, and what the second one does."""
        return self._kept(), _Restored(self.first)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        self.first += [
            (module, name, buffer.clone())
            for module in self.layer.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        yield


class _Restored(AbstractContextManager[None]):
    """Puts buffers in the place of the present ones; once for each backward pass."""

    def __init__(self, first: list[tuple[nn.Module, str, Tensor]]) -> None:
        self.first = first
        self.now: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        # Other tensors stand in for the buffers: the graph of the first call may hold these, and
        # would mind being changed.
        self.now = [(module, name, getattr(module, name)) for module, name, _ in self.first]
        for module, name, buffer in self.first:
            # The first ones are kept for another backward pass.
            setattr(module, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for module, name, buffer in self.now:
            setattr(module, name, buffer)


class CheckpointedBlock(nn.Module):
    """Base of a block of a network that is `recomputed` in training where `checkpointing` is set.

    Example:
        >>> class Block(CheckpointedBlock):
        ...     def forward(self, x):
        ...         return x.relu()
        >>> block = Block()
        >>> block.checkpointing = True
        >>> block(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(self, *inputs, call=super().__call__)
        return super().__call__(*inputs)
