"""Paths as users give them, and the files in a folder, following links."""

import os
from pathlib import Path
from typing import NamedTuple

from tasks.errors import InputError

# Prefixes of hidden files, and of those of Python and macOS.
LEFT_OUT = (".", "__")


class Files(NamedTuple):
    """Files in a folder and all folders below.

    Args:
        files: Sorted by path.
        doubles: Pairs of paths that lead to the same folder; its files are listed once.
    """

    files: list[Path]
    doubles: list[tuple[Path, Path]]


def with_home(path: str | Path) -> Path:
    """Replace `~` by the home folder; a file may be called `~x` without being anyone's.

    Example:
        >>> with_home("~no-such-user.png").name
        '~no-such-user.png'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def files_below(root: Path) -> Files:
    """List the regular files in a folder and below, except hidden ones, following links.

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
                # A symbolic link to itself.
                continue
    found.files.sort()
    return found
