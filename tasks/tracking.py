"""The W&B run of a training: online if that works at once, offline otherwise, and never hanging."""

import errno
import logging
import os
import shlex
import tempfile
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from tasks.errors import first_line
from tasks.lightning_internals import OpenedLogger
from tasks.wandb_internals import (
    PROCESS_ENDED,
    clear_temporary_folders,
    flush_each_second,
    forget_process,
    send_warnings_to,
    use_temporary_folders_in,
    wandb,
    without_launch,
)

log = logging.getLogger(__name__)

Content = dict[str, Any] | Callable[[], dict[str, Any]]

# In the run's folder: the id of its W&B run, which it goes on in after an interruption.
ID_FILE = "wandb_id.txt"
# Seconds to wait for the server: to answer at all, to open the run, to say whether it takes tables,
# to take the last data. With what wandb's own process needs to start, that is under 20 seconds.
REACH_TIMEOUT = 3.0
INIT_TIMEOUT = 5.0
MEDIA_TIMEOUT = 3
FINISH_TIMEOUT = 7.0


def silent_session() -> wandb.Settings:
    """Begin W&B's session, if it has not begun, without what waits for a server by the way."""
    # The reports of wandb's own errors do, at the end, and the greeting, for the user's name.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return wandb.setup(wandb.Settings(silent=True)).settings


def wandb_mode() -> str:
    """Choose what WANDB_MODE says, or else "online" if logged in and reachable, or "offline"."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked
    settings = silent_session()
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline"
    except wandb.errors.Error as error:
        log.warning("W&B does not take these credentials (%s); this run is logged offline", error)
        return "offline"
    url = settings.base_url
    try:
        urllib.request.urlopen(url, timeout=REACH_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        # It answers, if not on this path.
        if error.code >= 500 or error.code == 429:
            log.warning("W&B at %s fails (%s); this run is logged offline", url, error)
            return "offline"
    except (OSError, ValueError) as error:
        log.warning("W&B at %s cannot be reached (%s); this run is logged offline", url, error)
        return "offline"
    return "online"


class Complaints:
    """Keeps the warnings that W&B would print, were it not silent."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str) -> None:
        """Pass over what is no trouble."""

    def warning(self, message: str) -> None:
        """Keep it."""
        self.said.append(message.strip().removeprefix("wandb: ").removeprefix("WARNING "))

    error = warning


class RunLogger(OpenedLogger):
    """Logs one run to W&B, into its own folder and without waiting for a server that is gone.

    All that is logged through the methods of this class reaches the disk, even if wandb's own
    process is killed: the run is then written anew, offline and under the same id.

    Args:
        name: Name of the run.
        save_dir: The run's folder.
        project: Project of the run.
        group: Runs of one group are shown together.
        job_type: What the run does.
        entity: Team or user; the default one if None.
        tags: Tags of the run.
        id: A name of the run that is its own in the project. With that of an earlier run, its place
            is taken. If None, that of the run which has begun in this folder, or else a new one.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        project: str = "regain",
        group: str | None = None,
        job_type: str = "train",
        entity: str | None = None,
        tags: list[str] | None = None,
        id: str | None = None,  # noqa: A002 - As W&B calls it.
    ) -> None:
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            console="off",
            silent=True,
        )
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
        # What was logged: little, since a row of ten numbers is a kilobyte.
        self._logged: list[tuple[str, Content]] = []
        self._complaints = Complaints()
        self.unpublished: Path | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, opened at the first use."""
        if self.run is None:
            self._open(wandb_mode())
        return super().experiment

    def _open(self, mode: str) -> None:
        """Open the run: offline if it cannot be online, elsewhere if not in the run's folder."""
        place = Path(str(self.save_dir))
        place.mkdir(parents=True, exist_ok=True)
        use_temporary_folders_in(place)
        known = place / ID_FILE
        if self.options["id"] is None and known.exists():
            self.options["id"] = known.read_text()
        os.environ.setdefault("WANDB_DATA_DIR", str(place))
        silent_session()
        own, restarted = place, False
        while True:
            # Absolute: wandb's process may work in another folder than this one, and loses all.
            self._place = place
            self.options.update(mode=mode, dir=str(place.absolute()))
            try:
                with without_launch():
                    _ = super().experiment
                break
            except wandb.errors.Error as error:
                if mode == "offline":
                    raise
                url, mode = wandb.setup().settings.base_url, "offline"
                said = first_line(error)
                log.warning("W&B at %s opens no run (%s); it is logged offline", url, said)
                if self.options["id"] is not None:
                    # To its process, the run of this id is open.
                    self._forget_process()
            except PROCESS_ENDED:
                if restarted:
                    raise
                restarted = True
                self._forget_process()
            except OSError as error:
                if place is not own or error.errno == errno.ENOSPC:
                    raise
                place = Path(tempfile.mkdtemp(prefix="wandb-"))
                log.warning("W&B cannot write in %s (%s); it writes in %s", own, error, place)
        if place is own and not known.exists():
            known.write_text(str(self.version))
        send_warnings_to(self._complaints)

    def _log(self, part: str, content: Content) -> None:
        """Log a "row" of the history, a part of the "config" or of the "summary"."""
        self._logged.append((part, content))
        try:
            self._write(part, content)
        except PROCESS_ENDED as error:
            self._write_anew(f"wandb's process ended ({error})")
        except wandb.errors.Error as error:
            if self.experiment.offline:
                raise
            url, said = self.experiment.settings.base_url, first_line(error)
            self._write_anew(f"W&B at {url} takes no more data ({said})")

    def _write(self, part: str, content: Content) -> None:
        if callable(content) and not self.experiment.offline and not self.experiment.disabled:
            # A table is an artifact too: wandb asks the server about it, and would wait long.
            wandb.Api(timeout=MEDIA_TIMEOUT)
        values = content() if callable(content) else content
        if part == "row":
            super().log_metrics(values)
        elif part == "config":
            super().log_hyperparams(values)
        else:
            self.experiment.summary.update(values)

    def _write_anew(self, reason: str) -> None:
        """Go on in a new offline run of the same id, and write all that was logged into it.

        The folder of the run before may lack what its process had not yet written.
        """
        self.options["id"] = self.version
        self._forget_process()
        self._open("offline")
        for part, content in self._logged:
            self._write(part, content)
        self.unpublished = self._folder
        log.warning("%s; this run goes on offline, publish it: %s", reason, self.sync_command)

    def _forget_process(self) -> None:
        """Let the next call start a process of its own."""
        self.run = None
        forget_process()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row of numbers."""
        self._log("row", dict(metrics) | ({} if step is None else {"trainer/global_step": step}))

    @rank_zero_only
    def log_media(self, make: Callable[[], dict[str, Any]]) -> None:
        """Log a row of what `make` returns: media are of one run, and made anew for another."""
        self._log("row", make)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log a part of the configuration."""
        self._log("config", dict(params) if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_summary(self, values: dict[str, Any]) -> None:
        """Log what the run is to show in tables of runs."""
        self._log("summary", values)

    def rows(self) -> list[dict[str, float]]:
        """Return all rows of numbers so far, for a checkpoint."""
        return [row for part, row in self._logged if part == "row" and isinstance(row, dict)]

    @rank_zero_only
    def go_on_after(self, rows: list[dict[str, float]]) -> None:
        """Go on after an interruption, with the rows that a checkpoint holds.

        The server has them, if it had the run. An offline run is a folder of its own for each part,
        of which the last one shall be whole.
        """
        if self.experiment.offline:
            for row in rows:
                self._log("row", row)
        else:
            self._logged.extend(("row", row) for row in rows)

    def close(self, failed: bool = False) -> None:
        """Close the run; afterwards `unpublished` is its folder, if the server lacks data of it."""
        run: Any = self.run
        if run is None:
            return
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            pass  # W&B complains of it.
        except PROCESS_ENDED as error:
            self._write_anew(f"wandb's process ended ({error})")
            run = self.experiment
            run.finish(exit_code=int(failed))
        clear_temporary_folders()
        if run.disabled:
            return
        if run.offline or self._complaints.said:
            self.unpublished = self._folder
        if not run.offline and self._complaints.said:
            log.warning(
                "W&B at %s has not all of this run (%s); it is on disk, publish it: %s",
                run.settings.base_url,
                self._complaints.said[0],
                self.sync_command,
            )

    @property
    def _folder(self) -> Path:
        """The open run's folder: relative, if `save_dir` is."""
        folder = self.experiment.settings.sync_dir
        return self._place / Path(folder).relative_to(self._place.absolute())

    @property
    def sync_command(self) -> str | None:
        """The command that brings to the server what it lacks."""
        if self.unpublished is None:
            return None
        online = [] if self.unpublished.name.startswith("offline-") else ["--include-online"]
        return shlex.join(["wandb", "sync", *online, str(self.unpublished)])
