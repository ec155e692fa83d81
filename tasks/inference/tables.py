"""Inputs of predictions from CSV, TSV, JSON and Parquet, read row by row."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow
from pyarrow import parquet

from tasks.data.loading import LABEL_COLUMNS, columns_called, table_suffix, unpacked_suffix
from tasks.errors import InputError, first_line
from tasks.run.plain_text import printable

# Names of columns with texts, and with paths of files.
TEXT_COLUMNS = ("text", "sentence")
PATH_COLUMNS = ("image", "img", "picture", "audio", "clip", "file_name", "file", "path")
# Rows of Parquet in memory at once.
ROWS = 256
# A cell may hold a whole document: the limit of `csv` is 131,072 characters.
LONGEST_CELL = 2**31 - 1
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Exceptions for damaged files.
DAMAGED = (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error, lzma.LZMAError)

# What a column holds: texts (or paths), encoded images or clips, a number, or several numbers.
Columns = dict[str, str]
TEXT, ENCODED, NUMBER, NUMBERS, OTHER = "text", "encoded", "number", "numbers", "other"


@dataclass(frozen=True)
class RawInput:
    """One input of a prediction.

    Args:
        name: Its path, or the file and the row or line, counted from 1: `texts.csv:1`.
        value: As the predictor takes it; None if it cannot be read.
        label: Name of its class, if the file has one.
        error: Why it cannot be read.
    """

    name: str
    value: Any
    label: str | None = None
    error: str | None = None


class Reader(Protocol):
    """A table of one format. `rows` yields a mapping, or the reason why a row cannot be read."""

    columns: Columns
    total: int | None

    def rows(self, wanted: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Read all rows, in order."""


class Table:
    """Inputs in the rows of a table.

    Args:
        file: A CSV, TSV, JSON or Parquet file; all but Parquet may be packed (.gz, .bz2, .xz).
        kind: "image", "audio", "text", or another one for numbers.
        input_column: The column of inputs; found by its type and name if None. Numbers are those
            of all columns without the label, if no column holds several.
        label_column: The column of labels; found by its name if None, and not required.

    Raises:
        InputError: The file is damaged, or has no such column.
    """

    def __init__(
        self,
        file: Path,
        kind: str,
        input_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        self.file = file
        self.kind = kind
        try:
            self.reader = _reader(file)
        except (*DAMAGED, pyarrow.ArrowException) as error:
            raise InputError(f"{file} cannot be read ({first_line(error)})") from error
        columns = self.reader.columns
        for wanted in (input_column, label_column):
            if wanted is not None and wanted not in columns:
                raise InputError(f"{file}: no column {wanted!r}, only {', '.join(columns)}")
        self.label = label_column or next(iter(columns_called(columns, LABEL_COLUMNS)), None)
        if self.label == input_column:
            self.label = None
        others = {name: kind for name, kind in columns.items() if name != self.label}
        self.inputs = [input_column] if input_column else _input_columns(file, kind, others)
        self.total = self.reader.total

    def __iter__(self) -> Iterator[RawInput]:
        """Read the rows; a row that cannot be read has an error."""
        wanted = [*self.inputs, *([self.label] if self.label else [])]
        number = 0
        try:
            for number, row in enumerate(self.reader.rows(wanted), 1):
                yield self._raw(f"{self.file}:{number}", row)
        except (*DAMAGED, pyarrow.ArrowException) as error:
            reason = f"the file cannot be read from here on ({first_line(error)})"
            yield RawInput(f"{self.file}:{number + 1}", None, error=reason)

    def _raw(self, name: str, row: Mapping[str, Any] | str) -> RawInput:
        if isinstance(row, str):
            return RawInput(name, None, error=row)
        label = _label_name(row.get(self.label)) if self.label else None
        try:
            return RawInput(name, self._value(row), label)
        except ValueError as error:
            return RawInput(name, None, label, str(error))

    def _value(self, row: Mapping[str, Any]) -> Any:
        cells = [row.get(column) for column in self.inputs]
        if self.kind not in ("image", "audio", "text"):
            return _numbers(self.inputs, cells)
        [cell] = cells
        if isinstance(cell, str) and any("\ud800" <= letter <= "\udfff" for letter in cell):
            raise ValueError("it is not UTF-8; save the file as UTF-8")
        if cell is None or cell == "":
            raise ValueError(f"there is no {self.kind}")
        if self.kind == "text":
            if not isinstance(cell, str):
                raise ValueError(f"it is {type(cell).__name__}, not text")
            return cell
        if isinstance(cell, dict):
            encoded = cell.get("bytes")
            cell = cell.get("path") if encoded is None else encoded
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise ValueError(f"there is no {self.kind}: neither bytes nor a path")
        # As in `metadata.csv` of Hugging Face: relative to the table.
        return self.file.parent / cell


def is_table(file: Path) -> bool:
    """Whether a file is a table, by its suffix."""
    return unpacked_suffix(file) in READERS


def unpacked(file: Path) -> IO[bytes]:
    """Open a file, which may be packed by gzip, bzip2 or xz."""
    opened: IO[bytes] = OPENERS.get(file.suffix.lower(), Path.open)(file, "rb")
    return opened


class Delimited:
    """A CSV file; all cells are texts."""

    total: int | None = None

    def __init__(self, file: Path, delimiter: str = ",") -> None:
        self.file = file
        self.delimiter = delimiter
        header: list[str] = next(self._lines(), [])
        if not header:
            raise ValueError("it is empty, or has no rows")
        if any("\0" in name for name in header):
            raise ValueError("it is not UTF-8; save it as UTF-8")
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise ValueError(f"two columns are called {twice!r}; rename one of them")
        self.columns = dict.fromkeys(header, TEXT)

    def _lines(self) -> Iterator[list[str]]:
        csv.field_size_limit(LONGEST_CELL)
        with unpacked(self.file) as file:
            # Bytes that are not UTF-8 become surrogates, so that only their row is refused.
            texts = (
                line.decode("utf-8" if number else "utf-8-sig", "surrogateescape")
                for number, line in enumerate(file)
            )
            yield from filter(None, csv.reader(texts, delimiter=self.delimiter))

    def rows(self, wanted: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Read all rows."""
        names = list(self.columns)
        for cells in itertools.islice(self._lines(), 1, None):
            if len(cells) != len(names):
                yield f"it has {len(cells)} cells, and the header {len(names)}"
            else:
                yield dict(zip(names, cells, strict=True))


class Tabbed(Delimited):
    """A TSV file."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "\t")


class Records:
    """A JSON file: a mapping in each line, or one list of mappings."""

    total: int | None = None

    def __init__(self, file: Path) -> None:
        self.file = file
        first = next((row for row in self.rows() if isinstance(row, Mapping)), None)
        if first is None:
            raise ValueError("it has no rows of the form {...}, one a line")
        self.columns = {str(name): _kind_of_value(value) for name, value in first.items()}

    def rows(self, wanted: Sequence[str] = ()) -> Iterator[Mapping[str, Any] | str]:
        """Read all rows."""
        with unpacked(self.file) as file:
            lines = (line for line in file if line.strip())
            first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
            if first.lstrip().startswith(b"["):
                # One list: it is read whole.
                for row in json.loads(b"".join([first, *lines])):
                    yield row if isinstance(row, dict) else "it is no mapping of columns"
                return
            for line in itertools.chain([first] if first else [], lines):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"it is no JSON ({first_line(error)})"
                else:
                    yield row if isinstance(row, dict) else "it is no mapping of columns"


class Parquet:
    """A Parquet file, read in batches of rows; class numbers become names, as in `datasets`."""

    def __init__(self, file: Path) -> None:
        if file.suffix.lower() in OPENERS:
            raise ValueError("a packed Parquet file is not read; unpack it")
        self.file = file
        with parquet.ParquetFile(file) as opened:
            self.total: int | None = opened.metadata.num_rows
            schema = opened.schema_arrow
        self.columns = {field.name: _kind_of_type(field.type) for field in schema}
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
        self.classes = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }

    def rows(self, wanted: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Read all rows, of some columns alone."""
        with parquet.ParquetFile(self.file) as opened:
            for batch in opened.iter_batches(ROWS, columns=list(wanted)):
                for index in range(batch.num_rows):
                    try:
                        row = {name: batch[name][index].as_py() for name in wanted}
                    except UnicodeDecodeError:
                        yield "it is not UTF-8"
                        continue
                    for name in self.classes.keys() & row.keys():
                        row[name] = dict(enumerate(self.classes[name])).get(row[name])
                    yield row


READERS: dict[str, Callable[[Path], Reader]] = {
    ".csv": Delimited,
    ".tsv": Tabbed,
    ".json": Records,
    ".jsonl": Records,
    ".parquet": Parquet,
}


def _reader(file: Path) -> Reader:
    return READERS[table_suffix(str(file), file)](file)


def _kind_of_value(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    if isinstance(value, dict):
        return ENCODED if value.keys() & {"bytes", "path"} else OTHER
    if isinstance(value, list):
        return NUMBERS
    return NUMBER if isinstance(value, int | float) else OTHER


def _kind_of_type(of: Any) -> str:
    types = pyarrow.types
    if types.is_dictionary(of):
        of = of.value_type
    if types.is_string(of) or types.is_large_string(of):
        return TEXT
    if types.is_struct(of):
        return ENCODED if {field.name for field in of} & {"bytes", "path"} else OTHER
    if types.is_binary(of) or types.is_large_binary(of):
        return ENCODED
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return NUMBERS
    return NUMBER if types.is_integer(of) or types.is_floating(of) else OTHER


def _input_columns(file: Path, kind: str, columns: Columns) -> list[str]:
    """Choose the column of inputs by type, then by name; for numbers possibly several.

    Raises:
        InputError: No column fits, or several.
    """

    def of(*kinds: str) -> list[str]:
        return [name for name, found in columns.items() if found in kinds]

    if kind not in ("image", "audio", "text"):
        found = of(NUMBERS) or of(NUMBER, TEXT)
        if found and not (columns[found[0]] == NUMBERS and len(found) > 1):
            return found
    elif kind == "text":
        found = columns_called(of(TEXT), TEXT_COLUMNS)[:1] or of(TEXT)
    else:
        found = of(ENCODED) or columns_called(of(TEXT), PATH_COLUMNS)[:1] or of(TEXT)
    if len(found) != 1:
        count = "no column" if not found else "several columns"
        raise InputError(
            f"{file}: {count} of type {kind} among {', '.join(columns) or 'none'}; "
            "name it with --input-column"
        )
    return found


def _numbers(columns: Sequence[str], cells: Sequence[Any]) -> np.ndarray:
    """Return the numbers of a row.

    Raises:
        ValueError: A cell is empty or no number.
    """
    if len(cells) == 1 and isinstance(cells[0], list):
        try:
            return np.asarray(cells[0], dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"column {columns[0]}: {cells[0]!r:.60} is not a list of numbers"
            ) from None
    for column, cell in zip(columns, cells, strict=True):
        try:
            float(cell)
        except (TypeError, ValueError):
            raise ValueError(f"column {column}: {cell!r:.60} is not a number") from None
    return np.asarray([float(cell) for cell in cells], dtype=np.float32)


def _label_name(label: Any) -> str | None:
    """Return the class that a label names; 1.0 is class 1. None for an empty cell."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return printable(str(label))
