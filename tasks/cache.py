"""Prepared data on disk: written once, whole or not at all, and read back as a memory map."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def cached(path: Path, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Load what lies at `path`; if nothing does, build it and put it there first.

    It is written beside its place and then renamed: an interrupted run leaves no half file, and of
    two that build at the same time either one's whole file stays.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        built = build()
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        os.close(handle)
        try:
            torch.save(built, partial)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    loaded: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    return loaded
