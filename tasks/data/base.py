"""Base class of all data modules: source, cache, splits, loaders."""

import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regain.registry import Registry, unknown
from tasks.data.batches import Batch, Batches, Examples, lay_out, whole_batch
from tasks.data.cache import cache_key, cached, fingerprint
from tasks.data.class_folders import read_class_folders
from tasks.data.labels import label_ids
from tasks.data.loading import Source, decode_rows, read_source
from tasks.data.sources import (
    SourceFunction,
    call_function,
    find_function,
    function_file,
    is_function,
)
from tasks.data.splits import check_splits, digest, divide
from tasks.errors import InputError

log = logging.getLogger(__name__)

# Evaluation needs no memory for gradients; the batch size changes no result.
EVALUATION_BATCH = 256
# Numbers of an example that `media` shows, unless a data module makes something better.
MAX_VALUES = 20


class Sound(NamedTuple):
    """A clip of 16-bit `samples` (samples,) with a sample rate of `rate` Hz."""

    samples: np.ndarray
    rate: int


@dataclass
class DataSpec:
    """Properties of the data that a model depends on; checkpoints contain it."""

    classes: list[str]


class ClassificationData(L.LightningDataModule):
    """Base of every task's data module: reads, caches, splits and batches a data set.

    Args:
        source: A name in `sources`, such as `builtin`; a path; a hub id; or the import path of a
            function that returns a `Source`, as `package.module:name` or `path/to/file.py:name`.
        batch_size: Number of examples in a training batch on each device.
        validation_fraction: Fraction of the training split, in (0, 1), that becomes the validation
            split if the source has none; stratified.
        test_fraction: Fraction of the training split, in (0, 1), that becomes the test split if the
            source has none; stratified, the same examples for all seeds.
        train_fraction: Fraction of the training examples to use, in (0, 1]; stratified. A smaller
            fraction is a subset of a larger one. Validation and test do not change.
        label_noise: Fraction of the training labels, in [0, 1), to replace by another class.
        input_column: Column with the inputs; by default found by its type.
        label_column: Column with the labels; by default found by its type or name.
        cache_dir: Folder of decoded data and downloads.
        seed: Seed of the validation split, the label noise and the training order.

    Raises:
        ValueError: A fraction or size is out of its range.
        InputError: The data cannot be used; raised by `setup`.
    """

    kind: ClassVar[str] = "example"
    """Type of the input column in tables: `image`, `audio`, `text`, or another word."""
    noun: ClassVar[str] = "example"
    """Noun for one example in messages."""
    sources: ClassVar[Registry[SourceFunction]]
    """Data sets by name: functions that return a `Source`. Each kind of data has its own."""
    padding: int = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "sources"):
            cls.sources = Registry("DATA")

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
                raise ValueError(f"{name} is a fraction in (0, 1), not {fraction!r}")
        if not 0.0 < train_fraction <= 1.0:
            raise ValueError(f"train_fraction is a fraction in (0, 1], not {train_fraction!r}")
        if not 0.0 <= label_noise < 1.0:
            raise ValueError(f"label_noise is a fraction in [0, 1), not {label_noise!r}")
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
        # Number of examples, and hash of inputs and labels, of each split of the source.
        self.contents: dict[str, dict[str, Any]] = {}
        # Shape of a training example, restored from a checkpoint; 0 stands for any size.
        self.shape: tuple[int, ...] | None = None
        self.dtype = torch.float32

    def decode(self, value: Any) -> Any:
        """Turn one input of a `Source` into a tensor, or a text; here, numbers into a tensor."""
        numbers = torch.as_tensor(np.asarray(value))
        return numbers.float() if numbers.is_floating_point() else numbers

    def decode_input(self, value: Any) -> Any:
        """Decode a new input, which is not from the source, to the type of the training inputs.

        The state must have been restored from a checkpoint.

        Raises:
            ValueError: It cannot be decoded or converted.
        """
        decoded = self.decode(value)
        if not isinstance(decoded, Tensor) or self.shape is None:
            return decoded
        wanted = self.shape
        if len(wanted) != decoded.dim() or any(
            size not in (0, found) for size, found in zip(wanted, decoded.shape, strict=True)
        ):
            raise ValueError(f"its shape is {_shape(decoded.shape)}, not {_shape(wanted)}")
        converted = decoded.to(self.dtype)
        if not self.dtype.is_floating_point and not torch.equal(converted, decoded):
            raise ValueError(f"its numbers are not of the type {self.dtype} of the training inputs")
        return converted

    def batch(self, decoded: list[Any]) -> Batch:
        """Return decoded inputs as one batch, as the model takes them.

        Raises:
            InputError: The class has an `encode` of its own, and so needs its own `batch` too.
        """
        if type(self).encode is not ClassificationData.encode:
            raise InputError(
                f"{type(self).__name__} defines encode, which is for whole data sets; define "
                "batch(decoded) too"
            )
        store = self.arrange({"inputs": decoded})["inputs"]
        return whole_batch(store["values"], store["offsets"], self.padding)

    def state_dict(self) -> dict[str, Any]:
        """Return what decoding needs besides the constructor's arguments, for checkpoints."""
        train = self.splits["train"]
        sizes = tuple(train.values.shape[1:])
        return {
            "shape": list(sizes if train.offsets is None else (0, *sizes)),
            "dtype": str(train.values.dtype).removeprefix("torch."),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that a checkpoint contains.

        Raises:
            ValueError: It is not such a state.
        """
        shape, name = state_dict.get("shape"), state_dict.get("dtype")
        if not isinstance(shape, list) or not all(type(one) is int and one >= 0 for one in shape):
            raise ValueError(f"shape={shape!r:.60} is not a list of sizes")
        dtype = getattr(torch, str(name), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype={name!r:.60} is not a type of numbers")
        self.shape, self.dtype = tuple(shape), dtype

    def restore(self, state_dict: dict[str, Any], spec: DataSpec) -> None:
        """Restore what a checkpoint contains of the data, without their source.

        Args:
            state_dict: What `state_dict` has returned.
            spec: What the model was built for.

        Raises:
            ValueError: They are not such a state and such properties.
        """
        self.load_state_dict(state_dict)
        self.classes = list(spec.classes)
        names = all(isinstance(name, str) for name in self.classes)
        if not names or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={self.classes!r:.60} are not names that differ")

    def spec(self) -> DataSpec:
        """Return the properties of the data; call `setup` first."""
        return DataSpec(self.classes)

    def media(self, split: str, index: int) -> Image.Image | Sound | str:
        """Return one example for display, as an image, a sound or a text."""
        values = self.splits[split].gather(torch.tensor([index])).inputs[0].flatten().tolist()
        written = ", ".join(f"{value:.4g}" for value in values[:MAX_VALUES])
        return written + (", ..." if values[MAX_VALUES:] else "")

    def read_layout(self, folder: Path) -> Source | None:
        """Read a folder in the layout of a well-known data set; None if it has another one."""
        return None

    def decoding_options(self) -> dict[str, Any]:
        """Return the settings that the decoded inputs depend on; they are part of the cache key."""
        return {}

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Convert the decoded inputs of each split to the content of the cache."""
        return {split: dict(lay_out(inputs)) for split, inputs in decoded.items()}

    def encode(self, stores: dict[str, dict[str, Any]], training: Tensor) -> None:
        """Convert content of the cache that is not a tensor yet, in place.

        Args:
            stores: The result of `arrange` for each split of the source.
            training: Indices of the training examples in the source's training split.
        """

    def read(self) -> Source:
        """Read the source, undecoded: by name, as a folder, a table or a hub data set.

        Raises:
            InputError: There is no such source, or it cannot be read.
        """
        if is_function(self.source, self.sources):
            return call_function(
                self.source,
                find_function(self.source, self.sources),
                cache_dir=self.cache_dir,
                input_column=self.input_column,
                label_column=self.label_column,
            )
        path = Path(self.source).expanduser()
        if not path.exists() and "/" not in self.source:
            message = unknown("DATA", self.source, self.sources.names())
            raise InputError(f"{message}; or give a path, or a hub id of the form owner/name")
        found = self.read_layout(path) if path.is_dir() else None
        # Columns are those of a table.
        named = self.input_column or self.label_column
        if found is None and self.kind in ("image", "audio") and path.is_dir() and not named:
            found = read_class_folders(path, self.kind)
        return found or read_source(
            self.source, self.kind, self.input_column, self.label_column, self.cache_dir
        )

    def prepare(self) -> dict[str, Any]:
        """Decode the whole source into tensors and plain data for the cache."""
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
        """Load the splits, decoding the source if it is not cached; further calls do nothing."""
        if self.splits:
            return
        path = Path(self.source).expanduser()
        file: Path | None = path
        if is_function(self.source, self.sources):
            file = function_file(find_function(self.source, self.sources))
        key = cache_key(
            kind=self.kind,
            source=self.source,
            files=fingerprint(file) if file is not None and file.exists() else None,
            columns=[self.input_column, self.label_column],
            **self.decoding_options(),
            **({"code": code} if (code := self._own_code()) else {}),
        )
        # File names have at most 255 bytes; lock files append to this one.
        name = path.name.encode("utf-8", "replace")[:100].decode("utf-8", "ignore")
        stored = self.cache_dir / f"{self.kind}-{name}-{key}.pt"
        prepared = cached(stored, self.prepare)
        self.classes = prepared["classes"]
        stores = prepared["stores"]
        self.contents = {
            split: {"examples": len(store["labels"]), "sha256": _hash(store)}
            for split, store in stores.items()
        }
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
                {part: stores[origin][key][rows] for part, (origin, rows) in parts.items()}
                for key in ("labels", "digests")
            ),
            # One warning for all runs of a study that read this cache.
            warned=stored.with_suffix(".warned"),
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

    def _own_code(self) -> list[str]:
        """Return the state of the files outside the project that these data are decoded by."""
        kinds = (kind for kind in type(self).__mro__ if issubclass(kind, ClassificationData))
        modules = {kind.__module__ for kind in kinds if not kind.__module__.startswith("tasks.")}
        files = (getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules))
        return [fingerprint(Path(file)) for file in files if file]

    def _with_noise(self, labels: Tensor, chosen: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        wrong = chosen[torch.randperm(len(chosen), generator=generator)]
        wrong = wrong[: round(self.label_noise * len(chosen))]
        noisy = labels.clone()
        step = torch.randint(1, len(self.classes), (len(wrong),), generator=generator)
        noisy[wrong] = (noisy[wrong] + step) % len(self.classes)
        return noisy

    def train_dataloader(self) -> Batches:
        """Return batches of the training split, in another order each epoch."""
        return Batches(self.splits["train"], self.batch_size, self.seed)

    def val_dataloader(self) -> list[Batches]:
        """Return batches of the validation split, and of as many training examples.

        The second measure the training accuracy as the validation accuracy is measured: in eval
        mode and without augmentation.
        """
        validation, train = self.splits["validation"], self.splits["train"]
        probe = train.subset(torch.arange(min(len(validation), len(train))))
        return [Batches(part, EVALUATION_BATCH) for part in (validation, probe)]

    def test_dataloader(self) -> Batches:
        """Return batches of the test split."""
        return Batches(self.splits["test"], EVALUATION_BATCH)


def _shape(sizes: Sequence[int]) -> str:
    """Write a shape, in which a size of 0 is any length."""
    return f"({', '.join(str(size) if size else 'any' for size in sizes)})"


def _hash(store: dict[str, Any]) -> str:
    """Hash the labels and the digests of the inputs of a split."""
    hashed = hashlib.sha256()
    for key in ("labels", "digests"):
        hashed.update(store[key].numpy().tobytes())
    return hashed.hexdigest()
