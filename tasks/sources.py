"""Reading of data sets: rows and labels from a folder, a file or a hub, whatever their layout."""

import errno
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tasks.errors import InputError

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
# How the readers of `datasets` put it that a file holds nothing.
EMPTY = ("StopIteration", "No columns to parse", "corresponds to no data", "BatchSize must be")
FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass
class Rows:
    """The rows of one split as they come: inputs not decoded yet, labels as numbers or names."""

    inputs: Sequence[Any]
    labels: Sequence[Any]


@dataclass
class Source:
    """A data set as it comes: some of the splits train, validation and test.

    `classes` are the names of the labels 0, 1, ...; None where the labels themselves are the names.
    """

    splits: dict[str, Rows]
    classes: list[str] | None = None


def read_source(
    name: str,
    kind: str,
    input_column: str | None,
    label_column: str | None,
    cache_dir: Path,
    revision: str | None = None,
) -> Source:
    """Read a folder, a file or a hub data set with Hugging Face `datasets`.

    Args:
        name: A path, or the id of a data set on the hub.
        kind: "image", "audio" or "text": the kind of input column to look for.
        input_column: The column of inputs; found by its type if None.
        label_column: The column of labels; found by its type or name if None.
        cache_dir: Where `datasets` may keep its own files.
        revision: The version of a hub data set.

    Raises:
        InputError: The path is missing, or holds no data, no training split, no such column.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(name).expanduser()
    options: dict[str, Any] = {"cache_dir": str(cache_dir), "revision": revision}
    if path.is_file():
        if path.suffix not in {*FILE_FORMATS, ".parquet"}:
            raise InputError(f"{name}: a data file ends in .parquet, .csv, .tsv, .json or .jsonl")
        arguments = [FILE_FORMATS.get(path.suffix, "parquet")]
        options |= {"data_files": str(path)}
        if path.suffix == ".tsv":
            options["sep"] = "\t"
    elif path.is_dir():
        arguments = [str(path)]
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"DATA={name}: no such path, and not a hub id of the form owner/name")
    else:
        arguments = [name]
    loud = datasets.logging.get_verbosity()
    # It would tell of a broken file on its own, and then once more by an exception.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        # Without its decoder installed, `datasets` would not even take down an audio file's path.
        with patch.object(datasets.Audio, "encode_example", _undecoded):
            loaded = datasets.load_dataset(*arguments, **options)
    except Exception as error:
        # Each layout and each way to miss a hub has an exception of its own; all mean the same.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        raise InputError(
            f"DATA={name}: cannot be loaded as a data set ({_reason(error)})"
        ) from error
    finally:
        datasets.logging.set_verbosity(loud)
    found = {
        split: loaded[alias]
        for split, aliases in SPLIT_NAMES.items()
        for alias in aliases
        if alias in loaded
    }
    if "train" not in found:
        raise InputError(f"DATA={name}: no split named train, only {', '.join(map(str, loaded))}")
    features = found["train"].features
    label = label_column or _label_column(name, features)
    column = input_column or _input_column(name, features, kind, label)
    for wanted in (label, column):
        if wanted not in features:
            raise InputError(f"DATA={name}: no column {wanted!r}, only {', '.join(features)}")
    if kind in ("image", "audio"):
        undecoded = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
        found = {split: rows.cast_column(column, undecoded) for split, rows in found.items()}
    names = getattr(features[label], "names", None)
    return Source(
        {split: Rows(rows[column], rows[label][:]) for split, rows in found.items()},
        list(names) if names is not None else None,
    )


def _reason(error: BaseException) -> str:
    """Say what is at the bottom of an error of `datasets`."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    if any(sign in text for sign in EMPTY):
        return "it is empty, or has no rows"
    return f"{text}; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else text


def _undecoded(feature: Any, value: Any) -> Any:
    return {"bytes": None, "path": value} if isinstance(value, str) else value


def _label_column(name: str, features: Any) -> str:
    by_type = [column for column, feature in features.items() if hasattr(feature, "names")]
    for column in [*(c for c in LABEL_COLUMNS if c in features), *by_type]:
        return str(column)
    raise InputError(
        f"DATA={name}: no column with labels among {', '.join(features)}; "
        "name it with --data.label_column"
    )


def _input_column(name: str, features: Any, kind: str, label: str) -> str:
    def fits(feature: Any) -> bool:
        if kind == "text":
            return getattr(feature, "dtype", None) in ("string", "large_string")
        return type(feature).__name__.lower() == kind

    columns = [column for column, feature in features.items() if fits(feature) and column != label]
    if kind == "text" and len(columns) > 1:
        columns = [c for c in columns if c in ("text", "sentence")] or columns
    if len(columns) != 1:
        count = "no column" if not columns else "several columns"
        raise InputError(
            f"DATA={name}: {count} of type {kind} among {', '.join(features)}; "
            "name it with --data.input_column"
        )
    return str(columns[0])


def label_ids(source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Turn labels into numbers from 0 and return them with the names of the classes.

    Raises:
        InputError: A split is empty, or a label is missing or does not occur among the classes.
    """
    classes = source.classes or None
    training = source.splits["train"].labels
    for split, rows in source.splits.items():
        if not len(rows.labels):
            raise InputError(f"split {split} is empty")
        for row, label in enumerate(rows.labels):
            if label is None or label != label:  # NaN is not even equal to itself.
                raise InputError(f"row {row} of split {split} has no label")
            if not isinstance(label, str | bool | int | float) or label in (math.inf, -math.inf):
                raise InputError(
                    f"row {row} of split {split} has label {label!r:.60}: "
                    "a label is a name or a number"
                )
    texts = [isinstance(label, str) for label in training]
    if len(set(texts)) > 1:
        row = texts.index(not texts[0])
        raise InputError(
            f"row {row} of split train has label {training[row]!r:.60}, and row 0 has "
            f"{training[0]!r:.60}: labels are all names or all numbers"
        )
    # Labels are class numbers where the classes have names; otherwise their values are the names.
    values: Sequence[Any] = range(len(classes)) if classes else sorted(set(training))
    if classes is None:
        classes = [str(value) for value in values]
    elif isinstance(training[0], str):
        values = classes
    numbers = {value: number for number, value in enumerate(values)}
    ids = {}
    for split, rows in source.splits.items():
        for row, label in enumerate(rows.labels):
            if label not in numbers:
                raise InputError(
                    f"row {row} of split {split} has label {label!r:.60}, "
                    f"out of range: the {len(classes)} classes are {_range(classes)}"
                )
        ids[split] = torch.tensor([numbers[label] for label in rows.labels], dtype=torch.int64)
    return ids, classes


def _range(classes: list[str]) -> str:
    return ", ".join(classes) if len(classes) <= 5 else f"{classes[0]} ... {classes[-1]}"


def encoded_input(value: Any, noun: str) -> bytes | str:
    """Take the bytes or else the path out of one input that `datasets` has not decoded.

    Raises:
        ValueError: It has neither, or no bytes.
    """
    content = value if isinstance(value, dict) else {}
    encoded = content.get("bytes")
    if encoded is None:
        encoded = content.get("path")
    if encoded is None:
        raise ValueError(f"there is no {noun}")
    if not encoded or (isinstance(encoded, str) and not Path(encoded).stat().st_size):
        raise ValueError("it is empty")
    return bytes(encoded) if isinstance(encoded, bytes | bytearray) else str(encoded)


def decode_rows(
    rows: Sequence[Any], decode: Callable[[Any], Any], split: str, noun: str
) -> list[Any]:
    """Decode all rows, with a progress bar and on all cores.

    Raises:
        InputError: Some rows cannot be decoded; tells how many and names the first.
    """
    broken: list[tuple[int, str]] = []

    def attempt(numbered: tuple[int, Any]) -> Any:
        row, value = numbered
        try:
            return decode(value)
        except Exception as error:
            # A decoder fails in any way that its format allows; every failure is told below.
            place = value.get("path") if isinstance(value, dict) else None
            broken.append((row, f"{place or f'row {row}'}: {str(error) or type(error).__name__}"))
            return None

    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(
            track(
                pool.map(attempt, enumerate(rows)),
                description=f"Preparing {split}",
                total=len(rows),
                console=console,
                disable=not console.is_terminal,
                transient=True,
            )
        )
    if broken:
        reason = min(broken)[1]
        raise InputError(
            f"{len(broken)} of {len(rows)} {noun}s of split {split} cannot be decoded; "
            f"the first is {reason.splitlines()[0]}"
        )
    log.info(f"prepared {len(decoded)} {noun}s of split {split}")
    return decoded
