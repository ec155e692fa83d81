"""Prepared data on disk: written once, whole or not at all, and read back as a memory map."""

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

from tasks.errors import InputError, first_line
from tasks.files import files_below

log = logging.getLogger(__name__)

# Part of every key: raise it when the form of what is stored changes.
FORMAT = 3
# What the reading of a torn file raises.
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)


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
        InputError: A folder cannot be read.
    """
    files = [path] if path.is_file() else files_below(path).files
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
    """Load what lies at `path`; if nothing does, or nothing whole, build it and put it there first.

    Of several processes one builds while the others wait. It is written beside its place and then
    renamed: an interrupted run leaves no half file.

    Raises:
        InputError: The folder cannot be written.
        OSError: There is no space left for the file.
    """
    with suppress(*DAMAGED):
        if path.exists():
            return _load(path)
    with ExitStack() as alone_here:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            alone_here.enter_context(alone(path))
        except OSError as error:
            raise InputError(
                f"data.cache_dir={path.parent} cannot be written ({error.strerror}); "
                "choose another one with --data.cache_dir"
            ) from error
        # Another process may have made it in the meantime. Nobody else deletes it here.
        if path.exists():
            try:
                return _load(path)
            except DAMAGED as error:
                # A disk that was full or a machine that went down may have left anything there.
                log.warning(f"{path} is damaged ({first_line(error)}): it is made again")
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
        # Torch's writer does not say why it could not write.
        if shutil.disk_usage(path.parent).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), partial) from error
        raise
    finally:
        Path(partial).unlink(missing_ok=True)
