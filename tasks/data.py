"""Data of a task: three splits in memory, and an iterator that gathers whole batches from them."""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch import Tensor

from tasks.cache import cache_key, cached, fingerprint
from tasks.class_folders import read_class_folders
from tasks.sources import Source, decode_rows, label_ids, read_source
from tasks.splits import check_splits, digest, divide

log = logging.getLogger(__name__)

# Examples of like length are looked for among this many batches at a time.
POOL = 50
# Without gradients a larger batch fits; its size changes no result.
EVALUATION_BATCH = 256


class Sound(NamedTuple):
    """A clip: `samples` (samples,) of 16 bits, `rate` of them a second."""

    samples: np.ndarray
    rate: int


class Batch(NamedTuple):
    """One batch.

    `inputs` is (batch, ...); `lengths` is (batch,) where examples were padded to the longest one,
    and None where all are of one length. `places` is each example's place in its split. `weight`
    is what the mean over these examples counts in the mean over all ranks, whose shares of a batch
    may differ by one example.
    """

    inputs: Tensor
    labels: Tensor
    places: Tensor
    lengths: Tensor | None = None
    weight: float = 1.0


@dataclass
class DataSpec:
    """What a model must know of the data it is built for; a checkpoint holds it."""

    classes: list[str]


@dataclass
class Examples:
    """Examples in memory or in a memory map, and those of them that belong to this split.

    Args:
        values: All inputs: (examples, ...), or laid end to end if they differ in length.
        offsets: (examples + 1,) where each one begins in `values`; None if all have one length.
        labels: (examples,) class numbers.
        chosen: Places of this split's examples.
        padding: Fills up the shorter examples of a batch.
    """

    values: Tensor
    offsets: Tensor | None
    labels: Tensor
    chosen: Tensor
    padding: int = 0

    def __len__(self) -> int:
        return len(self.chosen)

    def subset(self, index: Tensor) -> "Examples":
        """Take the examples at these places of this split."""
        return Examples(self.values, self.offsets, self.labels, self.chosen[index], self.padding)

    def lengths(self) -> Tensor | None:
        """The length of each example, or None if all have one length."""
        if self.offsets is None:
            return None
        return self.offsets[self.chosen + 1] - self.offsets[self.chosen]

    def gather(self, index: Tensor) -> Batch:
        """Make the batch of the examples at these places of this split."""
        places = self.chosen[index]
        labels = self.labels[places]
        if self.offsets is None:
            return Batch(self.values[places], labels, index)
        starts = self.offsets[places]
        lengths = self.offsets[places + 1] - starts
        steps = torch.arange(int(lengths.max()))
        inside = steps < lengths.unsqueeze(1)
        source = (starts.unsqueeze(1) + steps).clamp(max=len(self.values) - 1)
        inputs = self.values[source].masked_fill(~inside, self.padding)
        return Batch(inputs, labels, index, None if bool(inside.all()) else lengths)


def lay_out(inputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Join inputs that differ at most in the length of their first dimension into one tensor."""
    lengths = torch.tensor([len(one) for one in inputs])
    if bool((lengths == lengths[0]).all()):
        return {"values": torch.stack(list(inputs)), "offsets": None}
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return {"values": torch.cat(list(inputs)), "offsets": offsets}


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Batches:
    """Iterates over a split in whole batches.

    Training order is a pure function of (seed, epoch), the same on every rank and after a resume.
    Examples are spread evenly over the batches, so that none is left out and the last batch is no
    smaller than the others by more than one. Each rank takes its share of each batch: the batches
    of `world` ranks are those of one rank with a batch size `world` times as large. When
    evaluating, all ranks have equally many batches; where that takes repeating an example, `places`
    tells that it is the same one.

    Args:
        examples: The split.
        batch_size: Largest number of examples in a batch, on each rank.
        seed: Of the training order; None to go through the split once, longest examples first.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int | None = None) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        # Batches that the next iteration leaves out: a resumed epoch has had them.
        self.left_out = 0
        # Lightning tells a loader's sampler which epoch begins, and looks for a second one.
        self.sampler = self
        self.batch_sampler = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        world = _rank_and_world()[1]
        count = math.ceil(len(self.examples) / (self.batch_size * world))
        # In training, every batch must have something for every rank.
        return count if self.seed is None else max(1, min(count, len(self.examples) // world))

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of one epoch as places in the split, all ranks together."""
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
        return [batches[place] for place in torch.randperm(count, generator=generator).tolist()]

    def __iter__(self) -> Iterator[Batch]:
        rank, world = _rank_and_world()
        begin, self.left_out = self.left_out, 0
        for places in self.order(self.epoch)[begin:]:
            if self.seed is None and len(places) % world:
                places = torch.cat([places, places[:1].expand(-len(places) % world)])
            share = places.tensor_split(world)[rank]
            if len(share):
                weight = len(share) * world / len(places)
                yield self.examples.gather(share)._replace(weight=weight)


class ClassificationData(L.LightningDataModule):
    """Base of the data of every task: finds, prepares, splits and serves a data set.

    Args:
        source: `builtin` (installed with the packages), a canonical name, a path or a hub id.
        batch_size: Number of examples in a training batch on each device.
        validation_fraction: Share of the training split held out if the source holds no validation
            split; stratified.
        test_fraction: Share of the source held out if it has no test split; stratified, and the
            same examples whatever the seed.
        train_fraction: Share of the training examples that is used; stratified, and smaller shares
            are parts of larger ones. Validation and test stay as they are.
        label_noise: Share of the training labels replaced by another class.
        input_column: Column with the inputs; found by its type if not given.
        label_column: Column with the labels; found by its type or name if not given.
        cache_dir: Where prepared data is kept.
        seed: Of the validation split, label noise and the order of training.

    Raises:
        ValueError: A fraction or size is out of its range.
        InputError: The data cannot be used; raised when it is first asked for.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    padding: int = 0

    def __init__(
        self,
        source: str = "builtin",
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        train_fraction: float = 1.0,
        label_noise: float = 0.0,
        input_column: str | None = None,
        label_column: str | None = None,
        cache_dir: str = "~/.cache/regain",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, fraction in (
            ("validation_fraction", validation_fraction),
            ("test_fraction", test_fraction),
        ):
            if not 0.0 < fraction < 1.0:
                raise ValueError(f"{name} is a share in (0, 1), not {fraction!r}")
        if not 0.0 < train_fraction <= 1.0:
            raise ValueError(f"train_fraction is a share in (0, 1], not {train_fraction!r}")
        if not 0.0 <= label_noise < 1.0:
            raise ValueError(f"label_noise is a share in [0, 1), not {label_noise!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size!r}")
        self.source = source
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.train_fraction = train_fraction
        self.label_noise = label_noise
        self.input_column = input_column
        self.label_column = label_column
        self.cache_dir = Path(cache_dir).expanduser()
        self.seed = seed
        self.splits: dict[str, Examples] = {}
        self.classes: list[str] = []

    @abstractmethod
    def builtin(self) -> Source:
        """Make the data set that comes with installed packages."""

    @abstractmethod
    def canonical(self) -> Source | None:
        """Load the source if it is a canonical name or layout; None if it is not."""

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """Turn one input as it comes into a tensor, or a text."""

    @abstractmethod
    def spec(self) -> DataSpec:
        """Tell a model what it must know of this data."""

    @abstractmethod
    def media(self, split: str, index: int) -> Image.Image | Sound | str:
        """Make something that people can look at from one example: a picture, a sound or a text."""

    def decoding_options(self) -> dict[str, Any]:
        """Name what the decoded inputs depend on, besides the source."""
        return {}

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Join the decoded inputs of each split into what the cache holds."""
        return {split: dict(lay_out(inputs)) for split, inputs in decoded.items()}

    def encode(self, stores: dict[str, dict[str, Any]], training: Tensor) -> None:
        """Turn what the cache holds into tensors, in place, if it does not hold tensors yet.

        Args:
            stores: What `arrange` made of each split of the source.
            training: Places of the training examples in the source's training split.
        """

    def read(self) -> Source:
        """Read the source, whichever way it comes."""
        if self.source == "builtin":
            return self.builtin()
        found = self.canonical()
        path = Path(self.source).expanduser()
        # Columns that are named are those of a table.
        named = self.input_column or self.label_column
        if found is None and self.kind != "text" and path.is_dir() and not named:
            found = read_class_folders(path, self.kind)
        return found or read_source(
            self.source, self.kind, self.input_column, self.label_column, self.cache_dir
        )

    def prepare(self) -> dict[str, Any]:
        """Decode the whole source into plain data that the cache can hold."""
        source = self.read()
        labels, classes = label_ids(source)
        decoded = {
            split: decode_rows(rows.inputs, self.decode, split, self.noun)
            for split, rows in source.splits.items()
        }
        stores = self.arrange(decoded)
        for split, store in stores.items():
            store["labels"] = labels[split]
            store["digests"] = torch.tensor([digest(one) for one in decoded[split]])
        return {"classes": classes, "stores": stores}

    def setup(self, stage: str | None = None) -> None:
        """Load the splits, from the cache if they are there; further calls do nothing."""
        if self.splits:
            return
        path = Path(self.source).expanduser()
        key = cache_key(
            kind=self.kind,
            source=self.source,
            files=fingerprint(path) if path.exists() else None,
            columns=[self.input_column, self.label_column],
            **self.decoding_options(),
        )
        # A file's name has at most 255 bytes, those of locks beside it too.
        name = path.name.encode("utf-8", "replace")[:100].decode("utf-8", "ignore")
        file = self.cache_dir / f"{self.kind}-{name}-{key}.pt"
        prepared = cached(file, self.prepare)
        self.classes = prepared["classes"]
        stores = prepared["stores"]
        parts = divide(
            self.source,
            {split: store["labels"] for split, store in stores.items()},
            {"test": self.test_fraction, "validation": self.validation_fraction},
            self.train_fraction,
            self.seed,
        )
        check_splits(
            self.source,
            self.classes,
            *(
                {part: stores[origin][key][places] for part, (origin, places) in parts.items()}
                for key in ("labels", "digests")
            ),
            # One warning for all runs that read this cache: those of a study are many.
            warned=file.with_suffix(".warned"),
        )
        self.encode(stores, parts["train"][1])
        for split, (origin, chosen) in parts.items():
            store = stores[origin]
            labels = store["labels"]
            if split == "train" and self.label_noise:
                labels = self._with_noise(labels, chosen)
            self.splits[split] = Examples(
                store["values"], store["offsets"], labels, chosen, self.padding
            )

    def _with_noise(self, labels: Tensor, chosen: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        wrong = chosen[torch.randperm(len(chosen), generator=generator)]
        wrong = wrong[: round(self.label_noise * len(chosen))]
        noisy = labels.clone()
        step = torch.randint(1, len(self.classes), (len(wrong),), generator=generator)
        noisy[wrong] = (noisy[wrong] + step) % len(self.classes)
        return noisy

    def train_dataloader(self) -> Batches:
        """Batches of the training split, in an order of its own every epoch."""
        return Batches(self.splits["train"], self.batch_size, self.seed)

    def val_dataloader(self) -> list[Batches]:
        """Batches of the validation split, and of as many training examples.

        The second measures the training accuracy on the same footing as the validation accuracy:
        in eval mode and without augmentation.
        """
        validation, train = self.splits["validation"], self.splits["train"]
        probe = train.subset(torch.arange(min(len(validation), len(train))))
        return [Batches(part, EVALUATION_BATCH) for part in (validation, probe)]

    def test_dataloader(self) -> Batches:
        """Batches of the test split."""
        return Batches(self.splits["test"], EVALUATION_BATCH)
