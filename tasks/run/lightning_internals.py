"""All uses of Lightning's private API.

`tests/tasks/test_internals.py` fails if an upgrade removes a part of it.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import nn


class OpenedLogger(WandbLogger):
    """Lightning's W&B logger; its run can be reopened with other options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Lightning still passes this option, which W&B has removed and warns about.
        self.options.pop("anonymous", None)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `wandb.init`."""
        return self._wandb_init

    @property
    def run(self) -> Any:
        """The open W&B run, or None; unlike `experiment`, it does not open one."""
        return self._experiment

    @run.setter
    def run(self, run: Any) -> None:
        self._experiment = run


def averaged_model(callback: WeightAveraging) -> nn.Module | None:
    """Return the averaged model of a callback; None before training starts."""
    return callback._average_model


def resume_within_epoch(trainer: L.Trainer) -> int:
    """Resume in the middle of an epoch, and return the number of its batches that are done.

    By default, Lightning's loop starts every epoch at its first batch.
    """
    run: Any = trainer
    loop = run.fit_loop.epoch_loop
    within: int = loop.batch_progress.current.ready
    loop.restarting = within > 0
    loop.update_restart_stage()
    return within


def reset_to_batch_boundary(loops: dict[str, Any], steps: int) -> None:
    """Set the counters of Lightning's loops to their values before the next batch, in place.

    A checkpoint is written in a hook, where some events have started but are not complete. The
    effect of Lightning's resume then depends on the hook: steps are counted, or hooks called, once
    too often or too rarely. Between two batches no event is incomplete.

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
