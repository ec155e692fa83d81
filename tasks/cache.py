"""Prepared data on disk: written once, whole or not at all, and read back as a memory map."""

import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

# Part of every key: raise it when the form of what is stored changes.
FORMAT = 1


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


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time in, of all that come with this path; the others wait.

    The lock is the kernel's, which takes it from a process that is killed. Where a file system has
    no locks, all come in at once.
    """
    lock = path.with_name(f"{path.name}.lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting for another process that prepares {path.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            break
        # The one before deletes the file, and a lock on a deleted file locks nobody else out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                break
        os.close(handle)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def cached(path: Path, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Load what lies at `path`; if nothing does, build it and put it there first.

    Of several processes one builds while the others wait. It is written beside its place and then
    renamed: an interrupted run leaves no half file.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path):
            if not path.exists():
                write(path, build())
    loaded: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    return loaded


def write(path: Path, built: dict[str, Any]) -> None:
    """Put a file in its place, whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    os.close(handle)
    try:
        torch.save(built, partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
