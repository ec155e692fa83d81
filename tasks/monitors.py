"""Optional callbacks that log more metrics of a run.

A callback is added by its class path:
`make train TASK=vision ARGS="--trainer.callbacks+=tasks.monitors.LayerMonitor"`
"""

from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from regain import dead_units, mc_predict, variance_shift
from regain.checks import check_amount
from tasks.data import Batch, ClassificationData
from tasks.metrics import Predictions, classification_metrics


class LayerMonitor(Callback):
    """Logs statistics of the layers on validation data, after each epoch.

    `reg/variance_shift/LAYER` is the variance of a batch norm's input divided by its running
    variance (Li et al. 2019; 1 if training and evaluation agree). `reg/dead_units/LAYER` is the
    fraction of units that no example activates.

    Args:
        batches: Largest number of validation batches.

    Raises:
        ValueError: `batches` is not a whole number of at least 0.
    """

    def __init__(self, batches: int = 4) -> None:
        check_amount("batches", batches, whole=True)
        self.batches = batches

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the statistics of the validated weights."""
        run: Any = trainer
        data = run.datamodule
        if trainer.sanity_checking or not isinstance(data, ClassificationData):
            return
        validation, _ = data.val_dataloader()
        batches = [trainer.strategy.batch_to_device(b) for b in islice(validation, self.batches)]

        def forward(batch: Batch) -> Any:
            return pl_module(batch.inputs, batch.lengths)

        metrics = {
            f"reg/{what}/{name.removeprefix('model.')}": value
            for what, values in (
                ("variance_shift", variance_shift(pl_module, batches, forward)),
                ("dead_units", dead_units(pl_module, batches, forward)),
            )
            for name, value in values.items()
        }
        pl_module.log_dict(metrics)


class MonteCarloDropout(Callback):
    """Also tests the best checkpoint with Monte Carlo dropout (Gal & Ghahramani 2016).

    It adds `test/mc_acc`, `test/mc_loss` and `test/mc_ece` of the mean probabilities of all passes,
    and `test/mc_entropy` and `test/mc_mutual_information`, the mean predictive entropy and mutual
    information in nats.

    Args:
        passes: Number of forward passes with dropout.

    Raises:
        ValueError: `passes` is not a whole number of at least 1.
    """

    def __init__(self, passes: int = 20) -> None:
        check_amount("passes", passes, whole=True)
        if not passes:
            raise ValueError("passes is a whole number of at least 1, not 0")
        self.passes = passes
        self.predictions = Predictions()
        # Two columns, entropy and mutual information, instead of logits.
        self.uncertainties = Predictions()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the batch with dropout."""
        if not selected(pl_module):
            return
        inputs = (batch.inputs,) if batch.lengths is None else (batch.inputs, batch.lengths)
        found = mc_predict(pl_module, *inputs, passes=self.passes)
        self.predictions.add(batch.indices, found.mean.log(), batch.labels)
        uncertainties = torch.stack((found.entropy, found.mutual_information), dim=1)
        self.uncertainties.add(batch.indices, uncertainties, batch.labels)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the metrics of the mean probabilities."""
        if not selected(pl_module):
            return
        metrics = classification_metrics(*self.predictions.collect())
        entropy, information = self.uncertainties.collect()[0].mean(dim=0).tolist()
        metrics |= {"entropy": entropy, "mutual_information": information}
        pl_module.log_dict({f"test/mc_{name}": value for name, value in metrics.items()})


def selected(task: L.LightningModule) -> bool:
    """Whether the current test is that of the best checkpoint, and not of the last one."""
    return getattr(task, "tested", "test") == "test"
