"""Gradient checkpointing: memory for time, with the state of the layers left right."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.dropout import DropoutLayer


def recomputed(layer: nn.Module, *inputs: Any, call: Callable[..., Any] | None = None) -> Any:
    """Call a layer and keep none of its activations: the backward pass calls it once more.

    Training takes about a third more time and the memory of one layer at a time (Chen et al. 2016).
    The second call is the first one again: the random masks are the same, and buffers, such as the
    running statistics of batch norm, are those of before and do not move twice.

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
    state = _State(layer)
    return checkpoint(call or layer, *inputs, use_reentrant=False, context_fn=state.contexts)


class _State:
    """What the first call of a layer began with: its buffers, and generators of its own."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.buffers: list[tuple[nn.Module, str, Tensor]] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what the first call runs in, and what the second one does."""
        return self.taken(), self.given_back()

    def _own_generators(self) -> list[torch.Generator]:
        drops = (m for m in self.layer.modules() if isinstance(m, DropoutLayer))
        return [drop.generator for drop in drops if drop.generator is not None]

    @contextmanager
    def taken(self) -> Iterator[None]:
        self.buffers = [
            (module, name, buffer.clone())
            for module in self.layer.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.generators = [(one, one.get_state()) for one in self._own_generators()]
        known = [one for one, _ in self.generators]
        yield
        for one in self._own_generators():
            if one not in known:
                # Made at the first call, as `LayerDrop` does.
                fresh = torch.Generator(one.device).manual_seed(one.initial_seed())
                self.generators.append((one, fresh.get_state()))

    @contextmanager
    def given_back(self) -> Iterator[None]:
        # Other tensors stand in for the buffers: the graph of the first call may hold these, and
        # would mind being changed.
        now = [(module, name, getattr(module, name)) for module, name, _ in self.buffers]
        states = [(one, one.get_state()) for one in self._own_generators()]
        for module, name, buffer in self.buffers:
            setattr(module, name, buffer)
        for generator, seed in self.generators:
            generator.set_state(seed)
        try:
            yield
        finally:
            for module, name, buffer in now:
                setattr(module, name, buffer)
            for generator, seed in states:
                generator.set_state(seed)


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
