"""The folder of a run: one run at a time writes there, and the results in it are not lost."""

import fcntl
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from tasks.errors import InputError
from tasks.names import check_folder_name
from tasks.results import RESULTS

# Held by the process that writes there; a study has a lock of its own there.
LOCK = "run.lock"
# Patterns of what a process writes that has not come to its end; wandb names its own folders.
LEFTOVERS = ("*.partial", "tmp*wandb-media", "tmp*wandb-artifacts")


def new_folder(name: str) -> Path:
    """Name a folder for a new run: by the time, to the microsecond, and as no other one is.

    Raises:
        InputError: The run's name leads out of `runs`.
    """
    check_folder_name(name, "the run's name")
    now = time.time_ns()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now // 10**9))
    folder = Path("runs") / name / f"{stamp}-{now // 1000 % 10**6:06d}"
    # The clock may have gone back.
    further = 1
    while folder.exists():
        further += 1
        folder = folder.with_name(f"{folder.name.split('_')[0]}_{further}")
    return folder


def claim(folder: Path) -> AbstractContextManager[Any]:
    """Make a run's folder and lock it for this process until what is returned is closed.

    Raises:
        InputError: It cannot be written, another run writes there, or it holds a finished run.
    """
    if getattr(rank_zero_only, "rank", 0):
        # The first process has it.
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
    if (folder / RESULTS).exists():
        lock.close()
        raise InputError(
            f"{folder} holds a finished run; choose another folder with --run_dir, or delete it"
        )
    return lock


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed run has left in its folder: half-written files, temporary folders."""
    for leftover in LEFTOVERS:
        for path in folder.glob(leftover):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
