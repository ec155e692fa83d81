"""The process of a run: its log, warnings, memory and threads, and its exit code."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import InputError
from tasks.run.checkpoints import Stopped
from tasks.run.cores import limit_threads
from tasks.run.devices import is_first_rank, keep_freed_memory

# Warnings of Lightning about behaviour that is intended here.
IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # Batches are gathered from memory.
    ".*smaller than the logging interval.*",  # The end of an epoch logs the rest.
    ".*args parameter is intended to run from within Python.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # The run's own folder.
    ".*your dataloader is not resumable.*",  # `Batches` resumes by its own count.
    ".*loading a checkpoint outside the 'fit' stage.*",  # As intended in the test.
    ".*is not supported by the model summary.*",  # Parameters are counted correctly.
    ".*recommended to use .self.log.*sync_dist=True.*",  # Each rank has all predictions.
    ".*.broadcast_buffers. is deprecated.*",  # Its replacement is not in torch 2.9.
    ".*isinstance.treespec, LeafSpec.*",  # Lightning and torch disagree.
)
# OS errors that the environment can cause at any time; all others are bugs.
ENVIRONMENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPIPE)


def prepare_process() -> None:
    """Set up logging, warnings, memory and threads for a run.

    Raises:
        InputError: The current folder has been deleted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # `convert` logs what it changes in a model of a library.
    for package in ("tasks", "regain.convert"):
        logging.getLogger(package).setLevel(logging.INFO if is_first_rank() else logging.ERROR)
    for package in ("lightning.pytorch", "lightning.fabric"):
        # Its notices, such as the seed, repeat the command line.
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder was deleted; change to another one") from error
    keep_freed_memory()
    limit_threads()


@contextmanager
def error_exits() -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and exit code 2."""
    try:
        yield
    except Stopped:
        print("stopped and saved; run the command with RESUME=auto to resume", file=sys.stderr)
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRNOS:
            raise
        if error.errno == errno.EPIPE:
            # Buffered output has nowhere to go; flushing it at exit would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"error: {environment_message(error)}", file=sys.stderr)
        sys.exit(2)


def environment_message(error: OSError) -> str:
    """Describe an OS error of the environment in one line.

    Example:
        >>> environment_message(OSError(errno.ENOSPC, "No space left on device", "run/best.ckpt"))
        'no space left on the device: run/best.ckpt'
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device: {error.filename or 'disk'}"
    if error.errno == errno.EPIPE:
        return "the reader of the output has closed it; run with RESUME=auto to resume"
    return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
