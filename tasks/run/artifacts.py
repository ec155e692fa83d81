"""Artifacts of a run in W&B: the data that it uses, its code, and the weights of its best epoch."""

import json
import logging
import re
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from tasks.base import ClassificationTask
from tasks.data import ClassificationData
from tasks.data.sources import source_label
from tasks.errors import first_line
from tasks.lookup import task_label
from tasks.run.tracking import RunLogger, api
from tasks.run.wandb_internals import new_code_artifact, wandb

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
# The project's own source code; about 1 MB.
SOURCES = ("modules", "tasks", "study", "configs")
SOURCE_SUFFIXES = (".py", ".yaml", ".c", ".html", ".css", ".js")
# Longest name that W&B accepts is 128.
MAX_NAME = 100


def artifact_name(*parts: str) -> str:
    """Join parts to a name with the characters and the length that W&B allows for artifacts.

    Example:
        >>> artifact_name("data", "vision", "café/x")
        'data-vision-caf--x'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(parts))[:MAX_NAME]


def data_artifact(facts: Mapping[str, Any], data: ClassificationData) -> wandb.Artifact:
    """Describe the data of a run, without their examples.

    Runs have the same version of this artifact if the decoded examples and labels are equal.

    Args:
        facts: Task and data of the run.
        data: The data module, after `setup`.
    """
    source = source_label(facts["data"])
    content = {
        "source": source,
        "kind": data.kind,
        "classes": data.classes,
        "splits": data.contents,
        "decoding": data.decoding_options(),
    }
    artifact = wandb.Artifact(
        artifact_name("data", task_label(facts["task"]), source),
        type="dataset",
        description="Source, classes, sizes and hashes of the data; the examples are not in it.",
        metadata=content,
    )
    # W&B compares versions by their files, not by their metadata.
    with artifact.new_file("data.json") as file:
        json.dump(content, file, indent=1, default=str)
    return artifact


def code_artifact() -> wandb.Artifact:
    """Copy the project's source code, which the run's commit does not have if it was edited."""
    artifact = new_code_artifact("source-regain")
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in SOURCE_SUFFIXES:
                artifact.add_file(str(file), name=file.relative_to(ROOT).as_posix())
    return artifact


def model_name(facts: Mapping[str, Any]) -> str:
    """Return the name of the artifact of a run's weights; its versions are those of all seeds."""
    parts = (task_label(facts["task"]), source_label(facts["data"]), Path(facts["reg"]).stem)
    return artifact_name("model", *parts)


def model_artifact(
    facts: Mapping[str, Any], checkpoint: Path, metrics: dict[str, float]
) -> wandb.Artifact:
    """Refer to the weights of a run's best epoch.

    Args:
        facts: Task, data, preset and name of the run, and versions.
        checkpoint: File or folder. It is not copied, so it must stay until it is uploaded.
        metrics: Metrics of these weights.
    """
    artifact = wandb.Artifact(
        model_name(facts),
        type="model",
        description=f"Weights of the epoch with the best validation accuracy: {facts['name']}",
        metadata=dict(facts) | metrics,
    )
    # Absolute: the working directory of wandb's process may differ.
    path = str(checkpoint.absolute())
    if checkpoint.is_dir():
        artifact.add_dir(path, name=checkpoint.name, policy="immutable", skip_cache=True)
    else:
        artifact.add_file(path, name=checkpoint.name, policy="immutable", skip_cache=True)
    return artifact


class ArtifactLogger(Callback):
    """Logs data and code to W&B when training starts, and the best weights after the last test.

    Args:
        facts: Task, data, preset, name and seed of the run, and versions.
        checkpoint: The checkpoint with the best weights.
        test: Whether the run has a test.
    """

    def __init__(self, facts: dict[str, Any], checkpoint: Path, test: bool) -> None:
        self.facts = facts
        self.checkpoint = checkpoint
        self.test = test

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the data that the run uses, and its code.

        A resumed run does so again: its new offline folder must be complete, and a server that has
        the artifact already adds no version.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for logger in wandb_loggers(trainer):
            logger.log_artifact(partial(data_artifact, self.facts, data), used=True)
            if logger.log_code:
                logger.log_artifact(code_artifact)

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the weights of a run without a test."""
        if not self.test:
            self._log_weights(trainer)

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the weights after the test of the best checkpoint."""
        assert isinstance(pl_module, ClassificationTask)
        if pl_module.tested == "test":
            self._log_weights(trainer)

    def _log_weights(self, trainer: L.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for logger in wandb_loggers(trainer):
            if logger.log_model == "best" and self.checkpoint.exists():
                # `best` is the alias of the run logged last; the others are those of one run.
                aliases = ["best", f"seed-{self.facts['seed']}", f"run-{logger.version}"]
                make = partial(model_artifact, self.facts, self.checkpoint, metrics)
                logger.log_artifact(make, aliases)

    def _path(self, logger: RunLogger) -> str | None:
        """Return the path of the logged weights; None if they are not logged."""
        run = logger.experiment
        if logger.log_model == "none" or run.disabled:
            return None
        team = [run.entity] if run.entity else []
        return "/".join([*team, run.project, f"{model_name(self.facts)}:run-{run.id}"])

    @rank_zero_only
    def confirm(self, trainer: L.Trainer) -> None:
        """Ask the server of a closed online run for the weights: W&B reports no failed upload."""
        for logger in wandb_loggers(trainer):
            path = self._path(logger)
            if path is None or logger.unpublished is not None:
                continue
            try:
                reason = "" if api().artifact_exists(path) else "it has no such artifact"
            except Exception as error:  # Whatever the server answers, the run is complete.
                reason = first_line(error)
            if reason:
                logger.keep_unpublished(f"the weights of this run ({reason})")

    @rank_zero_only
    def link(self, trainer: L.Trainer) -> None:
        """Link the weights of a closed run to the logger's registry, and print it.

        If the server does not have the weights, print the command that links them later.
        """
        for logger in wandb_loggers(trainer):
            path = self._path(logger)
            if path is None or logger.registry is None:
                continue
            try:
                if logger.unpublished is None:
                    api().artifact(path).link(logger.registry)
                    print(f"weights linked to {logger.registry}")
                    continue
            except Exception as error:  # Whatever the server answers, the run is complete.
                log.warning("W&B does not link the weights (%s)", first_line(error))
            call = f"import wandb; wandb.Api().artifact({path!r}).link({logger.registry!r})"
            command = shlex.join(["python", "-c", call])
            print(f"link the weights to {logger.registry} when they are published: {command}")


def wandb_loggers(trainer: L.Trainer) -> list[RunLogger]:
    """Return the trainer's W&B logger, in a list that is empty if it has none."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
