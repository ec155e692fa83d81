"""Outputs of predictions: CSV, JSON Lines, Parquet, a table on a terminal, lines in a pipe."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow
from pyarrow import parquet
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tasks.errors import InputError
from tasks.inference.predictor import Prediction
from tasks.inference.tables import RawInput
from tasks.run.plain_text import printable, spreadsheet_text

# Rows of a table on a terminal.
SHOWN = 40
# Rows of Parquet in memory at once, which are one row group.
ROWS = 8192


@dataclass(frozen=True)
class Row:
    """One input with its prediction, or with the reason why there is none."""

    raw: RawInput
    prediction: Prediction | None
    error: str | None = None


# For the names of the columns.
NO_ROW = Row(RawInput("", None), None)


@dataclass(frozen=True)
class Columns:
    """Columns of the output.

    Args:
        classes: Names of the classes.
        text: Whether the inputs are texts, which are written too.
        labelled: Whether the inputs have labels.
        mc: Whether the predictions have a mutual information.
    """

    classes: list[str]
    text: bool
    labelled: bool
    mc: bool

    @property
    def uncertainties(self) -> list[str]:
        """Names of the columns that are shown with Monte Carlo dropout alone."""
        return ["entropy", "mutual_information"] if self.mc else []

    def values(self, row: Row) -> dict[str, Any]:
        """Return the columns of a row, except the probabilities of all classes."""
        raw, found = row.raw, row.prediction
        return {
            "input": raw.name,
            **({"text": raw.value if isinstance(raw.value, str) else None} if self.text else {}),
            **({"label": raw.label} if self.labelled else {}),
            "class": found and found.label,
            "probability": found and found.confidence,
            "entropy": found and found.entropy,
            **({"mutual_information": found and found.mutual_information} if self.mc else {}),
            "sure": found and found.sure,
            "error": row.error,
        }

    def probabilities(self, row: Row) -> dict[str, float | None]:
        """Return one column for each class."""
        found = row.prediction.probabilities if row.prediction else {}
        return {f"probability: {name}": found.get(name) for name in self.classes}


class Writer(Protocol):
    """A file of predictions that is being written."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Write what is left, so that the file can be read."""


class CSVWriter:
    """One line a row, one column for each class; no cell is a formula for a spreadsheet."""

    def __init__(self, file: Path, columns: Columns) -> None:
        self.columns = columns
        self.file = file.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self.writer = csv.writer(self.file)
        self.writer.writerow([*columns.values(NO_ROW), *columns.probabilities(NO_ROW)])

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            cells = self.columns.values(row) | self.columns.probabilities(row)
            self.writer.writerow(
                spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in cells.values()
            )

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class JSONWriter:
    """A mapping in each line, with a mapping from class to probability."""

    def __init__(self, file: Path, columns: Columns) -> None:
        self.columns = columns
        self.file = file.open("w", encoding="utf-8", errors="backslashreplace")

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            found = row.prediction
            values = self.columns.values(row)
            values["probabilities"] = found and found.probabilities
            self.file.write(json.dumps(values, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class ParquetWriter:
    """Typed columns, one for each class."""

    def __init__(self, file: Path, columns: Columns) -> None:
        self.columns = columns
        text, number = pyarrow.string(), pyarrow.float64()
        types = dict.fromkeys(("input", "text", "label", "class", "error"), text)
        types["sure"] = pyarrow.bool_()
        names = [*columns.values(NO_ROW), *columns.probabilities(NO_ROW)]
        self.schema = pyarrow.schema([(name, types.get(name, number)) for name in names])
        self.writer = parquet.ParquetWriter(file, self.schema)
        self.rows: list[dict[str, Any]] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            values = self.columns.values(row) | self.columns.probabilities(row)
            for name in ("input", "text", "error"):
                if isinstance(text := values.get(name), str):
                    # A path may hold bytes that are not UTF-8.
                    values[name] = text.encode("utf-8", "backslashreplace").decode()
            self.rows.append(values)
        if len(self.rows) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self) -> None:
        """Write the rest and the footer."""
        if self.rows:
            self._flush()
        self.writer.close()


FORMATS: dict[str, Callable[[Path, Columns], Writer]] = {
    ".csv": CSVWriter,
    ".jsonl": JSONWriter,
    ".parquet": ParquetWriter,
}


def check_output(file: Path, inputs: Sequence[Path]) -> None:
    """Check the file to write before anything is predicted.

    Raises:
        InputError: Its format is not known, its folder is missing, or it is an input.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"OUT={file}: the name ends in {', '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise InputError(f"OUT={file}: the folder {file.parent} does not exist; create it first")
    if file.is_dir():
        raise InputError(f"OUT={file} is a folder")
    if any(file.resolve() == one.resolve() for one in inputs):
        raise InputError(f"OUT={file} is one of the inputs; choose another name")


@contextmanager
def output_file(file: Path, columns: Columns) -> Iterator[Writer]:
    """Write a file atomically: under `NAME.partial`, which is renamed at the end.

    On Ctrl-C the rows so far stay in the partial file, which can be read; the exception names it.
    After another exception it is deleted.
    """
    partial = file.with_name(f"{file.name}.partial")
    writer = FORMATS[file.suffix.lower()](partial, columns)
    try:
        yield writer
        writer.close()
        partial.replace(file)
    except KeyboardInterrupt as error:
        writer.close()
        raise KeyboardInterrupt(f"those so far are in {partial}") from error
    except BaseException:
        with suppress(Exception):
            writer.close()
        partial.unlink(missing_ok=True)
        raise


class Screen(Protocol):
    """What is shown of predictions on standard output; `closed` if nobody reads it any more."""

    closed: bool

    def show(self, rows: Sequence[Row]) -> None:
        """Show rows."""

    def close(self) -> None:
        """Show what is left."""


class Lines:
    """All rows as lines with tabs between the columns, for a pipe; written batch by batch.

    Args:
        columns: The columns.
        top: Number of classes a row, the most probable first.
    """

    def __init__(self, columns: Columns, top: int) -> None:
        self.columns = columns
        self.top = min(top, len(columns.classes))
        self.closed = False
        self.begun = False

    def _print(self, rows: Sequence[Sequence[str]]) -> None:
        """Print lines; tabs and line breaks inside a cell are escaped."""
        if self.closed:
            return
        try:
            for cells in rows:
                print("\t".join(map(printable, cells)))
            sys.stdout.flush()
        except BrokenPipeError:
            # `head` has read enough. Flushing at exit would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.closed = True

    def show(self, rows: Sequence[Row]) -> None:
        """Show rows, the first ones below the names of the columns."""
        header = [] if self.begun else [_names(self.columns, self.top)]
        self.begun = True
        self._print([*header, *(_cells(row, self.columns, self.top) for row in rows)])

    def close(self) -> None:
        """Do nothing: all rows are shown."""


class Terminal:
    """The first rows as a table, when all are known.

    Args:
        columns: The columns.
        top: Number of classes a row, the most probable first.
        saved: Whether a file has all rows.
    """

    def __init__(self, columns: Columns, top: int, saved: bool) -> None:
        self.columns = columns
        self.top = min(top, len(columns.classes))
        self.saved = saved
        self.closed = False
        self.rows: list[Row] = []
        self.count = 0

    def show(self, rows: Sequence[Row]) -> None:
        """Keep the first rows."""
        self.count += len(rows)
        self.rows += rows[: SHOWN - len(self.rows)]

    def close(self) -> None:
        """Print the table."""
        if not self.rows:
            return
        console = Console()
        names = self._header()
        texts = 1 + self.columns.text
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(names):
            # Narrow terminals shorten paths, texts and notes, and no number.
            fixed = texts <= index < len(names) - 1
            table.add_column(name, no_wrap=fixed)
        longest = console.width // (2 + texts)
        for row in self.rows:
            cells = [printable(cell) for cell in self._cells(row)]
            cells[0] = _end(cells[0], longest)
            table.columns[0].min_width = max(len(cells[0]), table.columns[0].min_width or 0)
            # As `Text`, a name in brackets is no style.
            shown = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells)
            table.add_row(*shown, style=None if row.prediction else "dim")
        console.print(table)
        if left := self.count - len(self.rows):
            where = "" if self.saved else "; OUT=predictions.csv saves all"
            print(f"... and {left:,} more{where}")

    def _header(self) -> list[str]:
        names = [*self.columns.values(NO_ROW)]
        inputs = names[: names.index("class")]
        ranks = [f"{rank}." for rank in range(2, self.top + 1)]
        uncertainties = ["entropy", "mutual info"] if self.columns.mc else []
        return [*inputs, "class", *ranks, *uncertainties, "note"]

    def _cells(self, row: Row) -> list[str]:
        cells = _cells(row, self.columns, self.top)
        first = 1 + self.columns.text + self.columns.labelled
        last = first + 2 * self.top
        best = zip(cells[first:last:2], cells[first + 1 : last : 2], strict=True)
        percent = (f"{name}  {100 * float(value):.1f} %" if value else "" for name, value in best)
        return [*cells[:first], *percent, *cells[last:]]


def _names(columns: Columns, top: int) -> list[str]:
    """Name the columns of `_cells`."""
    ranks = ["", *(f"{rank}. " for rank in range(2, top + 1))]
    return [
        "input",
        *(["text"] if columns.text else []),
        *(["label"] if columns.labelled else []),
        *(f"{rank}{name}" for rank in ranks[:top] for name in ("class", "probability")),
        *columns.uncertainties,
        "note",
    ]


def _cells(row: Row, columns: Columns, top: int) -> list[str]:
    """Return a row for people; the note is "not sure", or why there is no prediction."""
    values = columns.values(row)
    found = row.prediction
    best = []
    if found is not None:
        ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])[:top]
        best = [cell for name, value in ranked for cell in (name, f"{value:.4f}")]
    return [
        *(str(values[name] or "") for name in ("input", "text", "label") if name in values),
        *(best or [""] * 2 * top),
        *("" if values[name] is None else f"{values[name]:.4f}" for name in columns.uncertainties),
        row.error or ("" if found is None or found.sure else "not sure"),
    ]


def _end(path: str, length: int) -> str:
    """Shorten a path to its end, where the name is.

    Example:
        >>> _end("photos/2026/seven.jpg", 12)
        '...seven.jpg'
    """
    return path if len(path) <= length else f"...{path[3 - length :]}"
