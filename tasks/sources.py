"""Reading of data sets: rows and labels from a folder, a file or a hub, whatever their layout."""

import errno
import glob
import logging
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tasks.errors import InputError
from tasks.plain_text import printable

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
# How the readers of `datasets` put it that a file holds nothing.
EMPTY = ("StopIteration", "No columns to parse", "corresponds to no data", "BatchSize must be")
FILE_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
PACKED = {".gz", ".bz2", ".xz"}
SHEETS = {".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers"}
# How the files of spreadsheets begin, and zip files with them.
SHEET_BEGINS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# What `datasets` takes for a pattern, or for a chain of addresses, in the path of a folder.
PATTERN = re.compile(r"[*?\[\]]|::")


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
        suffix = _suffix(name, path)
        arguments = [FILE_FORMATS[suffix]]
        # Other files must not be read because this one's name is a pattern.
        options |= {"data_files": glob.escape(str(path))}
        if suffix == ".tsv":
            options["sep"] = "\t"
    elif path.is_dir():
        if PATTERN.search(str(path.resolve())):
            raise InputError(f"DATA={name}: rename the folder, without * ? [ ] and :: in its path")
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
            raise InputError(f"DATA={name}: no column {wanted!r}, only {_listed(features)}")
    if kind in ("image", "audio"):
        undecoded = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
        found = {split: rows.cast_column(column, undecoded) for split, rows in found.items()}
    names = getattr(features[label], "names", None)
    try:
        splits = {
            split: Rows(rows[column][:] if kind == "text" else rows[column], rows[label][:])
            for split, rows in found.items()
        }
    except UnicodeDecodeError as error:
        raise InputError(f"DATA={name}: {_reason(error)}") from error
    return Source(splits, list(names) if names is not None else None)


def _suffix(name: str, path: Path) -> str:
    """Return the suffix that tells the format of a data file, in lower case.

    Raises:
        InputError: It is of no format that can be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    with path.open("rb") as file:
        begin = file.read(4)
    if suffix in SHEETS or (suffix in FILE_FORMATS and begin in SHEET_BEGINS):
        raise InputError(
            f"{name}: spreadsheets and zip files are not read; save the sheet as a .csv file "
            "(UTF-8) and give that one"
        )
    if suffix not in FILE_FORMATS:
        raise InputError(
            f"{name}: a data file ends in .parquet, .csv, .tsv, .json or .jsonl, and further in "
            ".gz, .bz2 or .xz if it is packed"
        )
    return suffix


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
    column = next(iter([*_called(features, LABEL_COLUMNS), *by_type]), None)
    if column is None:
        raise InputError(
            f"DATA={name}: no column with labels among {_listed(features)}; "
            "name it with --data.label_column"
        )
    _check_once(name, features, column, "--data.label_column")
    return str(column)


def _input_column(name: str, features: Any, kind: str, label: str) -> str:
    def fits(feature: Any) -> bool:
        if kind == "text":
            return getattr(feature, "dtype", None) in ("string", "large_string")
        return type(feature).__name__.lower() == kind

    columns = [column for column, feature in features.items() if fits(feature) and column != label]
    if kind == "text" and len(columns) > 1:
        columns = _called(columns, ("text", "sentence")) or columns
        _check_once(name, features, columns[0], "--data.input_column")
    if len(columns) != 1:
        count = "no column" if not columns else "several columns"
        raise InputError(
            f"DATA={name}: {count} of type {kind} among {_listed(features)}; "
            "name it with --data.input_column"
        )
    return str(columns[0])


def _called(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Find the columns of these names, in their order; spaces around them and case do not count."""
    plain = [(column, column.strip().lower()) for column in columns]
    exact = [name for name in names if (name, name) in plain]
    return exact or [column for name in names for column, found in plain if found == name]


def _check_once(name: str, features: Any, column: str, option: str) -> None:
    """Check that a header names a column once; pandas gives the second one a number."""
    if f"{column}.1" in features:
        raise InputError(
            f"DATA={name}: two columns are called {column!r}, the second one is read as "
            f"'{column}.1'; rename one of them, or choose with {option}"
        )


def _listed(features: Any) -> str:
    """Name all columns, and those inside of them, which cannot be read."""
    names = []
    for column, feature in features.items():
        inner = f" (holds {', '.join(feature)}: lay it out flat)" if is_nested(feature) else ""
        names.append(f"{column}{inner}")
    return ", ".join(names)


def is_nested(feature: Any) -> bool:
    """Whether a column holds columns."""
    return isinstance(feature, dict)


def label_ids(source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Turn labels into numbers from 0 and return them with the names of the classes.

    Raises:
        InputError: A split is empty, or a label is missing or does not occur among the classes.
    """
    classes = source.classes or None
    labels: dict[str, list[Any]] = {}
    for split, rows in source.splits.items():
        if not len(rows.labels):
            raise InputError(f"split {split} is empty")
        labels[split] = [_label(label, split, row) for row, label in enumerate(rows.labels)]
    training = labels["train"]
    kinds = [_kind(label) for label in training]
    if len(set(kinds)) > 1:
        row = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
        raise InputError(
            f"row {row} of split train has label {training[row]!r:.60}, and row 0 has "
            f"{training[0]!r:.60}: labels are all names or all numbers, or all true or false"
        )
    # Labels are class numbers where the classes have names; otherwise their values are the names.
    values: Sequence[Any] = range(len(classes)) if classes else sorted(set(training))
    if classes is None:
        classes = [_class_name(value) for value in values]
    elif isinstance(training[0], str):
        values = classes
    numbers = {value: number for number, value in enumerate(values)}
    classes = [printable(name) for name in classes]
    ids = {}
    for split, given in labels.items():
        for row, label in enumerate(given):
            if label not in numbers:
                raise InputError(
                    f"row {row} of split {split} has label {label!r:.60}, "
                    f"out of range: the {len(classes)} classes are {_range(classes)}"
                )
        ids[split] = torch.tensor([numbers[label] for label in given], dtype=torch.int64)
    _warn_of_look_alikes(classes)
    return ids, classes


def _label(label: Any, split: str, row: int) -> str | bool | int | float:
    """Return a label as a name or a number.

    Raises:
        InputError: It is neither.
    """
    if isinstance(label, date):
        return label.isoformat()
    # NaN is not even equal to itself.
    if label is None or label != label or (isinstance(label, str) and not label.strip()):
        raise InputError(
            f"row {row} of split {split} has no label; in a table, an empty cell and NA, None, "
            "null and nan are none"
        )
    if not isinstance(label, str | bool | int | float) or label in (math.inf, -math.inf):
        raise InputError(
            f"row {row} of split {split} has label {label!r:.60}: a label is a name or a number"
        )
    return label


def _kind(label: str | bool | int | float) -> type:
    return next(kind for kind in (str, bool, object) if isinstance(label, kind))


def _class_name(value: str | bool | int | float) -> str:
    """Name a class by its label; 1.0 is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _warn_of_look_alikes(classes: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in seen:
            log.warning(
                f"warning: {seen[plain]!r:.60} and {name!r:.60} are two classes; their names "
                "differ in case, spaces or the form of a letter alone"
            )
            return
        seen[plain] = name


def _range(classes: list[str]) -> str:
    if len(classes) > 5:
        return f"{classes[0]:.40} ... {classes[-1]:.40}"
    return ", ".join(f"{name:.40}" for name in classes)


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
