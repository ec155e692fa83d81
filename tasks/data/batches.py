"""Examples in memory, and an iterator that gathers whole batches from them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

# Examples of similar length are grouped within this many batches.
POOL = 50


class Batch(NamedTuple):
    """One batch.

    Args:
        inputs: (batch, ...).
        labels: (batch,) class numbers.
        indices: (batch,) index of each example in its split.
        lengths: (batch,) lengths before padding; None if nothing was padded.
        weight: Loss weight that corrects for unequal batches per rank, which may differ by one
            example.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    lengths: Tensor | None = None
    weight: float = 1.0


@dataclass
class Examples:
    """The examples of a split, in memory or in a memory map.

    Args:
        values: Inputs of all splits of one source: (examples, ...), or concatenated if they differ
            in length.
        offsets: (examples + 1,) start of each input in `values`; None if all have one length.
        labels: (examples,) class numbers.
        chosen: Indices of this split's examples.
        padding: Value that pads shorter inputs of a batch.
    """

    values: Tensor
    offsets: Tensor | None
    labels: Tensor
    chosen: Tensor
    padding: int = 0

    def __len__(self) -> int:
        return len(self.chosen)

    def subset(self, index: Tensor) -> "Examples":
        """Return the examples at these indices of this split."""
        return Examples(self.values, self.offsets, self.labels, self.chosen[index], self.padding)

    def lengths(self) -> Tensor | None:
        """Return the length of each example; None if all have one length."""
        if self.offsets is None:
            return None
        return self.offsets[self.chosen + 1] - self.offsets[self.chosen]

    def gather(self, index: Tensor) -> Batch:
        """Return the batch of the examples at these indices of this split."""
        rows = self.chosen[index]
        labels = self.labels[rows]
        if self.offsets is None:
            return Batch(self.values[rows], labels, index)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        steps = torch.arange(int(lengths.max()))
        inside = steps < lengths.unsqueeze(1)
        source = (starts.unsqueeze(1) + steps).clamp(max=len(self.values) - 1)
        inputs = self.values[source].masked_fill(~inside, self.padding)
        return Batch(inputs, labels, index, None if bool(inside.all()) else lengths)


def lay_out(inputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Concatenate or stack inputs that differ at most in their first dimension."""
    lengths = torch.tensor([len(one) for one in inputs])
    if bool((lengths == lengths[0]).all()):
        return {"values": torch.stack(list(inputs)), "offsets": None}
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return {"values": torch.cat(list(inputs)), "offsets": offsets}


def whole_batch(values: Tensor, offsets: Tensor | None, padding: int = 0) -> Batch:
    """Return all of some inputs as one batch, without labels.

    Args:
        values: Inputs, as in `Examples`.
        offsets: Starts of the inputs, likewise.
        padding: Value that pads shorter inputs.

    Example:
        >>> store = lay_out([torch.tensor([1, 2, 3]), torch.tensor([4])])
        >>> batch = whole_batch(store["values"], store["offsets"])
        >>> batch.inputs.tolist(), batch.lengths.tolist()
        ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    index = torch.arange(len(values) if offsets is None else len(offsets) - 1)
    return Examples(values, offsets, torch.zeros_like(index), index, padding).gather(index)


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Batches:
    """Iterates over a split in whole batches.

    Training order is a pure function of (seed, epoch), the same on every rank and after a resume.
    Batch sizes differ by at most one example, and no example is left out. Each rank takes its part
    of each batch: the batches of `world` ranks are those of one rank with a batch size `world`
    times as large. In evaluation all ranks have equally many batches; an example that is repeated
    for that has the same index both times.

    Args:
        examples: The split.
        batch_size: Largest number of examples in a batch on each rank.
        seed: Seed of the training order; None for evaluation, longest examples first.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int | None = None) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        # Number of batches that the next iteration skips, in a resumed epoch.
        self.skipped = 0
        # Lightning calls `set_epoch` of the loader's sampler, and reads its batch sampler.
        self.sampler = self
        self.batch_sampler = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        world = _rank_and_world()[1]
        count = math.ceil(len(self.examples) / (self.batch_size * world))
        # In training, each batch must have an example for each rank.
        return count if self.seed is None else max(1, min(count, len(self.examples) // world))

    def order(self, epoch: int) -> list[Tensor]:
        """Return the batches of one epoch as indices in the split, of all ranks together."""
        count = len(self)
        lengths = self.examples.lengths()
        if self.seed is None:
            if lengths is None:
                return list(torch.arange(len(self.examples)).tensor_split(count))
            return list(lengths.argsort(descending=True, stable=True).tensor_split(count))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.examples), generator=generator)
        if lengths is None:
            return list(shuffled.tensor_split(count))
        pools = shuffled.tensor_split(math.ceil(count / POOL))
        ordered = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        batches = ordered.tensor_split(count)
        return [batches[index] for index in torch.randperm(count, generator=generator).tolist()]

    def __iter__(self) -> Iterator[Batch]:
        rank, world = _rank_and_world()
        begin, self.skipped = self.skipped, 0
        for indices in self.order(self.epoch)[begin:]:
            if self.seed is None and len(indices) % world:
                indices = torch.cat([indices, indices[:1].expand(-len(indices) % world)])
            own = indices.tensor_split(world)[rank]
            if len(own):
                weight = len(own) * world / len(indices)
                yield self.examples.gather(own)._replace(weight=weight)
