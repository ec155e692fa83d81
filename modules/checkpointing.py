"""Gradient checkpointing: less memory for more time, with correct layer state."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(layer: nn.Module, *inputs: Any, call: Callable[..., Any] | None = None) -> Any:
    """Call a layer without saving its activations; the backward pass calls it again.

    Training takes about a third more time, and the activation memory of one layer at a time (Chen
    et al. 2016). The second call repeats the first: random masks are the same, and buffers, such as
    the running statistics of batch norm, are updated only once. With `torch.utils.checkpoint`
    itself the layers of this library draw the same masks too, but running statistics are updated
    twice.

    Args:
        layer: The layer.
        inputs: Inputs of the layer.
        call: Called with the inputs; the layer itself if None.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        >>> recomputed(layer, torch.randn(4, 3)).sum().backward()
        >>> layer[1].num_batches_tracked.item()
        1
    """
    buffers = _Buffers(layer)
    return checkpoint(call or layer, *inputs, use_reentrant=False, context_fn=buffers.contexts)


class _Buffers:
    """The buffers of a layer at the start of its first call."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.first: list[tuple[nn.Module, str, Tensor]] = []

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first and the second call."""
        return self._recorded(), _Restored(self.first)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        self.first += [
            (module, name, buffer.clone())
            for module in self.layer.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        yield


class _Restored(AbstractContextManager[None]):
    """Replaces the buffers during the second call, once for each backward pass."""

    def __init__(self, first: list[tuple[nn.Module, str, Tensor]]) -> None:
        self.first = first
        self.now: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        # Replace the buffers by other tensors: the graph of the first call may hold them, and fails
        # if they change in place.
        self.now = [(module, name, getattr(module, name)) for module, name, _ in self.first]
        for module, name, buffer in self.first:
            # Clone: there may be another backward pass.
            setattr(module, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for module, name, buffer in self.now:
            setattr(module, name, buffer)


class CheckpointedBlock(nn.Module):
    """Base of network blocks that are `recomputed` in training if `checkpointing` is true.

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
