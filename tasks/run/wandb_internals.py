"""All uses of wandb's private API.

`tests/tasks/test_internals.py` fails if an upgrade removes a part of it. Import wandb from here, so
that its temporary folders are created in the run's folder.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Module that W&B Launch stores the inputs of a run in.
LAUNCH_INPUTS = "wandb.sdk.launch.inputs.internal"


class LazyTemporaryDirectory:
    """A temporary folder that is created at its first use, in the run's folder.

    wandb creates two at import, in the system's temporary folder, and a killed process does not
    delete them.
    """

    parent: Path | None = None
    all: "list[LazyTemporaryDirectory]" = []  # noqa: RUF012

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.made: tempfile.TemporaryDirectory[str] | None = None
        self.all.append(self)

    @property
    def name(self) -> str:
        """Path of the folder; the first access creates it."""
        if self.made is None:
            self.made = TemporaryDirectory(self.suffix, dir=self.parent)
        return self.made.name

    def cleanup(self) -> None:
        """Delete the folder; the next use creates a new one."""
        if self.made is not None:
            self.made.cleanup()
            self.made = None


TemporaryDirectory = tempfile.TemporaryDirectory
with patch.object(tempfile, "TemporaryDirectory", LazyTemporaryDirectory):
    import wandb as wandb  # For those who import this module first.
    from wandb.errors.term import termsetup
    from wandb.proto import wandb_internal_pb2 as wandb_internal_pb2
    from wandb.sdk.artifacts._internal_artifact import InternalArtifact
    from wandb.sdk.lib.module import unset_globals
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

# Exceptions of a W&B call after its process, wandb-core, has ended.
PROCESS_ENDED = (ConnectionError, MailboxClosedError, HandleAbandonedError)
# Part of the warning about an artifact that the server has already.
SAME_CONTENT = "already exists with the same content"


def use_temporary_folders_in(folder: Path) -> None:
    """Create wandb's temporary folders in this folder from now on."""
    clear_temporary_folders()
    LazyTemporaryDirectory.parent = folder.absolute()


def clear_temporary_folders() -> None:
    """Delete wandb's temporary folders."""
    for temporary in LazyTemporaryDirectory.all:
        temporary.cleanup()


def without_launch() -> AbstractContextManager[Any]:
    """Keep W&B from importing its Launch module when it opens a run; that import is slow.

    W&B only looks for inputs that the program has staged with this module. A program that has not
    imported it has staged none.
    """
    if LAUNCH_INPUTS in sys.modules:
        return nullcontext()
    return patch.object(wandb.Run, "_detect_and_apply_job_inputs", lambda run: None)


def send_warnings_to(printer: Any) -> None:
    """Send wandb's console messages to an object with methods `info`, `warning` and `error`."""
    termsetup(wandb.setup().settings, printer)


def forget_process() -> None:
    """Make the next W&B call start a new process."""
    try:
        wandb.teardown()
    except (*PROCESS_ENDED, SystemExit):
        pass  # The process has already ended.
    unset_globals()  # type: ignore[no-untyped-call]


def flush_each_second(settings: wandb.Settings) -> wandb.Settings:
    """Set wandb to write rows to disk every second, so that a killed run loses one second."""
    settings.x_transaction_log_flush_interval = 1.0
    return settings


def new_code_artifact(name: str) -> "wandb.Artifact":
    """Create an empty artifact of source code; a name of such an artifact starts with `source-`."""
    return InternalArtifact(name, "code")


def publish_artifact(
    run: Any, artifact: "wandb.Artifact", aliases: Sequence[str] = (), used: bool = False
) -> None:
    """Log an artifact as rows are logged: into the run's file, and in the background to the server.

    W&B's `use_artifact` waits for the server and refuses offline runs; its `log_artifact` queries
    the server, and does not write the artifacts of online runs to the file.

    Args:
        run: The W&B run.
        artifact: The artifact.
        aliases: Aliases besides `latest`.
        used: Whether the run uses it, as its data; otherwise the run makes it.
    """
    artifact.finalize()
    run._interface.publish_artifact(
        run, artifact, ["latest", *aliases], is_user_created=used, use_after_commit=used
    )
    if artifact.type == "code":
        # The page of the run shows the code of this artifact.
        run._config.update({"_wandb": {"code_path": artifact.name}}, allow_val_change=True)
