"""What happens around the training of every task: configuration, speed and progress."""

import time
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary

from tasks.environment import environment


class ConfigRecorder(SaveConfigCallback):
    """Saves the resolved configuration beside the results and in the W&B run."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the configuration, environment and model summary to the logger."""
        if trainer.logger is None:
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        summary = ModelSummary(pl_module, max_depth=-1)
        facts = {"parameters": summary.trainable_parameters, "model_summary": str(summary)}
        trainer.logger.log_hyperparams(config | environment() | facts)


class SpeedMonitor(Callback):
    """Logs the training speed, without the time that validation takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.examples = 0
        self.steps = 0
        self._since = 0.0

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the counts."""
        passed = time.perf_counter() - self._since if self._since else 0.0
        checkpoint["speed"] = [self.seconds + passed, self.examples, self.steps]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count on; a test loads a checkpoint too, and leaves the counts as they are."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.seconds, self.examples, self.steps = checkpoint["speed"]

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin to count."""
        if not self._since:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        """Count the batch."""
        self.examples += len(batch.labels) * trainer.world_size
        self.steps += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the speed since the last validation."""
        if trainer.sanity_checking or not self._since:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        passed = time.perf_counter() - self._since
        self._since = 0.0
        self.seconds += passed
        if trainer.logger is not None:
            trainer.logger.log_metrics(
                {
                    "speed/examples_per_second": self.examples / self.seconds,
                    "speed/step_ms": 1000 * self.seconds / self.steps,
                },
                step=trainer.global_step,
            )


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the run's id."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Choose what stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class EpochLines(Callback):
    """Prints one line an epoch, where no terminal shows a progress bar."""

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's accuracies."""
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                f"  train {100 * float(metrics['train/eval_acc']):.1f} %"
                f"  val {100 * float(metrics['val/acc']):.1f} %",
                flush=True,
            )
