"""The files below a folder, behind links too."""

import os
from pathlib import Path
from typing import NamedTuple

from tasks.errors import InputError

# Hidden files, and what Python and macOS leave behind.
LEFT_OUT = (".", "__")


class Files(NamedTuple):
    """What lies below a folder.

    `files` are in the order of their names. `doubles` are pairs of paths of one folder, which is
    reached in two ways; its files are listed once.
    """

    files: list[Path]
    doubles: list[tuple[Path, Path]]


def files_below(root: Path) -> Files:
    """List the plain files below a folder, but for hidden ones; links are followed, loops are not.

    Raises:
        InputError: A folder cannot be read.
    """
    found = Files([], [])
    seen: dict[Path, Path] = {}
    left: list[tuple[Path, tuple[Path, ...]]] = [(root, ())]
    while left:
        folder, above = left.pop()
        real = folder.resolve()
        if real in above:
            continue
        if real in seen:
            found.doubles.append((folder, seen[real]))
            continue
        seen[real] = folder
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith(LEFT_OUT):
                continue
            try:
                if entry.is_file():
                    found.files.append(Path(entry.path))
                elif entry.is_dir():
                    left.append((Path(entry.path), (*above, real)))
            except OSError:
                # A link to itself leads nowhere.
                continue
    found.files.sort()
    return found
