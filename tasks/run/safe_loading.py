"""Loads checkpoints without executing code from them.

Lightning unpickles the content of an address, and imports the classes that a checkpoint names
(`{"reg": {"class_path": ...}}`). Here a checkpoint holds tensors and plain data, and only the
dataclasses in the annotations of the task's constructor are built from it. A model, dropout or norm
that a checkpoint names by import path is imported only if the caller trusts it.
"""

import inspect
import pickle
import tempfile
import textwrap
import urllib.error
import urllib.request
import zipfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, Self, cast, get_type_hints

import lightning as L
import torch

from regain.registry import is_import_path
from tasks import hub_files
from tasks.errors import InputError, first_line
from tasks.run.moved_keys import with_moved_keys

# Timeout of a server, in seconds.
SILENCE = 30.0

Source = str | Path | IO[bytes]


class SafelyOpened(L.LightningModule):
    """A module whose checkpoints hold tensors and plain data, and open without running code."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn the constructor's arguments into plain data."""
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        checkpoint[key] = {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in checkpoint.get(key, {}).items()
            # Lightning's name of a function that would build the module.
            if name != "_instantiator"
        }

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trusted: Collection[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Build the module of a checkpoint, with its weights; no code in it is executed.

        Args:
            checkpoint_path: A path, an http(s) address, or an open file.
            map_location: Device of the weights, as in `torch.load`; by default the one that they
                were saved on, or the CPU where there is no GPU.
            hparams_file: Not read: a checkpoint holds the constructor's arguments.
            strict: Whether the weights must be those of the model, by name; True by default.
            weights_only: Always true; False is refused.
            trusted: Import paths, such as `my_net.py:Net`, that may be imported where the
                checkpoint names them.
            **kwargs: Arguments of the constructor, in the place of those in the checkpoint.

        Raises:
            ValueError: `weights_only` is False, or there is an `hparams_file`.
            InputError: The checkpoint cannot be read, is not one of this module, or names an import
                path that is not trusted.
        """
        if weights_only is False:
            raise ValueError("weights_only=False would run code from the checkpoint; leave it out")
        if hparams_file is not None:
            raise ValueError(f"hparams_file={hparams_file} is not read; give arguments by name")
        if map_location is None and not torch.cuda.is_available():
            map_location = "cpu"
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        return cls.from_checkpoint(checkpoint, str(checkpoint_path), strict, trusted, **kwargs)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: dict[str, Any],
        origin: str,
        strict: bool | None = None,
        trusted: Collection[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Build the module from the content of a checkpoint, as `load_from_checkpoint` does.

        Args:
            checkpoint: As returned by `read_checkpoint`.
            origin: Name of the checkpoint in error messages.
            strict: As in `load_from_checkpoint`.
            trusted: As in `load_from_checkpoint`.
            **kwargs: As in `load_from_checkpoint`.

        Raises:
            InputError: The checkpoint is of another module, or names an import path that is not
                trusted.
        """
        saved = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        weights = checkpoint["state_dict"]
        if isinstance(saved, dict):
            saved = {name: value for name, value in saved.items() if name not in kwargs}
            refuse_imports(origin, saved, trusted)
        try:
            with hub_files.from_checkpoint(checkpoint.get("hub")):
                module = cls(**constructor_arguments(cls, saved) | kwargs)
            module.on_load_checkpoint(checkpoint)
            module.load_state_dict(
                weights, strict=module.strict_loading if strict is None else strict
            )
            return module.to(next(iter(weights.values())).device) if weights else module
        except (
            *(AttributeError, InputError, LookupError, RuntimeError, TypeError, ValueError),
        ) as error:
            reason = textwrap.shorten(str(error), 200)
            raise InputError(
                f"{origin} is not a checkpoint of {cls.__name__} ({reason})"
            ) from error


def read_checkpoint(source: Source, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, after a check that it is whole.

    Args:
        source: A path, an http(s) address, or an open file.
        map_location: Where its tensors go, as in `torch.load`.

    Raises:
        InputError: It cannot be read, is damaged, or holds more than tensors and plain data.
    """
    name = str(source) if isinstance(source, str | Path) else getattr(source, "name", "the file")
    scheme = str(source).partition("://")[0].lower() if "://" in str(source) else ""
    if isinstance(source, str) and scheme not in ("", "http", "https"):
        raise InputError(
            f"{name} cannot be opened: a checkpoint is a file or an http(s) address; download it"
        )
    try:
        with ExitStack() as opened:
            file: Any = source
            if isinstance(source, str) and scheme:
                # A file without a name: PyTorch's own cache would return the `best.ckpt` of another
                # address.
                file = opened.enter_context(tempfile.TemporaryFile())
                answer = opened.enter_context(urllib.request.urlopen(source, timeout=SILENCE))
                copyfileobj(answer, file)
                file.seek(0)
            with zipfile.ZipFile(file) as archive:
                torn = archive.testzip()
            if torn is not None:
                raise InputError(f"{name} is damaged (in {torn})")
            if isinstance(file, str | Path):
                # Memory-mapped: only the tensors that are used are read.
                found = torch.load(file, map_location, mmap=True, weights_only=True)
            else:
                file.seek(0)
                found = torch.load(file, map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{name} contains more than tensors and plain data, and is not opened"
        ) from error
    except urllib.error.URLError as error:
        raise InputError(f"{name} cannot be read ({error.reason})") from error
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist") from error
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{name} is incomplete ({first_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise InputError(f"{name} is not a checkpoint of a run")
    return cast(dict[str, Any], found)


def refuse_imports(name: str, saved: dict[str, Any], trusted: Collection[str]) -> None:
    """Refuse the arguments of a checkpoint if code would be imported by what they name.

    Args:
        name: Name of the checkpoint in error messages.
        saved: The arguments.
        trusted: Import paths that may be imported.

    Raises:
        InputError: An argument besides `spec`, which describes the data, is another import path.
    """
    for key, value in saved.items():
        for path, text in _texts(value, str(key)):
            if key != "spec" and is_import_path(text) and text not in trusted:
                raise InputError(
                    f"{name} names code to import, {path}={text}, which is refused; if you "
                    f'trust it, load it with trusted=("{text}",), or --trust {text} in a command'
                )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(name, path)
            yield from _texts(part, f"{path}.{name}")
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _texts(part, path)


def constructor_arguments(task: type, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task's constructor from the plain data of a checkpoint.

    A mapping becomes a dataclass where the constructor's annotation is one. All else stays what it
    is, and what the constructor does not know is left out.

    Raises:
        TypeError: A dataclass has no such field, or lacks one.
        ValueError: A value is out of its range.
    """
    saved = with_moved_keys({"model": saved})[0]["model"]
    known = inspect.signature(task).parameters
    kinds = get_type_hints(task.__init__)  # type: ignore[misc] # Its own annotations, not a child's.
    return {name: built(kinds.get(name), value) for name, value in saved.items() if name in known}


def built(kind: Any, value: Any) -> Any:
    """Make the dataclass `kind` of plain data, its parts too.

    Example:
        >>> from regain import Regularization
        >>> built(Regularization, {"dropout": 0.5}).dropout
        0.5
        >>> built(str, {"class_path": "os.system"})
        {'class_path': 'os.system'}
    """
    if not (is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict)):
        return value
    kinds = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    if unknown := sorted(str(name) for name in value.keys() - names):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    return kind(**{name: built(kinds[name], part) for name, part in value.items()})
