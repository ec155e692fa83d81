"""What happens around the training of every task: speed, progress and results."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasks.base import ClassificationTask
from tasks.data import ClassificationData, Sound
from tasks.plain_text import spreadsheet_text

PACKAGES = ("lightning", "torch", "torchvision", "torchaudio", "transformers", "wandb")
# In the run's folder: written last, whole or not at all.
RESULTS = "metrics.json"
# Rows in the table of the worst mistakes.
MISTAKES = 32


def environment() -> dict[str, Any]:
    """Describe what the run depends on besides its configuration: versions, commit, machine."""
    versions = {"python": platform.python_version()}
    for package in ("regain", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run([*git, "--abbrev=40", "--exclude=*"], capture_output=True, text=True)
    return {
        "versions": versions,
        "git_commit": commit.stdout.strip() or None,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


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


class ResultsWriter(Callback):
    """Writes `metrics.json` beside the checkpoints, and the test's pictures into the W&B run.

    The file holds all that a report needs: configuration, environment, the metrics of each epoch,
    those of the test, the confusion matrix and each test prediction.

    Args:
        facts: What names the run: task, data, reg, seed.
        config: The resolved configuration.
        folder: Where to write.
        speed: What measured the speed.
    """

    def __init__(
        self, facts: dict[str, Any], config: dict[str, Any], folder: Path, speed: SpeedMonitor
    ) -> None:
        self.facts = facts
        self.config = config
        self.folder = folder
        self.speed = speed
        self.environment = environment()
        self.history: list[dict[str, float]] = []
        # After each epoch of the history, of the whole run so far.
        self.seconds: list[float] = []
        self.rows: list[dict[str, float]] = []
        self.interruptions = 0
        self._began = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what was found and logged so far."""
        logger: Any = trainer.logger
        checkpoint["results"] = {
            "history": self.history,
            "epoch_seconds": self.seconds,
            "rows": logger.rows() if hasattr(logger, "rows") else [],
            "interruptions": self.interruptions,
            "seconds": time.perf_counter() - self._began,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on; a test loads a checkpoint too, and leaves what was found as it is."""
        if trainer.state.fn == TrainerFn.FITTING:
            earlier = checkpoint["results"]
            self.history, self.rows = earlier["history"], earlier["rows"]
            self.seconds = earlier.get("epoch_seconds", [])
            self.interruptions = earlier["interruptions"] + 1
            self._began -= earlier["seconds"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the run in its W&B configuration, so that panels can group by what was run."""
        if trainer.logger is not None:
            variant = Path(self.facts["reg"]).stem
            trainer.logger.log_hyperparams({"run": self.facts | {"variant": variant}})
        logger: Any = trainer.logger
        if self.rows and hasattr(logger, "go_on_after"):
            logger.go_on_after(self.rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the metrics of the epoch."""
        if not trainer.sanity_checking:
            self.history.append(
                {"epoch": trainer.current_epoch, "step": trainer.global_step}
                | _numbers(trainer.callback_metrics)
            )
            self.seconds.append(time.perf_counter() - self._began)

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, and log the confusion matrix and the worst mistakes."""
        assert isinstance(pl_module, ClassificationTask)
        logits, labels = pl_module.test_logits, pl_module.test_labels
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        classes = pl_module.classes
        confusion = multiclass_confusion_matrix(predicted, labels, len(classes))
        run: Any = trainer
        best = next(c for c in run.callbacks if isinstance(c, ModelCheckpoint))
        data = run.datamodule
        assert isinstance(data, ClassificationData)
        results = {
            **self.facts,
            "classes": classes,
            "examples": {split: len(examples) for split, examples in data.splits.items()},
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "test": {
                name.removeprefix("test/"): value
                for name, value in _numbers(trainer.callback_metrics).items()
                if name.startswith("test/")
            },
            "best": max(self.history, key=lambda epoch: epoch["val/acc"], default=None),
            "best_checkpoint": Path(best.best_model_path).name,
            "test_set": _places_hash(data.splits["test"].chosen),
            "seconds": {
                "train": self.speed.seconds,
                "all": time.perf_counter() - self._began,
                "epochs": [round(passed, 3) for passed in self.seconds],
            },
            "steps": self.speed.steps,
            "interruptions": self.interruptions,
            "examples_per_second": self.speed.examples / max(self.speed.seconds, 1e-9),
            "peak_memory_bytes": _peak_memory(trainer.strategy.root_device),
            "history": self.history,
            "confusion": confusion.tolist(),
            "predictions": {
                "label": labels.tolist(),
                "predicted": predicted.tolist(),
                "confidence": [round(value, 4) for value in confidence.tolist()],
            },
            "config": self.config,
            **self.environment,
        }
        partial = self.folder / f"{RESULTS}.partial"
        # A line for each part: readable in an editor, and small where a part is a long list.
        parts = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in results.items())
        partial.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        partial.replace(self.folder / RESULTS)
        logger: Any = trainer.logger
        if hasattr(logger, "log_media"):
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            wrong = (predicted != labels).nonzero().flatten()
            worst = wrong[loss[wrong].argsort(descending=True)][:MISTAKES].tolist()

            def pictures() -> dict[str, Any]:
                names = [spreadsheet_text(name) for name in classes]
                rows = [
                    [
                        _shown(data.media("test", index)),
                        names[labels[index]],
                        names[predicted[index]],
                        float(confidence[index]),
                        float(loss[index]),
                    ]
                    for index in worst
                ]
                return _pictures(names, labels, predicted, rows)

            step = {"trainer/global_step": trainer.global_step}
            logger.log_media(lambda: pictures() | step)
            logger.log_summary({"best": results["best"]})


def _shown(media: Any) -> Any:
    """Make what W&B shows in a table of a picture, a sound or a text."""
    import wandb

    if isinstance(media, Sound):
        return wandb.Audio(media.samples, sample_rate=media.rate)
    # Tables can be saved as CSV.
    return spreadsheet_text(media) if isinstance(media, str) else wandb.Image(media)


def _pictures(
    classes: list[str],
    labels: torch.Tensor,
    predicted: torch.Tensor,
    mistakes: list[list[Any]],
) -> dict[str, Any]:
    import wandb

    matrix = wandb.plot.confusion_matrix(
        y_true=labels.tolist(),
        preds=predicted.tolist(),
        class_names=classes,
        title="Test: confusion matrix",
    )
    columns: list[str | int] = ["example", "label", "predicted", "confidence", "loss"]
    table = wandb.Table(columns=columns, data=mistakes)
    return {"test/confusion_matrix": matrix, "test/worst_mistakes": table}


def _places_hash(places: torch.Tensor) -> str:
    """Tell whether two runs had the same test examples."""
    return hashlib.sha256(places.numpy().tobytes()).hexdigest()[:16]


def _peak_memory(device: torch.device) -> int:
    """Return the most memory that the run has held: on the GPU, or else in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
