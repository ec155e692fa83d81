"""Calibration of Monte Carlo dropout at the end of a run, on the validation split."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from regain.montecarlo import has_dropout, mc_passes
from tasks.base import ClassificationTask
from tasks.calibration import calibrate
from tasks.data.base import EVALUATION_BATCH
from tasks.run.checkpoints import BEST, AtomicCheckpointIO, repeatable
from tasks.run.safe_loading import read_checkpoint

# Passes, and the largest number of validation examples: 1 to 3 % of a run on builtin data.
PASSES, EXAMPLES = 20, 250


class MonteCarloCalibration(Callback):
    """Adds temperature and threshold of Monte Carlo dropout to `best.ckpt`, before its test.

    Those of a prediction without dropout come from each validation.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / BEST

    @rank_zero_only
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate the best checkpoint, whose weights the test has loaded."""
        assert isinstance(pl_module, ClassificationTask)
        # Sharded weights are in a folder, and need all ranks.
        if pl_module.tested != "test" or not self.file.is_file() or not has_dropout(pl_module):
            return
        checkpoint = read_checkpoint(self.file)
        logits, labels = passes_over_validation(trainer, pl_module)
        found = calibrate(logits, labels)
        # Checkpoints of older versions have no calibration.
        checkpoint["calibration"] = {
            **pl_module.calibration._asdict(),
            "mc": {**found._asdict(), "passes": PASSES, "examples": len(labels)},
        }
        AtomicCheckpointIO().save_checkpoint(checkpoint, self.file)


@torch.no_grad()
def passes_over_validation(trainer: L.Trainer, task: ClassificationTask) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (passes, examples, classes) and labels of validation examples."""
    run: Any = trainer
    examples = run.datamodule.splits["validation"]
    # Evenly spaced: a split may be sorted by class.
    count = min(EXAMPLES, len(examples))
    rows = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).long()
    lengths = examples.subset(rows).lengths()
    if lengths is not None:
        rows = rows[lengths.argsort(descending=True, stable=True)]
    found, labels = [], []
    with repeatable(task):
        for part in rows.tensor_split(-(-len(rows) // EVALUATION_BATCH)):
            batch = run.precision_plugin.convert_input(examples.gather(part))
            batch = run.strategy.batch_to_device(batch, dataloader_idx=0)
            inputs = [one for one in (batch.inputs, batch.lengths) if one is not None]
            with run.precision_plugin.test_step_context():
                log_p = mc_passes(task, *inputs, passes=PASSES, limit=EVALUATION_BATCH)
            found.append(log_p.cpu())
            labels.append(batch.labels.cpu())
    return torch.cat(found, dim=1), torch.cat(labels)
