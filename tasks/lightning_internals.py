"""The private parts of Lightning that runs use, all in this file.

`tests/tasks/test_internals.py` says which of them an upgrade has removed.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import nn


class OpenedLogger(WandbLogger):
    """Lightning's logger for W&B, whose run can be opened again with other options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Lightning still passes an option that W&B has dropped and warns of.
        self.options.pop("anonymous", None)

    @property
    def options(self) -> dict[str, Any]:
        """What `wandb.init` is called with."""
        return self._wandb_init

    @property
    def run(self) -> Any:
        """The W&B run, or None if none is open; reading it opens none."""
        return self._experiment

    @run.setter
    def run(self, run: Any) -> None:
        self._experiment = run


def averaged_model(callback: WeightAveraging) -> nn.Module | None:
    """Return the model that holds a callback's average, once the training has begun."""
    return callback._average_model


def begin_within_epoch(trainer: L.Trainer) -> int:
    """Let the epoch begin after the batches that it has had; return how many.

    Left to itself, the loop begins every epoch from its start.
    """
    run: Any = trainer
    loop = run.fit_loop.epoch_loop
    within: int = loop.batch_progress.current.ready
    loop.restarting = within > 0
    loop.update_restart_stage()
    return within


def between_batches(loops: dict[str, Any], steps: int) -> None:
    """Write the counters of Lightning's loops as they are before the next batch, in place.

    A checkpoint is written from within a hook, where some events are begun and not completed. Each
    hook would have its own way back, with steps counted and hooks called once more or once less;
    from between two batches there is only one.

    Args:
        loops: State of the fit loop.
        steps: Number of optimizer steps so far.
    """
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    within = batch["current"]["processed"]
    if epoch["total"]["processed"] == epoch["total"]["started"]:
        within = 0
    for counts, number in (
        (epoch["total"], epoch["total"]["processed"]),
        (epoch["current"], epoch["current"]["processed"]),
        (batch["total"], batch["total"]["processed"]),
        (batch["current"], within),
    ):
        counts.update(dict.fromkeys(counts, number))
    batch["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts.update(dict.fromkeys(counts, 0))
