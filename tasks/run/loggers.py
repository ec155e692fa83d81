"""Loggers beside W&B: TensorBoard, CSV and MLflow, by their names in `--logger`."""

import importlib.util
import logging
import os
import shlex
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tasks.data.cache import exclusive_lock
from tasks.errors import InputError, first_line
from tasks.run.tracking import STEP, RunLogger

log = logging.getLogger(__name__)

LOGGERS = ("wandb", "tensorboard", "csv", "mlflow")
# Module of each logger that needs a package of an extra, which has the logger's name.
MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
# File in the run's folder with the id of its MLflow run.
MLFLOW_ID_FILE = "mlflow_id.txt"

Row = dict[str, float]


def logger_names(text: str) -> list[str]:
    """Split the value of `--logger`; empty is W&B alone.

    Raises:
        InputError: A logger is unknown or not installed.

    Example:
        >>> logger_names(""), logger_names("csv wandb")
        (['wandb'], ['wandb', 'csv'])
    """
    asked = text.replace(",", " ").split() or ["wandb"]
    for name in asked:
        if name not in LOGGERS:
            raise InputError(f"LOGGER={name} is not one of {', '.join(LOGGERS)}")
        if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
            raise InputError(
                f"LOGGER={name} needs a package that is not installed; run .venv/bin/pip install "
                f"-e '.[{name}]'"
            )
    return [name for name in LOGGERS if name in asked]


def add_loggers(
    trainer: L.Trainer, names: list[str], folder: Path, tags: dict[str, str], resumed: bool
) -> None:
    """Give a trainer the loggers of these names; W&B comes first.

    Args:
        trainer: The trainer, with the logger of its configuration.
        names: As returned by `logger_names`.
        folder: The run's folder.
        tags: Name, group and others that MLflow shows.
        resumed: Whether the run continues from a checkpoint; otherwise, what an interrupted run has
            logged in this folder is not part of it.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return  # Lightning logs nothing then.
    make: dict[str, Callable[[], Logger]] = {
        "tensorboard": partial(TensorBoard, folder, resumed),
        "csv": partial(CSV, folder),
        "mlflow": partial(MLflow, folder, tags, resumed),
    }
    configured = [
        one for one in trainer.loggers if "wandb" in names or not isinstance(one, RunLogger)
    ]
    further = [make[name]() for name in names if name in make]
    trainer.loggers = [*configured, *(one for one in further if not getattr(one, "failed", False))]


def numbers(row: Row) -> Row:
    """Return a row without its step."""
    return {key: value for key, value in row.items() if key != STEP}


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger; a resumed run continues its curves.

    Args:
        folder: The run's folder; the logger writes to `tensorboard` in it.
        resumed: Whether the run continues; otherwise earlier files are deleted.
    """

    def __init__(self, folder: Path, resumed: bool) -> None:
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False)
        self._rows: list[Row] = []
        if not resumed and not getattr(rank_zero_only, "rank", 0):
            shutil.rmtree(self.log_dir, ignore_errors=True)

    @property
    def look(self) -> str:
        """The command that shows the run."""
        return shlex.join(["tensorboard", "--logdir", self.log_dir])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row of numbers."""
        self._rows.append({**metrics, STEP: step or 0})
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float | Row]) -> None:
        """Log hyperparameters with final values, for the table of runs."""
        named: Row = {}
        for key, value in values.items():
            if isinstance(value, dict):
                named |= {f"{key}/{name}": number for name, number in value.items()}
            else:
                named[key] = value
        super().log_hyperparams(self.hparams, named)

    def rows(self) -> list[Row]:
        """Return all rows logged so far, to be saved in a checkpoint."""
        return self._rows

    @rank_zero_only
    def resume_with_rows(self, rows: list[Row]) -> None:
        """Hide what was logged after the checkpoint; the resumed run logs it again."""
        last = int(max(row.get(STEP, 0) for row in rows))
        # The next file hides the values of this step and of later ones in the files so far.
        writer: Any = self.experiment
        writer.close()
        writer.purge_step = last
        for row in rows:
            if row.get(STEP, 0) == last:
                self.log_metrics(numbers(row), step=last)
            else:
                self._rows.append(row)


class CSV(CSVLogger):
    """Lightning's CSV logger; a resumed run continues its file, and each row is on disk at once.

    Args:
        folder: The run's folder; the logger writes to `csv` in it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="csv", flush_logs_every_n_steps=1)
        self._rows: list[Row] = []
        self._opened = False

    @property
    def look(self) -> str:
        """The file with the rows."""
        return str(Path(self.log_dir, "metrics.csv"))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; the first access deletes the file of an interrupted run."""
        if not self._opened:
            self._opened = True
            shutil.rmtree(self.log_dir, ignore_errors=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Log a row of numbers."""
        self._rows.append({**metrics, STEP: step or 0})
        super().log_metrics(dict(metrics), step)

    def rows(self) -> list[Row]:
        """Return all rows logged so far, to be saved in a checkpoint."""
        return self._rows

    @rank_zero_only
    def resume_with_rows(self, rows: list[Row]) -> None:
        """Write the rows of the checkpoint again, without those that were logged after it."""
        for row in rows:
            self.experiment.log_metrics(numbers(row), int(row.get(STEP, 0)))
        self._rows += rows
        self.save()


class MLflow(MLFlowLogger):
    """Lightning's MLflow logger; a resumed run continues its run.

    If MLflow fails, training continues without it. It logs to MLFLOW_TRACKING_URI, or to the SQLite
    database `runs/mlflow.db`.

    Args:
        folder: The run's folder.
        tags: Name, group and others that MLflow shows.
        resumed: Whether the MLflow run of this folder continues; otherwise it is a new one.
    """

    def __init__(self, folder: Path, tags: dict[str, str], resumed: bool) -> None:
        # By default, a run waits for minutes for a server that does not respond.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        # Otherwise MLflow reports its use to its developers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        self.id_file = folder / MLFLOW_ID_FILE
        self.database = Path("runs", "mlflow.db").absolute()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or f"sqlite:///{self.database}"
        self.failed = False
        # The last step at which an interrupted run has logged each metric.
        self.done: dict[str, int] = {}
        self.resumed = resumed and self.id_file.exists()
        self._attempt(lambda: self._open(tags))
        if not given:
            # MLflow has set it, and the next run of this process may have another folder.
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def _open(self, tags: dict[str, str]) -> None:
        """Create the run, or open that of an interrupted process."""
        from mlflow import MlflowClient

        self.database.parent.mkdir(parents=True, exist_ok=True)
        # Creating the database or the experiment in several runs at once fails.
        with exclusive_lock(self.database):
            client = MlflowClient(self.uri)
            if client.get_experiment_by_name("regain") is None:
                client.create_experiment("regain")
        super().__init__(
            "regain",
            run_name=tags["name"],
            tracking_uri=self.uri,
            tags=tags,
            run_id=self.id_file.read_text() if self.resumed else None,
        )
        if getattr(rank_zero_only, "rank", 0):
            return  # The first rank logs.
        run = str(self.run_id)
        if not self.resumed:
            self.id_file.write_text(run)
            return
        for key in client.get_run(run).data.metrics:
            history = client.get_metric_history(run, key)
            self.done[key] = max(one.step for one in history)

    @property
    def look(self) -> str:
        """The command that shows the run; the package mlflow has it, mlflow-skinny does not."""
        return shlex.join(["mlflow", "ui", "--backend-store-uri", self.uri])

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.id_file.parent)

    def _attempt(self, call: Callable[[], None]) -> None:
        """Call a function of MLflow; after a failure, the run is no longer logged there."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # Whatever the server or the database answers.
            self.failed = True
            log.warning(
                "MLflow at %s has failed (%s); this run is not logged there from here on",
                self.uri,
                first_line(error),
            )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row of numbers, without those that the interrupted run has logged."""

        def write() -> None:
            new = {k: v for k, v in metrics.items() if self.done.get(k, -1) < (step or 0)}
            super(MLflow, self).log_metrics(new, step)

        self._attempt(write)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log configuration values, once: MLflow refuses changed values."""
        if not self.resumed:
            self._attempt(lambda: super(MLflow, self).log_hyperparams(params))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Mark the run as finished or failed."""
        self._attempt(lambda: super(MLflow, self).finalize(status))
