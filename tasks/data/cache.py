"""Decoded data on disk: written atomically, and read as a memory map."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from tasks.data.files import files_below
from tasks.errors import InputError, first_line

log = logging.getLogger(__name__)

# Part of every key; raise it when the format of the stored data changes.
FORMAT = 3
# Exceptions that mean a damaged file.
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)


def cache_key(**parts: Any) -> str:
    """Hash all values that the stored data depend on.

    Example:
        >>> cache_key(source="digits") == cache_key(source="digits")
        True
    """
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash the names, sizes and modification times of a file or of all files in a folder.

    Raises:
        InputError: A folder cannot be read.
    """
    files = [path] if path.is_file() else files_below(path).files
    facts = [
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    ]
    return hashlib.sha256(json.dumps([str(path.resolve()), facts]).encode()).hexdigest()[:16]


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Acquire an exclusive lock for this path; other processes wait.

    The kernel releases the lock of a process that is killed. On a file system without locks, nobody
    waits.
    """
    lock = path.with_name(f"{path.name}.lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting for another process that writes {path.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            break
        # The previous owner deletes the file, and a lock on a deleted file excludes nobody.
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
    """Load the file at `path`; build and write it first if it is missing or damaged.

    Of several processes one builds while the others wait. The file is written under another name
    and then renamed, so that an interrupted run leaves no partial file.

    Raises:
        InputError: The folder cannot be written.
        OSError: There is no space left for the file.
    """
    with suppress(*DAMAGED):
        if path.exists():
            return _load(path)
    with ExitStack() as locked:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            locked.enter_context(exclusive_lock(path))
        except OSError as error:
            raise InputError(
                f"data.cache_dir={path.parent} cannot be written ({error.strerror}); "
                "choose another one with --data.cache_dir"
            ) from error
        # Another process may have written it meanwhile. Nobody else deletes it under the lock.
        if path.exists():
            try:
                return _load(path)
            except DAMAGED as error:
                log.warning(f"{path} is damaged ({first_line(error)}) and is written again")
                path.unlink()
        _write(path, build())
        return _load(path)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    return loaded


def _write(path: Path, built: dict[str, Any]) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    os.close(handle)
    try:
        torch.save(built, partial)
        Path(partial).replace(path)
    except RuntimeError as error:
        # The error of torch's writer does not name the cause.
        if shutil.disk_usage(path.parent).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), partial) from error
        raise
    finally:
        Path(partial).unlink(missing_ok=True)
