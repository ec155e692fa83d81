"""Reading of data sets: inputs and labels from a folder, a file or a hub."""

import errno
import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.progress import track

from tasks.errors import InputError

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
# Messages of `datasets` that mean an empty file.
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
# First bytes of spreadsheets and other zip files.
SHEET_BEGINS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# What `datasets` reads as a pattern or a chained address in the path of a folder.
PATTERN = re.compile(r"[*?\[\]]|::")


@dataclass
class Rows:
    """The examples of one split, not decoded.

    Args:
        inputs: As the data module decodes them: for images an array (height, width[, 3]) of 8 bits
            or `{"bytes": ...}` or `{"path": ...}`; for clips samples of 16 bits at 16 kHz or the
            same mappings; for texts `str`.
        labels: Names or numbers.
    """

    inputs: Sequence[Any]
    labels: Sequence[Any]


@dataclass
class Source:
    """A data set, not decoded.

    Args:
        splits: `train`, and `validation` and `test` where the data set has them.
        classes: Names of the labels 0, 1, ...; None if the labels themselves are the names.

    Example:
        >>> texts = Rows(["good film", "bad film"], ["positive", "negative"])
        >>> Source({"train": texts}).classes is None
        True
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
        suffix = table_suffix(name, path)
        arguments = [FILE_FORMATS[suffix]]
        # A name that is a pattern must not match other files.
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
    # It would log a broken file, and raise an exception too.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        # Without its audio decoder, `datasets` cannot even store the path of an audio file.
        with patch.object(datasets.Audio, "encode_example", _undecoded):
            loaded = datasets.load_dataset(*arguments, **options)
    except Exception as error:
        # Each layout and each failure of a hub has an exception of its own.
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


def unpacked_suffix(path: Path) -> str:
    """Return the suffix that names the format of a file, in lower case.

    Example:
        >>> unpacked_suffix(Path("texts.CSV.gz"))
        '.csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def table_suffix(name: str, path: Path) -> str:
    """Return the suffix of a data file that names its format, in lower case.

    Raises:
        InputError: The format is not supported.
    """
    suffix = unpacked_suffix(path)
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
    """Describe the first cause of an error of `datasets`."""
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
    column = next(iter([*columns_called(features, LABEL_COLUMNS), *by_type]), None)
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
        columns = columns_called(columns, ("text", "sentence")) or columns
        _check_once(name, features, columns[0], "--data.input_column")
    if len(columns) != 1:
        count = "no column" if not columns else "several columns"
        raise InputError(
            f"DATA={name}: {count} of type {kind} among {_listed(features)}; "
            "name it with --data.input_column"
        )
    return str(columns[0])


def columns_called(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Find columns by names, ignoring case and surrounding spaces, in the order of the names."""
    plain = [(column, column.strip().lower()) for column in columns]
    exact = [name for name in names if (name, name) in plain]
    return exact or [column for name in names for column, found in plain if found == name]


def _check_once(name: str, features: Any, column: str, option: str) -> None:
    """Refuse a header that names a column twice; pandas numbers the second one."""
    if f"{column}.1" in features:
        raise InputError(
            f"DATA={name}: two columns are called {column!r}, the second one is read as "
            f"'{column}.1'; rename one of them, or choose with {option}"
        )


def _listed(features: Any) -> str:
    """List all columns, and nested ones, which cannot be read."""
    names = []
    for column, feature in features.items():
        inner = f" (holds {', '.join(feature)}: lay it out flat)" if is_nested(feature) else ""
        names.append(f"{column}{inner}")
    return ", ".join(names)


def is_nested(feature: Any) -> bool:
    """Whether a column holds further columns."""
    return isinstance(feature, dict)


def encoded_input(value: Any, noun: str) -> bytes | str:
    """Return the bytes, or else the path, of one input that `datasets` has not decoded.

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
        InputError: Rows cannot be decoded; it counts them and names the first.
    """
    broken: list[tuple[int, str]] = []

    def attempt(numbered: tuple[int, Any]) -> Any:
        row, value = numbered
        try:
            return decode(value)
        except Exception as error:
            # Decoders raise exceptions of all kinds; each is reported below.
            path = value.get("path") if isinstance(value, dict) else None
            broken.append((row, f"{path or f'row {row}'}: {str(error) or type(error).__name__}"))
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
