"""The private parts of wandb that runs use, all in this file.

`tests/tasks/test_internals.py` says which of them an upgrade has removed. wandb is imported from
here, so that its temporary folders lie in the run's folder.
"""

import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Where inputs for W&B Launch would be.
STAGED = "wandb.sdk.launch.inputs.internal"


class RunTemporary:
    """A temporary folder that is made at its first use, in the folder of the run.

    wandb makes two when it is imported, in the system's temporary folder, where a killed process
    leaves them.
    """

    parent: Path | None = None
    all: "list[RunTemporary]" = []  # noqa: RUF012

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.made: tempfile.TemporaryDirectory[str] | None = None
        self.all.append(self)

    @property
    def name(self) -> str:
        """The path of the folder."""
        if self.made is None:
            self.made = TemporaryDirectory(self.suffix, dir=self.parent)
        return self.made.name

    def cleanup(self) -> None:
        """Delete the folder; the next use makes another one."""
        if self.made is not None:
            self.made.cleanup()
            self.made = None


TemporaryDirectory = tempfile.TemporaryDirectory
with patch.object(tempfile, "TemporaryDirectory", RunTemporary):
    import wandb as wandb  # For those who import this module first.
    from wandb.errors.term import termsetup
    from wandb.sdk.lib.module import unset_globals
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

# What a call to W&B raises when its process, wandb-core, is gone.
PROCESS_ENDED = (ConnectionError, MailboxClosedError, HandleAbandonedError)


def use_temporary_folders_in(folder: Path) -> None:
    """Let wandb's temporary folders be made in this folder from now on."""
    clear_temporary_folders()
    RunTemporary.parent = folder.absolute()


def clear_temporary_folders() -> None:
    """Delete wandb's temporary folders."""
    for temporary in RunTemporary.all:
        temporary.cleanup()


def without_launch() -> AbstractContextManager[Any]:
    """Let W&B open a run without its Launch, which takes longer to import than all else.

    It would look for inputs of the run that the program has staged; one that has not imported it
    has staged none.
    """
    if STAGED in sys.modules:
        return nullcontext()
    return patch.object(wandb.Run, "_detect_and_apply_job_inputs", lambda run: None)


def send_warnings_to(printer: Any) -> None:
    """Let an object with the methods `info`, `warning` and `error` take what wandb would print."""
    termsetup(wandb.setup().settings, printer)


def forget_process() -> None:
    """Let the next call to W&B start a process of its own."""
    try:
        wandb.teardown()
    except (*PROCESS_ENDED, SystemExit):
        pass  # What is to be ended is gone.
    unset_globals()  # type: ignore[no-untyped-call]


def flush_each_second(settings: wandb.Settings) -> wandb.Settings:
    """Let wandb write rows to disk each second: of a killed run all but the last one is there."""
    settings.x_transaction_log_flush_interval = 1.0
    return settings
