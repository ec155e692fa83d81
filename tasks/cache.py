"""Prepared data on disk: written once, whole or not at all, and read back as a memory map."""

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.errors import InputError

log = logging.getLogger(__name__)

# Part of every key: raise it when the form of what is stored changes.
FORMAT = 2


def cache_key(**parts: Any) -> str:
    """Name what is stored by a hash of all that it depends on.

    Example:
        >>> cache_key(source="digits") == cache_key(source="digits")
        True
    """
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Tell one state of a file or folder from another by the names, sizes and times of its files.

    Raises:
        OSError: The path cannot be read.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    facts = [
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    ]
    return hashlib.sha256(json.dumps([str(path.resolve()), facts]).encode()).hexdigest()[:16]


def cached(path: Path, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Load what lies at `path`; if nothing does, or nothing whole, build it and put it there first.

    It is written beside its place and then renamed: an interrupted run leaves no half file, and of
    two that build at the same time either one's whole file stays.

    Raises:
        InputError: The folder cannot be written.
        OSError: There is no space left for the file.
    """
    if path.exists():
        try:
            return _load(path)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            # A disk that was full or a machine that went down may have left anything there.
            log.warning(f"{path} is damaged ({str(error).splitlines()[0]}): it is made again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        os.close(handle)
    except OSError as error:
        raise InputError(
            f"data.cache_dir={path.parent} cannot be written ({error.strerror}); "
            "choose another one with --data.cache_dir"
        ) from error
    try:
        _save(build(), partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return _load(path)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    return loaded


def _save(built: dict[str, Any], partial: str) -> None:
    try:
        torch.save(built, partial)
    except RuntimeError as error:
        # Torch's writer does not say why it could not write.
        if shutil.disk_usage(Path(partial).parent).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), partial) from error
        raise
