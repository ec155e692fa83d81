"""Configs of hub models, which a checkpoint contains so that it opens without the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

# Keys of a config that name code to download. A checkpoint may come from anyone.
NAMING_CODE = ("auto_map", "implementation", "quantization")


@dataclass
class HubFiles:
    """Files of hub models that have been read, by folder or hub id.

    Args:
        configs: Configs as plain data.
        preprocessors: Contents of `preprocessor_config.json`.
        weights_follow: Whether a checkpoint's weights replace those of the built model, so that
            pretrained ones need not be loaded.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    preprocessors: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights_follow: bool = False


_current: ContextVar[HubFiles | None] = ContextVar("hub_files", default=None)


def hub_files() -> HubFiles:
    """Return the files of the model that is being built; new ones if none is."""
    return _current.get() or HubFiles()


@contextmanager
def recorded() -> Iterator[HubFiles]:
    """Record the files that the models built inside read; those of a checkpoint come first."""
    files = hub_files()
    token = _current.set(files)
    try:
        yield files
    finally:
        _current.reset(token)


@contextmanager
def from_checkpoint(saved: Any) -> Iterator[None]:
    """Build models from the files that a checkpoint contains, without pretrained weights.

    Raises:
        ValueError: `saved` is not a mapping.
    """
    files = HubFiles(weights_follow=True)
    if saved is not None:
        if not isinstance(saved, dict):
            raise ValueError(f"hub={saved!r:.60} is not configs of hub models")
        for name in ("configs", "preprocessors"):
            setattr(files, name, _without_code(saved.get(name) or {}))
    token = _current.set(files)
    try:
        yield
    finally:
        _current.reset(token)


def saved_files(files: HubFiles) -> dict[str, Any]:
    """Return files as plain data for a checkpoint."""
    return {"configs": deepcopy(files.configs), "preprocessors": deepcopy(files.preprocessors)}


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_code(part)
            for key, part in value.items()
            if not any(name in str(key) for name in NAMING_CODE)
        }
    return [_without_code(part) for part in value] if isinstance(value, list) else value
