"""What a run leaves behind: `metrics.json`, and the test's pictures in the W&B run."""

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
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasks.base import ClassificationTask
from tasks.callbacks import SpeedMonitor
from tasks.data import ClassificationData, Sound
from tasks.environment import environment
from tasks.plain_text import spreadsheet_text

log = logging.getLogger(__name__)

# In the run's folder: written last, whole or not at all.
RESULTS = "metrics.json"
# Rows in the table of the worst mistakes.
MISTAKES = 32


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
        # Scores and predictions of the last epoch in the test.
        self.last: tuple[dict[str, float], dict[str, list[Any]]] | None = None
        self._began = time.perf_counter()

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch of the highest validation accuracy, the first one of equals."""
        return max(self.history, key=lambda epoch: epoch["val/acc"], default=None)

    @property
    def at_chance(self) -> bool:
        """Whether the training accuracy is that of chance, at the best epoch and at the last."""
        ends = [epoch for epoch in (self.best, *self.history[-1:]) if epoch is not None]
        return bool(ends) and all(epoch.get("train/at_chance", 0.0) for epoch in ends)

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
                | scores_under("", trainer.callback_metrics)
            )
            self.seconds.append(time.perf_counter() - self._began)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn of a network that has learned nothing."""
        if not self.at_chance:
            return
        assert isinstance(pl_module, ClassificationTask)
        fixes = [
            f"train longer (trainer.max_epochs; these were {trainer.global_step} steps)",
            f"try another learning rate (model.optim.lr={pl_module.optim.lr})",
        ]
        if pl_module.reg.normalization == "none":
            fixes.append("normalize (model.reg.normalization=batch)")
        log.warning(
            f"warning: nothing was learned: the training accuracy of the last epoch, "
            f"{100 * self.history[-1]['train/eval_acc']:.1f} %, is not above chance for "
            f"{len(pl_module.classes)} classes; {', or '.join(fixes)}"
        )

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the test of the last epoch; after that of the selected one, write the file."""
        assert isinstance(pl_module, ClassificationTask)
        scores = scores_under(f"{pl_module.tested}/", trainer.callback_metrics)
        predictions = predictions_of(pl_module.test_logits, pl_module.test_labels)
        if pl_module.tested == "test_last":
            self.last = scores, predictions
            return
        if self.last is None:
            # The selected epoch is the last one.
            self.last = {name: scores[name] for name in ("acc", "loss", "ece")}, predictions
            if trainer.logger is not None:
                same = {f"test_last/{name}": value for name, value in self.last[0].items()}
                trainer.logger.log_metrics(same, step=trainer.global_step)
        self._write(trainer, pl_module, scores, predictions)
        self._log_pictures(trainer, pl_module)

    def _write(
        self,
        trainer: L.Trainer,
        task: ClassificationTask,
        scores: dict[str, float],
        predictions: dict[str, list[Any]],
    ) -> None:
        run: Any = trainer
        best = next(c for c in run.callbacks if isinstance(c, ModelCheckpoint))
        data = run.datamodule
        assert isinstance(data, ClassificationData)
        assert self.last is not None
        confusion = multiclass_confusion_matrix(
            torch.tensor(predictions["predicted"]), task.test_labels, len(task.classes)
        )
        results = {
            **self.facts,
            "classes": task.classes,
            "examples": {split: len(examples) for split, examples in data.splits.items()},
            "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
            "test": scores,
            "test_last": self.last[0],
            "best": self.best,
            "last": self.history[-1] if self.history else None,
            "at_chance": self.at_chance,
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
            "predictions": predictions,
            "predictions_last": self.last[1],
            "config": self.config,
            **self.environment,
        }
        partial = self.folder / f"{RESULTS}.partial"
        # A line for each part: readable in an editor, and small where a part is a long list.
        parts = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in results.items())
        partial.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        partial.replace(self.folder / RESULTS)

    def _log_pictures(self, trainer: L.Trainer, task: ClassificationTask) -> None:
        logger: Any = trainer.logger
        if hasattr(logger, "log_media"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            step = {"trainer/global_step": trainer.global_step}
            media = partial(data.media, "test")
            logger.log_media(lambda: pictures(task, media) | step)
            logger.log_summary({"best": self.best})


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, list[Any]]:
    """Describe each prediction: label, predicted class, its probability, and the loss in nats.

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


def _shown(media: Any) -> Any:
    """Make what W&B shows in a table of a picture, a sound or a text."""
    import wandb

    if isinstance(media, Sound):
        return wandb.Audio(media.samples, sample_rate=media.rate)
    # Tables can be saved as CSV.
    return spreadsheet_text(media) if isinstance(media, str) else wandb.Image(media)


def pictures(task: ClassificationTask, media: Callable[[int], Any]) -> dict[str, Any]:
    """Make the confusion matrix and the table of the worst mistakes for W&B.

    Args:
        task: The task, with the logits of its test.
        media: Returns what people can look at of a test example.
    """
    import wandb

    logits, labels = task.test_logits, task.test_labels
    # Tables can be saved as CSV.
    classes = [spreadsheet_text(name) for name in task.classes]
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[loss[wrong].argsort(descending=True)][:MISTAKES].tolist()
    rows = [
        [
            _shown(media(index)),
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


def scores_under(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics whose names begin with a prefix, without it.

    Example:
        >>> scores_under("test/", {"test/acc": torch.tensor(0.5), "val/acc": torch.tensor(1.0)})
        {'acc': 0.5}
    """
    return {
        name.removeprefix(prefix): float(value)
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
