"""Which checkpoint an interrupted run goes on from, and which ones it must not."""

import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.checkpoints import LAST, PREVIOUS
from tasks.errors import InputError
from tasks.opening import read_checkpoint
from tasks.results import RESULTS

log = logging.getLogger(__name__)

# Parts of the configuration that may change from one part of a run to the next.
FREE = ("config", "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar")
# What the callbacks and Lightning read of a checkpoint when a run goes on.
PARTS = (
    *("pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states"),
    *("lr_schedulers", "global_step", "epoch", "run", "random", "results", "speed", "sums"),
)
# Differences from another run that a message names.
SHOWN = 3
# In the place of a value that a configuration does not have.
MISSING = "missing"


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
        try:
            check(file, config)
        except InputError as error:
            problems.append(str(error))
            continue
        for earlier in problems:
            log.warning(f"{earlier}; the run goes on from {file}")
        return file
    if problems:
        raise InputError(
            f"{'; '.join(problems)}; to begin anew, take another folder or delete {folder}"
        )
    return None


def check(file: Path, config: dict[str, Any]) -> None:
    """Refuse a checkpoint that a run of this configuration cannot go on from.

    Raises:
        InputError: It is torn, lacks a part, or is of another run.
    """
    checkpoint = read_checkpoint(file)
    run = checkpoint.get("run")
    saved = run.get("config") if isinstance(run, dict) else None
    missing = [part for part in PARTS if part not in checkpoint]
    if missing or not isinstance(saved, dict):
        raise InputError(
            f"{file} is no checkpoint that a run can go on from (it lacks "
            f"{', '.join(missing) or 'the configuration of its run'})"
        )
    differences = list(differing(saved, config))
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if differences[SHOWN:] else ""
        raise InputError(f"{file} is of another run ({'; '.join(differences[:SHOWN])}{more})")


def differing(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """Name the values in which two configurations differ, but for those that are free.

    Example:
        >>> list(differing({"data": {"batch_size": 8}}, {"data": {"batch_size": 9}}))
        ['data.batch_size is 8 there and 9 here']
        >>> list(differing({"data": {"batch_size": 8}}, {}))
        ['data.batch_size is 8 there and missing here']
    """
    there, here = as_mapping(there), as_mapping(here)
    if key in FREE or there == here:
        return
    both = (there, here)
    names = dict.fromkeys(name for side in both if isinstance(side, dict) for name in side)
    if names and all(isinstance(side, dict) or side == MISSING for side in both):
        for name in names:
            values = [side.get(name, MISSING) if side != MISSING else MISSING for side in both]
            yield from differing(values[0], values[1], f"{key}.{name}" if key else str(name))
    else:
        shown = (textwrap.shorten(str(side), 60) for side in both)
        yield "{} is {} there and {} here".format(key, *shown)


def as_mapping(value: Any) -> Any:
    """Turn a list into a mapping by index, so that it is compared value by value."""
    return dict(enumerate(value)) if isinstance(value, list | tuple) else value


def unfinished(name: str) -> Iterator[Path]:
    """List the folders of a name's runs that were interrupted, the newest one first."""
    for folder in sorted((Path("runs") / name).glob("*/"), reverse=True):
        started = any((folder / file).exists() for file in (LAST, PREVIOUS))
        if started and not (folder / RESULTS).exists():
            yield folder
