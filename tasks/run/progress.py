"""Callbacks that log the configuration, the speed and the progress of a run."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary

from tasks.run.environment import environment
from tasks.run.length import planned_epochs
from tasks.run.rows import log_config, log_row


class ConfigRecorder(SaveConfigCallback):
    """Saves the resolved configuration in the run's folder, and logs it."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file; log the configuration, environment and model summary."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Not by the base class: its folder is that of the first logger.
        self.parser.save(
            self.config, folder / self.config_filename, skip_unset=False, overwrite=True
        )
        if not trainer.loggers:
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        summary = ModelSummary(pl_module, max_depth=-1)
        facts = {"parameters": summary.trainable_parameters, "model_summary": str(summary)}
        log_config(trainer, config | environment() | facts)


class SpeedMonitor(Callback):
    """Logs the training speed, excluding validation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.examples = 0
        self.steps = 0
        self._since = 0.0

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the counts."""
        passed = time.perf_counter() - self._since if self._since else 0.0
        checkpoint["speed"] = [self.seconds + passed, self.examples, self.steps]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the counts of a resumed fit; loading a checkpoint for a test changes nothing."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.seconds, self.examples, self.steps = checkpoint["speed"]

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        if not self._since:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        """Count the batch."""
        self.examples += len(batch.labels) * trainer.world_size
        # Optimizer steps: fewer than batches if gradients are accumulated.
        self.steps = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the speed since the last validation."""
        if trainer.sanity_checking or not self._since:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        passed = time.perf_counter() - self._since
        self._since = 0.0
        self.seconds += passed
        log_row(
            trainer,
            {
                "speed/examples_per_second": self.examples / self.seconds,
                "speed/step_ms": 1000 * self.seconds / max(self.steps, 1),
            },
        )


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the id of the run."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics that the bar shows."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class EpochLines(Callback):
    """Prints one line per epoch, if the output is not a terminal."""

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's accuracies."""
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            print(
                f"epoch {trainer.current_epoch + 1}/{planned_epochs(trainer)}"
                f"  train {100 * float(metrics['train_eval/acc']):.1f} %"
                f"  val {100 * float(metrics['val/acc']):.1f} %",
                flush=True,
            )
