"""Selection of the checkpoint that an interrupted run resumes from."""

import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.run.checkpoints import LAST, PREVIOUS
from tasks.run.length import INTERVAL
from tasks.run.moved_keys import with_moved_keys
from tasks.run.results import is_complete
from tasks.run.safe_loading import read_checkpoint

log = logging.getLogger(__name__)

# Parts of the configuration that may change when a run is resumed.
MAY_DIFFER = ("config", "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar")
# Keys of a checkpoint that the callbacks and Lightning read in a resume.
PARTS = (
    *("pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states"),
    *("lr_schedulers", "global_step", "epoch", "run", "random", "results", "speed", "sums"),
)
# Number of differences in an error message.
MAX_NAMED = 3
# Shown for a value that one of two configurations does not have.
MISSING = "missing"


def resumable(folder: Path, config: dict[str, Any]) -> Path | None:
    """Return the checkpoint in a run's folder to resume from; None if there is none yet.

    Args:
        folder: The run's folder.
        config: The resolved configuration of the run.

    Raises:
        InputError: There are checkpoints, but all are incomplete or belong to another run.
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
            log.warning(f"{earlier}; resuming from {file}")
        return file
    if problems:
        raise InputError(
            f"{'; '.join(problems)}; to start a new run, use another folder or delete {folder}"
        )
    return None


def check(file: Path, config: dict[str, Any]) -> None:
    """Check that a run with this configuration can resume from a checkpoint.

    Raises:
        InputError: The checkpoint is incomplete or belongs to another run.
    """
    checkpoint = read_checkpoint(file)
    run = checkpoint.get("run")
    saved = run.get("config") if isinstance(run, dict) else None
    missing = [part for part in PARTS if part not in checkpoint]
    if missing or not isinstance(saved, dict):
        raise InputError(
            f"{file} is not a checkpoint to resume from (it lacks "
            f"{', '.join(missing) or 'the configuration of its run'})"
        )
    saved = with_interval(with_length(with_moved_keys(saved)[0], config), config)
    differences = list(config_differences(saved, config))
    if differences:
        more = f"; and {len(differences) - MAX_NAMED} more" if differences[MAX_NAMED:] else ""
        raise InputError(
            f"{file} belongs to another run ({'; '.join(differences[:MAX_NAMED])}{more})"
        )


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a configuration; an empty one if a damaged file has something else."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def with_length(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of the training length that an older configuration does not have.

    In it, the presets set `trainer.max_epochs`; `TrainingLength` resumes with that length.

    Args:
        saved: The configuration of the checkpoint.
        config: The configuration of the run; it has the presets' length in `model.optim`.
    """
    there, here = (section(section(one, "model"), "optim") for one in (saved, config))
    # Without any optimizer, the checkpoint is damaged; the comparison names what is missing.
    if not there or "epochs" in there or "epochs" not in here:
        return saved
    length = {name: here[name] for name in ("epochs", "min_steps")}
    trainer = section(saved, "trainer")
    if config["trainer"]["max_epochs"] is None:
        trainer = trainer | {"max_epochs": None}
    model = saved["model"] | {"optim": there | length}
    return saved | {"model": model, "trainer": trainer}


def with_interval(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Set the validation interval to null if it is not set; in older configurations it was then 1.

    Args:
        saved: The configuration of the checkpoint.
        config: The configuration of the run.
    """
    trainer = section(saved, "trainer")
    if trainer.get(INTERVAL) != 1 or config["trainer"][INTERVAL] is not None:
        return saved
    return saved | {"trainer": trainer | {INTERVAL: None}}


def config_differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """List the values in which two configurations differ, except those in `MAY_DIFFER`.

    Example:
        >>> list(config_differences({"data": {"batch_size": 8}}, {"data": {"batch_size": 9}}))
        ['data.batch_size is 8 there and 9 here']
        >>> list(config_differences({"data": {"batch_size": 8}}, {}))
        ['data.batch_size is 8 there and missing here']
    """
    there, here = as_mapping(there), as_mapping(here)
    if key in MAY_DIFFER or there == here:
        return
    both = (there, here)
    names = dict.fromkeys(name for side in both if isinstance(side, dict) for name in side)
    if names and all(isinstance(side, dict) or side == MISSING for side in both):
        for name in names:
            values = [side.get(name, MISSING) if side != MISSING else MISSING for side in both]
            yield from config_differences(
                values[0], values[1], f"{key}.{name}" if key else str(name)
            )
    else:
        shown = (textwrap.shorten(str(side), 60) for side in both)
        yield "{} is {} there and {} here".format(key, *shown)


def as_mapping(value: Any) -> Any:
    """Convert a list to a mapping by index, so that it is compared item by item."""
    return dict(enumerate(value)) if isinstance(value, list | tuple) else value


def unfinished(name: str, test: bool) -> Iterator[Path]:
    """List the folders of interrupted runs with this name, newest first.

    Args:
        name: The run's name.
        test: Whether the run includes the test.
    """
    for folder in sorted((Path("runs") / name).glob("*/"), reverse=True):
        started = any((folder / file).exists() for file in (LAST, PREVIOUS))
        if started and not is_complete(folder, test):
            yield folder
