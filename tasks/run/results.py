"""Results of a run: `metrics.json` or, without a test, `validation.json`; pictures for W&B."""

import hashlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasks.base import ClassificationTask
from tasks.data import ClassificationData, Sound
from tasks.run.checkpoints import BestCheckpoint
from tasks.run.environment import environment
from tasks.run.length import planned_epochs
from tasks.run.plain_text import spreadsheet_text
from tasks.run.progress import SpeedMonitor
from tasks.run.rows import log_config, log_row, loggers_with

log = logging.getLogger(__name__)

# File in the run's folder, written last and atomically: a run is complete if the file exists.
RESULTS = "metrics.json"
# The same for a run without a test.
VALIDATION = "validation.json"
# Rows in the table of the worst mistakes.
MISTAKES = 32


def is_complete(folder: Path, test: bool) -> bool:
    """Whether a run is complete.

    Args:
        folder: The run's folder.
        test: Whether the run includes the test.
    """
    return (folder / RESULTS).exists() or (not test and (folder / VALIDATION).exists())


class ResultsWriter(Callback):
    """Writes `metrics.json` to the run's folder, and logs tables of the test to W&B.

    The file contains all data of a report: configuration, environment, metrics of each epoch and of
    the test, the confusion matrix and each test prediction. A run without a test writes what it has
    of these to `validation.json`.

    Args:
        facts: Task, data, regularizer, name and seed of the run.
        config: The resolved configuration.
        folder: The run's folder.
        speed: Callback that measures the training speed.
        test: Whether the run includes the test.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        config: dict[str, Any],
        folder: Path,
        speed: SpeedMonitor,
        test: bool = True,
    ) -> None:
        self.facts = facts
        self.config = config
        self.folder = folder
        self.speed = speed
        self.test = test
        # Number of epochs of the whole training.
        self.epochs = 0
        self.environment = environment()
        self.history: list[dict[str, float]] = []
        # Duration of the run up to the end of each epoch in the history.
        self.seconds: list[float] = []
        self.rows: list[dict[str, float]] = []
        self.interruptions = 0
        # Test metrics and predictions of the last checkpoint.
        self.last: tuple[dict[str, float], dict[str, list[Any]]] | None = None
        self._began = time.perf_counter()

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch with the highest validation accuracy; of several, the first."""
        return max(self.history, key=lambda epoch: epoch["val/acc"], default=None)

    @property
    def at_chance(self) -> bool:
        """Whether the training accuracy is not above chance in the best and in the last epoch."""
        ends = [epoch for epoch in (self.best, *self.history[-1:]) if epoch is not None]
        return bool(ends) and all(epoch.get("train/at_chance", 0.0) for epoch in ends)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the history and the logged rows."""
        checkpoint["results"] = {
            "history": self.history,
            "epoch_seconds": self.seconds,
            "rows": next((one.rows() for one in loggers_with(trainer, "rows")), []),
            "interruptions": self.interruptions,
            "seconds": time.perf_counter() - self._began,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the history of a resumed fit; loading a checkpoint for a test changes nothing."""
        if trainer.state.fn == TrainerFn.FITTING:
            earlier = checkpoint["results"]
            self.history, self.rows = earlier["history"], earlier["rows"]
            self.seconds = earlier.get("epoch_seconds", [])
            self.interruptions = earlier["interruptions"] + 1
            self._began -= earlier["seconds"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log task, data and variant to the W&B configuration; panels group runs by them."""
        variant = Path(self.facts["reg"]).stem
        self.epochs = planned_epochs(trainer)
        log_config(trainer, {"run": self.facts | {"variant": variant, "epochs": self.epochs}})
        if self.rows:
            for logger in loggers_with(trainer, "resume_with_rows"):
                logger.resume_with_rows(self.rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the metrics of the epoch to the history."""
        if not trainer.sanity_checking:
            self.history.append(
                {"epoch": trainer.current_epoch, "step": trainer.global_step}
                | scores_under("", trainer.callback_metrics)
            )
            self.seconds.append(time.perf_counter() - self._began)
            assert self.best is not None
            log_row(trainer, {"val/best_acc": self.best["val/acc"]})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the best epoch, and warn if the training accuracy is not above chance.

        A run without a test is complete now.
        """
        if self.best is not None:
            for logger in loggers_with(trainer, "log_summary"):
                logger.log_summary({"best": self.best})
        if self.at_chance:
            self._warn_of_chance(trainer, pl_module)
        if not self.test and self.best is not None and trainer.is_global_zero:
            self._write(VALIDATION, self._training_results(trainer, pl_module))

    def _warn_of_chance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        fixes = [
            f"train longer (model.optim.min_steps; these were {trainer.global_step} steps)",
            f"try another learning rate (model.optim.lr={pl_module.optim.lr})",
        ]
        if pl_module.reg.normalization == "none":
            fixes.append("normalize (model.reg.normalization=batch)")
        log.warning(
            f"warning: nothing was learned: the training accuracy of the last epoch, "
            f"{100 * self.history[-1]['train_eval/acc']:.1f} %, is not above chance for "
            f"{len(pl_module.classes)} classes; {', or '.join(fixes)}"
        )

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the test of the last checkpoint; write the file after that of the best one."""
        assert isinstance(pl_module, ClassificationTask)
        scores = scores_under(f"{pl_module.tested}/", trainer.callback_metrics)
        predictions = predictions_of(pl_module.test_logits, pl_module.test_labels)
        if pl_module.tested == "test_last":
            self.last = scores, predictions
            return
        if self.last is None:
            # The best epoch is the last one.
            self.last = scores, predictions
            log_row(trainer, {f"test_last/{name}": x for name, x in self.last[0].items()})
        results = self._training_results(trainer, pl_module)
        self._write(RESULTS, results | self._test_results(trainer, scores, predictions))
        self._log_pictures(trainer, pl_module)

    def _training_results(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        run: Any = trainer
        best = next(c for c in run.callbacks if isinstance(c, BestCheckpoint))
        data = run.datamodule
        assert isinstance(data, ClassificationData)
        assert isinstance(pl_module, ClassificationTask)
        return {
            **self.facts,
            "classes": pl_module.classes,
            "examples": {split: len(examples) for split, examples in data.splits.items()},
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "best": self.best,
            "last": self.history[-1] if self.history else None,
            "at_chance": self.at_chance,
            "best_checkpoint": Path(best.best_model_path).name,
            "validation_set": _hash(data.splits["validation"].chosen),
            "seconds": {
                "train": self.speed.seconds,
                "all": time.perf_counter() - self._began,
                "epochs": [round(passed, 3) for passed in self.seconds],
            },
            "epochs": self.epochs,
            "steps": self.speed.steps,
            "interruptions": self.interruptions,
            "examples_per_second": self.speed.examples / max(self.speed.seconds, 1e-9),
            "peak_memory_bytes": _peak_memory(trainer.strategy.root_device),
            "history": self.history,
            "config": self.config,
            **self.environment,
        }

    def _test_results(
        self, trainer: L.Trainer, scores: dict[str, float], predictions: dict[str, list[Any]]
    ) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        task: Any = trainer.lightning_module
        assert self.last is not None
        confusion = multiclass_confusion_matrix(
            torch.tensor(predictions["predicted"]), task.test_labels, len(task.classes)
        )
        return {
            "test": scores,
            "test_last": self.last[0],
            "test_set": _hash(data.splits["test"].chosen),
            "confusion": confusion.tolist(),
            "predictions": predictions,
            "predictions_last": self.last[1],
        }

    def _write(self, name: str, results: dict[str, Any]) -> None:
        partial = self.folder / f"{name}.partial"
        # One line per key: readable in an editor, and without a line per item of long lists.
        parts = (f"{json.dumps(key)}: {json.dumps(part)}" for key, part in results.items())
        partial.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        partial.replace(self.folder / name)

    def _log_pictures(self, trainer: L.Trainer, task: ClassificationTask) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = {"trainer/global_step": trainer.global_step}
        media = partial(data.media, "test")
        for logger in loggers_with(trainer, "log_media"):
            logger.log_media(lambda: pictures(task, media) | step)


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, list[Any]]:
    """Return the label, predicted class, its probability and loss (nats) of each prediction.

    Example:
        >>> predictions_of(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        {'label': [1], 'predicted': [0], 'confidence': [0.5], 'loss': [0.6931]}
    """
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return {
        "label": labels.tolist(),
        "predicted": predicted.tolist(),
        "confidence": [round(value, 4) for value in confidence.tolist()],
        "loss": [round(value, 4) for value in loss.tolist()],
    }


def _wandb_media(media: Any) -> Any:
    """Convert an image, a sound or a text to the media type of W&B."""
    import wandb

    if isinstance(media, Sound):
        return wandb.Audio(media.samples, sample_rate=media.rate)
    # W&B tables can be exported as CSV.
    return spreadsheet_text(media) if isinstance(media, str) else wandb.Image(media)


def pictures(task: ClassificationTask, media: Callable[[int], Any]) -> dict[str, Any]:
    """Create the confusion matrix and the table of the worst mistakes for W&B.

    Args:
        task: The task, with the logits of its test.
        media: Function that maps an index to the test example as an image, a sound or a text.
    """
    import wandb

    logits, labels = task.test_logits, task.test_labels
    # W&B tables can be exported as CSV.
    classes = [spreadsheet_text(name) for name in task.classes]
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[loss[wrong].argsort(descending=True)][:MISTAKES].tolist()
    rows = [
        [
            _wandb_media(media(index)),
            classes[labels[index]],
            classes[predicted[index]],
            float(confidence[index]),
            float(loss[index]),
        ]
        for index in worst
    ]
    matrix = wandb.plot.confusion_matrix(
        y_true=labels.tolist(),
        preds=predicted.tolist(),
        class_names=classes,
        title="Test: confusion matrix",
    )
    columns: list[str | int] = ["example", "label", "predicted", "confidence", "loss"]
    table = wandb.Table(columns=columns, data=rows)
    return {"test/confusion_matrix": matrix, "test/worst_mistakes": table}


def _hash(indices: torch.Tensor) -> str:
    """Hash the indices of examples, to check that two runs had the same ones."""
    return hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:16]


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory of the run in bytes: on the GPU, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The unit is kilobytes on Linux and bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def scores_under(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics whose names start with a prefix, with the prefix removed.

    Example:
        >>> scores_under("test/", {"test/acc": torch.tensor(0.5), "val/acc": torch.tensor(1.0)})
        {'acc': 0.5}
    """
    return {
        name.removeprefix(prefix): float(value)
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
