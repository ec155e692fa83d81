"""Opening a checkpoint: nothing in it is run, wherever it comes from.

Lightning's own way unpickles what an address serves, and imports what a checkpoint names as a class
(`{"reg": {"class_path": ...}}`). Here a checkpoint is tensors and plain data, and the only classes
that are built of it are the dataclasses that the task's constructor is annotated with.
"""

import inspect
import pickle
import tempfile
import textwrap
import urllib.error
import urllib.request
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, Self, cast, get_type_hints

import lightning as L
import torch

from tasks.errors import InputError, first_line

# Seconds that a server may be silent.
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
        **kwargs: Any,
    ) -> Self:
        """Build the module that a checkpoint holds, with its weights; nothing in it is run.

        Args:
            checkpoint_path: A path, an http(s) address, or an open file.
            map_location: Device of the weights, as in `torch.load`; by default the one that they
                were saved on, or the CPU where there is no GPU.
            hparams_file: Not read: a checkpoint holds the constructor's arguments.
            strict: Whether the weights must be those of the model, by name; True by default.
            weights_only: Always true; False is refused.
            **kwargs: Arguments of the constructor, in the place of those in the checkpoint.

        Raises:
            ValueError: `weights_only` is False, or there is an `hparams_file`.
            InputError: The checkpoint cannot be read, or is not one of this module.
        """
        if weights_only is False:
            raise ValueError("weights_only=False would run code from the checkpoint; leave it out")
        if hparams_file is not None:
            raise ValueError(f"hparams_file={hparams_file} is not read; give arguments by name")
        if map_location is None and not torch.cuda.is_available():
            map_location = "cpu"
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        saved, weights = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY), checkpoint["state_dict"]
        try:
            module = cls(**constructor_arguments(cls, saved or {}) | kwargs)
            module.on_load_checkpoint(checkpoint)
            module.load_state_dict(
                weights, strict=module.strict_loading if strict is None else strict
            )
            return module.to(next(iter(weights.values())).device) if weights else module
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise InputError(f"{checkpoint_path} holds no {cls.__name__} ({reason})") from error


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
                copyfileobj(urllib.request.urlopen(source, timeout=SILENCE), file)
                file.seek(0)
            with zipfile.ZipFile(file) as archive:
                torn = archive.testzip()
            if torn is not None:
                raise InputError(f"{name} is damaged (in {torn})")
            if isinstance(file, str | Path):
                # In memory are only those of its tensors that are looked at.
                found = torch.load(file, map_location, mmap=True, weights_only=True)
            else:
                file.seek(0)
                found = torch.load(file, map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{name} holds more than tensors and plain data, which is not opened"
        ) from error
    except urllib.error.URLError as error:
        raise InputError(f"{name} cannot be read ({error.reason})") from error
    except FileNotFoundError as error:
        raise InputError(f"{name} is not there") from error
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{name} is torn ({first_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise InputError(f"{name} is no checkpoint of a run")
    return cast(dict[str, Any], found)


def constructor_arguments(task: type, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task's constructor from the plain data of a checkpoint.

    A mapping becomes a dataclass where the constructor's annotation is one. All else stays what it
    is, and what the constructor does not know is left out.

    Raises:
        TypeError: A dataclass has no such field, or lacks one.
        ValueError: A value is out of its range.
    """
    known = inspect.signature(task).parameters
    kinds = get_type_hints(task.__init__)  # type: ignore[misc] # Its own annotations, not a child's.
    return {name: built(kinds.get(name), value) for name, value in saved.items() if name in known}


def built(kind: Any, value: Any) -> Any:
    """Make the dataclass `kind` of plain data, its parts too.

    Example:
        >>> from modules import Regularization
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
