"""Which checkpoint an interrupted run goes on from, and which ones it must not."""

import logging
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tasks.callbacks import RESULTS
from tasks.checkpoints import LAST, PREVIOUS
from tasks.errors import InputError, first_line

log = logging.getLogger(__name__)

# Parts of the configuration that may change from one part of a run to the next.
FREE = ("config", "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar")


def resumable(folder: Path, config: dict[str, Any]) -> Path | None:
    """Return the checkpoint in a run's folder that the run goes on from; None if there is none yet.

    Args:
        folder: The run's own.
        config: The resolved configuration of the run.

    Raises:
        InputError: There are checkpoints, and all of them are torn or of another run.
    """
    problems: list[str] = []
    for file in (folder / LAST, folder / PREVIOUS):
        if not file.exists():
            continue
        problem = unusable(file, config)
        if problem is None:
            for earlier in problems:
                log.warning(f"{earlier}; the run goes on from {file}")
            return file
        problems.append(f"{file} {problem}")
    if problems:
        raise InputError(
            f"{'; '.join(problems)}; to begin anew, take another folder or delete {folder}"
        )
    return None


def unusable(file: Path, config: dict[str, Any]) -> str | None:
    """Say what is wrong with a checkpoint, or None if a run of this configuration can use it."""
    try:
        with zipfile.ZipFile(file) as archive:
            torn = archive.testzip()
        if torn is not None:
            return f"is damaged (in {torn})"
        checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
        return f"is torn ({first_line(error)})"
    except pickle.UnpicklingError:
        return "holds more than tensors and plain data, which is not opened"
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("run"), dict):
        return "is no checkpoint that a run can go on from"
    differences = list(differing(checkpoint["run"]["config"], config))
    if differences:
        return f"is of another run ({'; '.join(differences[:3])})"
    return None


def differing(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """Name the values in which two configurations differ, but for those that are free.

    Example:
        >>> list(differing({"data": {"batch_size": 8}}, {"data": {"batch_size": 9}}))
        ['data.batch_size is 8 there and 9 here']
    """
    if key in FREE or there == here:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys((*there, *here)):
            part = f"{key}.{name}" if key else name
            yield from differing(there.get(name), here.get(name), part)
    else:
        yield f"{key} is {there} there and {here} here"


def unfinished(name: str) -> Iterator[Path]:
    """List the folders of a name's runs that were interrupted, the newest one first."""
    for folder in sorted((Path("runs") / name).glob("*/"), reverse=True):
        started = any((folder / file).exists() for file in (LAST, PREVIOUS))
        if started and not (folder / RESULTS).exists():
            yield folder
