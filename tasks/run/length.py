"""The length of a training: epochs, and more of them if they have too few steps."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from tasks.base import ClassificationTask

# Additional epochs do not raise the number of validations above this, or above the number of
# configured epochs. The first is for a floor without epochs: `epochs=1` and a number of steps.
VALIDATIONS = 20
# Key of the trainer: epochs between two validations. If it is null, `TrainingLength` chooses.
INTERVAL = "check_val_every_n_epoch"


def resolve_length(
    epochs: int, min_steps: int, steps_per_epoch: int, every: int | None = None
) -> tuple[int, int]:
    """Return the number of epochs, and the number of epochs between two validations.

    If the floor adds epochs, validations are as many as before, and the last epoch has one.

    Args:
        epochs: Configured number of epochs.
        min_steps: Smallest number of optimizer steps.
        steps_per_epoch: Optimizer steps of an epoch.
        every: Epochs between two validations. If not given, they are 1, or more if the floor adds
            epochs.

    Example:
        >>> resolve_length(30, 1000, 4)
        (256, 8)
        >>> resolve_length(30, 1000, 100)
        (30, 1)
    """
    needed = math.ceil(min_steps / steps_per_epoch)
    if needed <= epochs:
        return epochs, every or 1
    every = every or max(1, round(needed / max(epochs, VALIDATIONS)))
    return math.ceil(needed / every) * every, every


def steps_per_epoch(trainer: L.Trainer) -> int:
    """Return the number of optimizer steps of an epoch."""
    run: Any = trainer
    if run.num_training_batches == math.inf:
        run.fit_loop.setup_data()
    steps: float = run.num_training_batches / run.accumulate_grad_batches
    return math.ceil(steps)


def planned_epochs(trainer: L.Trainer) -> int:
    """Return the number of epochs, of which `max_steps` may cut the last one short."""
    return math.ceil(trainer.estimated_stepping_batches / steps_per_epoch(trainer))


class TrainingLength(Callback):
    """Sets the number of epochs by `model.optim`.

    Only for a trainer without limits of its own: `max_epochs` and `max_steps` are exact. A resumed
    run keeps its length.

    Args:
        every: Configured epochs between two validations; None if not set.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the length, before the task computes the learning-rate schedule from it."""
        if stage != "fit":
            return
        assert isinstance(pl_module, ClassificationTask)
        optim, steps = pl_module.optim, steps_per_epoch(trainer)
        if trainer.check_val_every_n_epoch is None:
            # Validations follow steps, not epochs.
            epochs, _ = resolve_length(optim.epochs, optim.min_steps, steps, every=1)
            self._set(trainer, epochs, None)
        else:
            length = resolve_length(optim.epochs, optim.min_steps, steps, self.every)
            self._set(trainer, *length)

    def _set(self, trainer: L.Trainer, epochs: int, every: int | None) -> None:
        trainer.fit_loop.max_epochs = epochs
        trainer.check_val_every_n_epoch = every

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the length."""
        checkpoint["length"] = [trainer.max_epochs, trainer.check_val_every_n_epoch]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the length; older checkpoints have it in the configuration of their trainer."""
        saved = checkpoint["run"]["config"]["trainer"]
        self._set(
            trainer,
            *checkpoint.get("length", [saved["max_epochs"], saved["check_val_every_n_epoch"]]),
        )

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line if the floor has added epochs."""
        assert isinstance(pl_module, ClassificationTask)
        optim, run, every = pl_module.optim, trainer, trainer.check_val_every_n_epoch
        if run.max_epochs is not None and run.max_epochs > optim.epochs:
            examples = len(run.datamodule.splits["train"])  # type: ignore[attr-defined]
            print(
                f"{examples} examples: {run.max_epochs} epochs instead of {optim.epochs}, for at "
                f"least {optim.min_steps} steps"
                + (f"; validated after every {every} epochs" if every and every > 1 else ""),
                flush=True,
            )
