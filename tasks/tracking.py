"""The W&B run of a training: online if that works at once, offline otherwise, and never hanging."""

import logging
import os
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

# In the run's folder: the id of its W&B run, which it goes on in after an interruption.
ID_FILE = "wandb_id.txt"
# Seconds to wait for the server: to answer at all, to open the run, to take the last data.
REACH_TIMEOUT = 5.0
INIT_TIMEOUT = 30.0
FINISH_TIMEOUT = 120.0


def wandb_mode() -> str:
    """Choose what WANDB_MODE says, or else "online" if logged in and reachable, or "offline"."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline"
    except wandb.errors.Error as error:
        log.warning("W&B does not take these credentials (%s); this run is logged offline", error)
        return "offline"
    url = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(url, timeout=REACH_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # It answers, if not on this path.
    except (OSError, ValueError) as error:
        log.warning("W&B at %s cannot be reached (%s); this run is logged offline", url, error)
        return "offline"
    return "online"


class RunLogger(WandbLogger):
    """Logs one run to W&B, into its own folder and without waiting for a server that is gone.

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
            # Of a killed run all but the last second is on disk.
            x_transaction_log_flush_interval=1.0,
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
            settings=settings,
        )
        # Lightning still passes an option that W&B has dropped and warns of.
        del self._wandb_init["anonymous"]

    @property
    def experiment(self) -> Any:
        """The W&B run, opened at the first use."""
        if self._experiment is None:
            folder = Path(str(self._save_dir))
            folder.mkdir(parents=True, exist_ok=True)
            if self._wandb_init["id"] is None:
                file = folder / ID_FILE
                if not file.exists():
                    file.write_text(secrets.token_hex(4))
                self._wandb_init["id"] = file.read_text()
            os.environ.setdefault("WANDB_DATA_DIR", str(self._save_dir))
            self._wandb_init["mode"] = wandb_mode()
            try:
                return super().experiment
            except wandb.errors.Error as error:
                log.warning("W&B does not open a run (%s); it is logged offline", error)
                self._wandb_init["mode"] = "offline"
        return super().experiment
