"""The folder of a run: locked while the run writes, and never overwritten."""

import argparse
import fcntl
import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from tasks.errors import InputError
from tasks.run.devices import launch_id
from tasks.run.folder_names import check_folder_name
from tasks.run.results import RESULTS, VALIDATION
from tasks.run.resume import unfinished

# Lock file of the process that writes to the folder; a study has another lock.
LOCK = "run.lock"
# Leftovers of a killed process: partial files, and temporary folders of wandb.
LEFTOVERS = ("*.partial", "tmp*wandb-media", "tmp*wandb-artifacts")


def run_folder(options: argparse.Namespace, name: str) -> Path:
    """Choose the run's folder; the same in all processes of the run.

    Args:
        options: The short options of the command line.
        name: The run's name.

    Raises:
        InputError: The run to continue does not exist.
    """
    folder = options.run_dir or os.environ.get("REGAIN_RUN_DIR")
    if options.resume not in ("", "auto"):
        folder = options.resume
        if not Path(folder).is_dir():
            raise InputError(
                f"RESUME={folder} is not the folder of a run; give one, or use RESUME=auto"
            )
    elif options.resume and not folder:
        folder = next(unfinished(name, test=not options.no_test), None)
    if not folder:
        together = launch_id()
        folder = Path("runs") / name / together if together else new_folder(name)
    return Path(folder)


def new_folder(name: str) -> Path:
    """Return a folder for a new run, named by the time in microseconds.

    Raises:
        InputError: The run's name is a path.
    """
    check_folder_name(name, "the run's name")
    now = time.time_ns()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now // 10**9))
    folder = Path("runs") / name / f"{stamp}-{now // 1000 % 10**6:06d}"
    # The clock may have been set back.
    further = 1
    while folder.exists():
        further += 1
        folder = folder.with_name(f"{folder.name.split('_')[0]}_{further}")
    return folder


def claim(folder: Path, resumed: bool = False) -> AbstractContextManager[Any]:
    """Create a run's folder and lock it until the returned context ends.

    Args:
        folder: The run's folder.
        resumed: Whether the run goes on; a run without a test may go on with the test.

    Raises:
        InputError: It cannot be written, another run writes to it, or it contains a finished run.
    """
    if getattr(rank_zero_only, "rank", 0):
        # The first rank has the lock.
        return nullcontext()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"the run's folder {str(folder)!r} cannot be written ({reason}); "
            "choose another one with --run_dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(
            f"another run is writing to {folder}; choose another folder with --run_dir"
        ) from error
    except OSError:
        # A file system without locks.
        return lock
    clear_leftovers(folder)
    if (folder / RESULTS).exists() or (not resumed and (folder / VALIDATION).exists()):
        lock.close()
        raise InputError(
            f"{folder} contains a finished run; choose another folder with --run_dir, or delete it"
        )
    return lock


def clear_leftovers(folder: Path) -> None:
    """Delete partial files and temporary folders of a killed run."""
    for leftover in LEFTOVERS:
        for path in folder.glob(leftover):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
