"""Inputs of predictions: files, folders, patterns, tables and standard input, read one by one."""

import contextlib
import glob
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tasks.data.class_folders import file_suffixes
from tasks.data.files import files_below, with_home
from tasks.errors import InputError, first_line
from tasks.inference.tables import DAMAGED, READERS, RawInput, Table, is_table, unpacked

STDIN = "-"
# Plural of what a folder is searched for, by kind.
FILES = {"image": "images", "audio": "clips", "text": "texts (.txt)"}
# Bytes at the beginning of a file that are checked for text.
BEGIN = 8192


class Inputs:
    """All inputs of one call, in the given order; only the names of files are kept in memory.

    Of an image or audio model, a file is one input; of a text model, each line of a file that is
    not blank. A folder stands for all files of this kind in it and below, sorted by path; hidden
    files are left out. A table has one input a row. `-` is standard input: a text or the path of an
    image or clip in each line.

    Args:
        given: Paths, patterns such as `photos/*.jpg`, or `-`.
        kind: "image", "audio", "text", or another one, whose inputs are rows of numbers.
        texts: Further inputs of a text model.
        input_column: The column of a table that holds the inputs; see `Table`.
        label_column: The column of a table that holds the labels; see `Table`.

    Raises:
        InputError: A file is missing, a pattern matches nothing, a folder holds no file of this
            kind, or a table has no such column.
    """

    def __init__(
        self,
        given: Sequence[str],
        kind: str,
        texts: Sequence[str] = (),
        input_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        if texts and kind != "text":
            raise InputError(f"--text is for text models; this one takes {kind}: use --input")
        if not given and not texts:
            raise InputError(
                "INPUT is missing: a file, a folder, a pattern such as 'photos/*.jpg', a table "
                f"({', '.join(READERS)}), or - for standard input"
            )
        self.kind = kind
        self.texts = texts
        self.files = [file for one in given for file in self._expanded(one)]
        self.tables = {
            file: Table(file, kind, input_column, label_column)
            for file in self.files
            if file != Path(STDIN) and is_table(file)
        }
        if (input_column or label_column) and not self.tables:
            raise InputError("--input-column and --label-column are for tables, and none is given")

    @property
    def labelled(self) -> bool:
        """Whether a table has a column of labels."""
        return any(table.label for table in self.tables.values())

    @property
    def total(self) -> int | None:
        """The number of inputs; None if it is not known before they are read."""
        # The lines of a text file are counted while it is read.
        single = 1 if self.kind != "text" else None
        counts = [
            self.tables[file].total if file in self.tables else single
            for file in self.files
            if file != Path(STDIN)
        ]
        known = [count for count in counts if count is not None]
        return sum(known) + len(self.texts) if len(known) == len(self.files) else None

    def __iter__(self) -> Iterator[RawInput]:
        """Read all inputs in order."""
        for number, text in enumerate(self.texts, 1):
            yield RawInput(f"text:{number}", text)
        for file in self.files:
            if file in self.tables:
                yield from self.tables[file]
            elif file == Path(STDIN):
                yield from self._lines(sys.stdin.buffer, "stdin")
            elif self.kind == "text":
                yield from self._text_file(file)
            else:
                yield RawInput(str(file), file)

    def _expanded(self, given: str) -> list[Path]:
        """List the files that one argument stands for."""
        if given == STDIN:
            if self.kind not in FILES:
                raise InputError(f"INPUT=-: a model of kind {self.kind} reads tables")
            return [Path(STDIN)]
        path = with_home(given)
        try:
            found = [path] if path.exists() else _matches(given)
        except (OSError, ValueError) as error:
            raise InputError(f"INPUT={given:.200}: {first_line(error)}") from error
        files = [file for one in found for file in (self._below(one) if one.is_dir() else [one])]
        for file in files:
            if self.kind not in FILES and not is_table(file):
                raise InputError(
                    f"{file}: a model of kind {self.kind} reads tables ({', '.join(READERS)})"
                )
        return files

    def _below(self, folder: Path) -> list[Path]:
        files = files_below(folder).files
        if self.kind == "text":
            found = [file for file in files if file.suffix.lower() == ".txt"]
        elif self.kind in FILES:
            suffixes = file_suffixes(self.kind)
            found = [file for file in files if file.suffix.lower() in suffixes]
        else:
            found = [file for file in files if is_table(file)]
        if not found:
            tables = [file for file in files if is_table(file)]
            fix = f"; for its tables, give the file: {tables[0]}" if tables else ""
            what = FILES.get(self.kind, "tables")
            raise InputError(f"INPUT={folder}: the folder holds no {what}{fix}")
        return found

    def _text_file(self, file: Path) -> Iterator[RawInput]:
        try:
            with unpacked(file) as opened:
                begin = opened.read(BEGIN)
            if b"\0" in begin:
                reason = "it is no text file; a text is UTF-8, one a line"
                yield RawInput(str(file), None, error=reason)
                return
            with unpacked(file) as opened:
                yield from self._lines(opened, str(file))
        except DAMAGED as error:
            yield RawInput(str(file), None, error=f"it cannot be read ({first_line(error)})")

    def _lines(self, lines: Iterable[bytes], name: str) -> Iterator[RawInput]:
        """Read one input from each line that is not blank; lines count from 1."""
        for number, line in enumerate(lines, 1):
            place = f"{name}:{number}"
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            if self.kind != "text":
                # Names of files are bytes.
                path = line.decode(encoding, "surrogateescape").rstrip("\r\n")
                if path.strip():
                    yield RawInput(path, with_home(path))
                continue
            try:
                text = line.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError:
                yield RawInput(place, None, error="it is not UTF-8; save the file as UTF-8")
                continue
            if text.strip():
                yield RawInput(place, text)


def _matches(given: str) -> list[Path]:
    """List the files that a pattern matches, or that several words name.

    Raises:
        InputError: There is none.
    """
    pattern = str(with_home(given))
    # `Path.glob` takes no absolute pattern.
    if found := sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        return [Path(one) for one in found]
    words: list[str] = []
    # An apostrophe in a name is no quotation mark.
    with contextlib.suppress(ValueError):
        words = shlex.split(given)
    if len(words) > 1:
        # `make predict INPUT="a.jpg b.jpg"` gives one argument.
        return [
            path
            for word in words
            for path in ([with_home(word)] if with_home(word).exists() else _matches(word))
        ]
    if glob.has_magic(given):
        raise InputError(f"INPUT={given}: no file matches this pattern")
    raise InputError(f"INPUT={given}: no such file or folder")
