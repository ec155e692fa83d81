"""The W&B logger of a run: online if the server responds in time, offline otherwise."""

import errno
import logging
import math
import os
import shlex
import tempfile
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from tasks.errors import InputError, first_line
from tasks.run.lightning_internals import OpenedLogger
from tasks.run.wandb_internals import (
    PROCESS_ENDED,
    SAME_CONTENT,
    clear_temporary_folders,
    flush_each_second,
    forget_process,
    publish_artifact,
    send_warnings_to,
    use_temporary_folders_in,
    wandb,
    without_launch,
)

log = logging.getLogger(__name__)

Content = dict[str, Any] | Callable[[], dict[str, Any]]

# The step axis of all metrics; Lightning's logger defines it.
STEP = "trainer/global_step"
# File in the run's folder with the id of its W&B run; a resumed run continues that W&B run.
ID_FILE = "wandb_id.txt"
# Project of all runs, unless configured otherwise.
PROJECT = "regain"
# Timeouts in seconds: to reach the server, to open the run, to log media, to send the last data.
# With the start of wandb's own process, they add up to under 20 seconds. A user's
# WANDB_INIT_TIMEOUT, WANDB_HTTP_TIMEOUT and WANDB_FINISH_TIMEOUT have priority.
REACH_TIMEOUT = 3.0
INIT_TIMEOUT = 5.0
MEDIA_TIMEOUT = 3
FINISH_TIMEOUT = 7.0
# To send the last data of a report run: the upload is what the user waits for.
REPORT_FINISH_TIMEOUT = 120.0
# To open or to close an offline run: no server is involved, but the machine may be busy.
OFFLINE_TIMEOUT = 60.0
# For each other request.
REQUEST_TIMEOUT = 5
# Metrics of each validation whose best value is in the summary too, as `val/acc.max`; the summary
# has the last value of all other metrics. A sweep cannot optimize such a nested value: it optimizes
# `val/best_acc`, the highest validation accuracy so far.
BEST_VALUES = {"acc": "max", "loss": "min", "ece": "min"}


def seconds(variable: str, default: float) -> float:
    """Return a timeout: the value of W&B's environment variable if it is set.

    Raises:
        InputError: The value is not a number of seconds.
    """
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise InputError(f"{variable}={text} is not a number of seconds")
    return value


def silent_session() -> wandb.Settings:
    """Start W&B's session, if it has not started, without requests that could wait for a server."""
    # wandb would report its own errors to its developers at exit, and print a greeting with the
    # name of the user. Both wait for a server.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return wandb.setup(wandb.Settings(silent=True)).settings


def wandb_mode() -> str:
    """Return WANDB_MODE if set; else "online" if logged in and reachable; else "offline"."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked
    settings = silent_session()
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline"
    except wandb.errors.Error as error:
        log.warning("W&B rejects the credentials (%s); this run is logged offline", error)
        return "offline"
    url, timeout = settings.base_url, seconds("WANDB_INIT_TIMEOUT", REACH_TIMEOUT)
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        # Other status codes mean that the server responds, only not on this path.
        if error.code >= 500 or error.code == 429:
            log.warning("W&B at %s has an error (%s); this run is logged offline", url, error)
            return "offline"
    except (OSError, ValueError) as error:
        log.warning("W&B at %s cannot be reached (%s); this run is logged offline", url, error)
        return "offline"
    return "online"


def api() -> wandb.Api:
    """Return W&B's client with a short timeout."""
    return wandb.Api(timeout=int(seconds("WANDB_HTTP_TIMEOUT", REQUEST_TIMEOUT)))


class CapturedWarnings:
    """Stores the warnings and errors that W&B would print in its default mode."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def info(self, message: str) -> None:
        """Ignore a message that is not a warning."""

    def warning(self, message: str) -> None:
        """Store a warning, unless nothing is missing on the server."""
        if SAME_CONTENT not in message:
            self.messages.append(message.strip().removeprefix("wandb: ").removeprefix("WARNING "))

    error = warning


class RunLogger(OpenedLogger):
    """Logs one run to W&B, with its files in the run's folder and bounded waits for the server.

    All data logged through the methods of this class reaches the disk, even if wandb's own process
    is killed: the logger then writes it again, into a new offline run with the same id.

    Args:
        name: Name of the run.
        save_dir: The run's folder.
        project: Project of the run.
        group: Group of the run; W&B shows the runs of a group together.
        job_type: Type of the run, such as `train`, `tune`, `sweep` or `report`.
        entity: Team or user; W&B's default if None.
        tags: Tags of the run.
        id: Id of the run, unique in the project; that of an earlier run replaces this run. If None,
            the id of the interrupted run in this folder, or a new one.
        log_code: Whether the project's source code is logged as an artifact.
        log_model: `best` logs the weights of the best epoch as an artifact, `none` does not.
        registry: Collection that this artifact is linked to, such as
            `wandb-registry-model/digits`; None for no link.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        project: str = PROJECT,
        group: str | None = None,
        job_type: str = "train",
        entity: str | None = None,
        tags: list[str] | None = None,
        id: str | None = None,  # noqa: A002 - As W&B calls it.
        log_code: bool = True,
        log_model: Literal["best", "none"] = "best",
        registry: str | None = None,
    ) -> None:
        settings = wandb.Settings(finish_timeout_raises=True, console="off", silent=True)
        super().__init__(
            name=name,
            save_dir=save_dir,
            project=project,
            group=group,
            job_type=job_type,
            entity=entity,
            tags=tags,
            id=id,
            settings=flush_each_second(settings),
        )
        self.log_code = log_code and not settings.disable_code
        self.log_model = log_model
        self.registry = registry
        # All logged data. It is small: a row of ten numbers takes a kilobyte.
        self._logged: list[tuple[str, Content]] = []
        self._warnings = CapturedWarnings()
        self.unpublished: Path | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; the first access opens it."""
        if self.run is None:
            self._open(wandb_mode())
        return super().experiment

    def _open(self, mode: str) -> None:
        """Open the run; fall back to offline mode, and to a temporary folder."""
        folder = run_folder = Path(str(self.save_dir))
        run_folder.mkdir(parents=True, exist_ok=True)
        use_temporary_folders_in(run_folder)
        id_file = run_folder / ID_FILE
        if self.options["id"] is None and id_file.exists():
            self.options["id"] = id_file.read_text()
        os.environ.setdefault("WANDB_DATA_DIR", str(run_folder))
        silent_session()
        restarted = False
        while True:
            self._root = folder
            # Absolute: the working directory of wandb's process may differ, and then data is lost.
            self.options.update(mode=mode, dir=str(folder.absolute()))
            self._set_timeouts(mode)
            try:
                with without_launch():
                    _ = super().experiment
                break
            except wandb.errors.Error as error:
                if mode == "offline":
                    raise
                url, mode = wandb.setup().settings.base_url, "offline"
                said = first_line(error)
                log.warning("W&B at %s did not open the run (%s); it is logged offline", url, said)
                if self.options["id"] is not None:
                    # wandb's process would still treat the run with this id as open.
                    self._forget_process()
            except PROCESS_ENDED:
                if restarted:
                    raise
                restarted = True
                self._forget_process()
            except OSError as error:
                if folder is not run_folder or error.errno == errno.ENOSPC:
                    raise
                folder = Path(tempfile.mkdtemp(prefix="wandb-"))
                log.warning("W&B cannot write to %s (%s); using %s", run_folder, error, folder)
        if folder is run_folder and not id_file.exists():
            id_file.write_text(str(self.version))
        for split in ("val", "train_eval"):
            for name, best in BEST_VALUES.items():
                super().experiment.define_metric(
                    f"{split}/{name}", STEP, step_sync=True, summary=f"{best},last"
                )
        send_warnings_to(self._warnings)

    def _set_timeouts(self, mode: str) -> None:
        settings = self.options["settings"]
        if mode == "offline":
            settings.init_timeout = settings.finish_timeout = OFFLINE_TIMEOUT
            return
        last = REPORT_FINISH_TIMEOUT if self.options["job_type"] == "report" else FINISH_TIMEOUT
        settings.init_timeout = seconds("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)
        settings.finish_timeout = seconds("WANDB_FINISH_TIMEOUT", last)

    def _log(self, part: str, content: Content) -> None:
        """Log a row of the history, or values of the config or the summary.

        Args:
            part: "row", "config", "summary" or "artifact".
            content: The values, or a function that returns them; for an artifact, the arguments of
                `publish_artifact`.
        """
        self._logged.append((part, content))
        try:
            self._write(part, content)
        except PROCESS_ENDED as error:
            self._reopen_offline(f"wandb's process ended ({error})")
        except wandb.errors.Error as error:
            if self.experiment.offline:
                raise
            # A check of the credentials goes through the process too.
            cause = error.__cause__ or error.__context__
            if isinstance(cause, PROCESS_ENDED):
                self._reopen_offline(f"wandb's process ended ({cause})")
                return
            url, said = self.experiment.settings.base_url, first_line(error)
            self._reopen_offline(f"W&B at {url} rejects data ({said})")

    def _write(self, part: str, content: Content) -> None:
        if part == "artifact":
            if not self.experiment.disabled and callable(content):
                publish_artifact(self.experiment, **content())
            return
        if callable(content) and not self.experiment.offline and not self.experiment.disabled:
            # For a table, wandb queries the server with a long timeout. Fail early if it is gone.
            wandb.Api(timeout=int(seconds("WANDB_HTTP_TIMEOUT", MEDIA_TIMEOUT)))
        values = content() if callable(content) else content
        if part == "row":
            super().log_metrics(values)
        elif part == "config":
            super().log_hyperparams(values)
        else:
            self.experiment.summary.update(values)

    def _reopen_offline(self, reason: str) -> None:
        """Open an offline run with the same id, and log all data to it again.

        The folder of the previous run may be incomplete.
        """
        self.options["id"] = self.version
        self._forget_process()
        self._open("offline")
        for part, content in self._logged:
            self._write(part, content)
        self.unpublished = self._folder
        log.warning("%s; this run continues offline; publish it: %s", reason, self.sync_command)

    def _forget_process(self) -> None:
        """Make the next W&B call start a new process."""
        self.run = None
        forget_process()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row of numbers."""
        self._log("row", dict(metrics) | ({} if step is None else {STEP: step}))

    @rank_zero_only
    def log_media(self, make: Callable[[], dict[str, Any]]) -> None:
        """Log a row of media, which `make` returns; a media object belongs to one W&B run."""
        self._log("row", make)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log configuration values."""
        self._log("config", dict(params) if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_summary(self, values: dict[str, Any]) -> None:
        """Log values that W&B shows in tables of runs."""
        self._log("summary", values)

    @rank_zero_only
    def log_artifact(
        self, make: Callable[[], Any], aliases: Sequence[str] = (), used: bool = False
    ) -> None:
        """Log an artifact.

        Args:
            make: Function that returns the artifact; such an object belongs to one W&B run.
            aliases: Aliases besides `latest`.
            used: Whether the run uses it, as its data; otherwise the run makes it.
        """
        self._log("artifact", lambda: {"artifact": make(), "aliases": aliases, "used": used})

    def rows(self) -> list[dict[str, float]]:
        """Return all rows of numbers logged so far, to be saved in a checkpoint."""
        return [row for part, row in self._logged if part == "row" and isinstance(row, dict)]

    @rank_zero_only
    def resume_with_rows(self, rows: list[dict[str, float]]) -> None:
        """Restore the rows of a checkpoint after an interruption.

        The server already has the rows of an online run. An offline run gets a new folder at each
        resume, so they are logged again: the last folder must be complete.
        """
        if self.experiment.offline:
            for row in rows:
                self._log("row", row)
        else:
            self._logged.extend(("row", row) for row in rows)

    def close(self, failed: bool = False) -> None:
        """Close the run, and set `unpublished` to its folder if the server does not have all data.

        Args:
            failed: Whether W&B marks the run as failed.
        """
        run: Any = self.run
        if run is None:
            return
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            pass  # W&B has logged a warning of its own.
        except PROCESS_ENDED as error:
            self._reopen_offline(f"wandb's process ended ({error})")
            run = self.experiment
            run.finish(exit_code=int(failed))
        clear_temporary_folders()
        if run.disabled:
            return
        if run.offline:
            self.unpublished = self._folder
        if not run.offline and self._warnings.messages:
            self.keep_unpublished(f"all data of this run ({self._warnings.messages[0]})")

    def keep_unpublished(self, missing: str) -> None:
        """Warn that the server does not have something, which is in the folder of the closed run.

        Args:
            missing: What the server does not have, and why.
        """
        self.unpublished = self._folder
        url = self.experiment.settings.base_url
        log.warning(
            "W&B at %s did not get %s; it is on disk; publish it: %s",
            url,
            missing,
            self.sync_command,
        )

    @property
    def _folder(self) -> Path:
        """The folder of the open run; a relative path if `save_dir` is relative."""
        folder = self.experiment.settings.sync_dir
        return self._root / Path(folder).relative_to(self._root.absolute())

    @property
    def sync_command(self) -> str | None:
        """The command that uploads missing data to the server; None if none is missing."""
        if self.unpublished is None:
            return None
        online = [] if self.unpublished.name.startswith("offline-") else ["--include-online"]
        return shlex.join(["wandb", "sync", *online, str(self.unpublished)])
