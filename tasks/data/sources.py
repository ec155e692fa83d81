"""Data sets by name or import path: functions that return a `Source`."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regain.registry import Registry, is_import_path, locate
from tasks.data.loading import SPLIT_NAMES, Source
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.data.base import ClassificationData

SourceFunction = Callable[..., Source]
# Names in this package keep the cache when its files change: `tasks.data.cache.FORMAT` does that.
OWN_PACKAGE = "tasks."


def source_names(data: "type[ClassificationData]") -> list[str]:
    """Return the names of data sets that a data module knows."""
    return data.sources.names()


def source_label(name: str) -> str:
    """Return a data set's name for folders, charts and W&B.

    Example:
        >>> source_label("cifar10"), source_label("some/folder"), source_label("my/data.py:digits")
        ('cifar10', 'folder', 'digits')
    """
    return name.rpartition(":")[2] if is_import_path(name) else Path(name).name


def is_function(name: str, known: "Registry[SourceFunction]") -> bool:
    """Whether a name is that of a function, and not of a file, a folder or a hub data set."""
    return name in known.names() or is_import_path(name)


def find_function(name: str, known: "Registry[SourceFunction]") -> SourceFunction:
    """Return the function of a name, as `Registry.find` does.

    Raises:
        InputError: There is no such function, or its file cannot be imported.
    """
    try:
        return known.find(name)
    except ValueError as error:
        raise InputError(str(error)) from error


def function_file(function: SourceFunction) -> Path | None:
    """Return the file that a function from outside this project is defined in."""
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    return None if file is None or function.__module__.startswith(OWN_PACKAGE) else Path(file)


def call_function(name: str, function: SourceFunction, **options: Any) -> Source:
    """Call a function with those of the options that it has parameters for.

    Raises:
        InputError: It fails, or returns anything but a `Source` with a training split.
    """
    accepted = inspect.signature(function).parameters
    try:
        source = function(**{key: value for key, value in options.items() if key in accepted})
    except InputError:
        raise
    except Exception as error:
        file = function_file(function)
        if file is None:
            raise
        raise InputError(f"DATA={name}: {locate(error, str(file))}") from error
    if not isinstance(source, Source):
        raise InputError(f"DATA={name} returns {type(source).__name__}, not a tasks.data.Source")
    if "train" not in source.splits:
        raise InputError(f"DATA={name}: no split named train, only {', '.join(source.splits)}")
    for split, rows in source.splits.items():
        if split not in SPLIT_NAMES:
            raise InputError(f"DATA={name}: split {split} is none of {', '.join(SPLIT_NAMES)}")
        if len(rows.inputs) != len(rows.labels):
            raise InputError(
                f"DATA={name}: split {split} has {len(rows.inputs)} inputs and "
                f"{len(rows.labels)} labels"
            )
    return source
