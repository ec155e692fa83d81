"""The base of every task: how a classifier is trained, validated and tested."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from modules import DropPath, Regularization, parameter_groups
from tasks.data import Batch, ClassificationData, DataSpec
from tasks.errors import InputError
from tasks.metrics import Predictions, classification_metrics

EVALUATED = ("validation", "train")


@dataclass(frozen=True)
class Optimization:
    """How the weights are found.

    Args:
        optimizer: SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter 2019).
        lr: Highest learning rate.
        momentum: Of SGD.
        schedule: `one_cycle` rises for `warmup` of all steps from a 25th of the rate, and falls to
            zero along a cosine (Smith & Topin 2018); `cosine` begins at the highest rate;
            `constant` stays there.
        warmup: Share of all steps, of `one_cycle`.
        ema: Decay of an exponential moving average of weights and batch-norm buffers, which is
            what is validated, tested and saved; 0 for none.

    Raises:
        ValueError: A value is out of its range.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.25
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.lr < float("inf"):
            raise ValueError(f"lr is more than 0, not {self.lr!r}")
        for name in ("momentum", "warmup", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is in [0, 1), not {getattr(self, name)!r}")


class ClassificationTask(L.LightningModule):
    """Trains a classifier with the regularization and optimization that it is given.

    A subclass builds its model and calls this constructor with it. The best checkpoint is chosen by
    `val/acc`; the test split is read once, with that checkpoint.
    """

    def __init__(
        self, model: nn.Module, spec: DataSpec, reg: Regularization, optim: Optimization
    ) -> None:
        super().__init__()
        if reg.drop_path and not any(isinstance(layer, DropPath) for layer in model.modules()):
            raise ValueError(
                f"drop_path={reg.drop_path} drops residual branches, and this model has none; "
                "leave it at 0"
            )
        self.model = model
        self.classes = spec.classes
        self.reg = reg
        self.optim = optim
        self.predictions = {split: Predictions() for split in (*EVALUATED, "test")}
        self.test_logits = torch.empty(0)
        self.test_labels = torch.empty(0)
        # Sums since the last log, and the first step with a bad loss: tensors on the device, so
        # that no step has to wait for them.
        self.sums = torch.zeros(3)
        self.bad_step = torch.tensor(-1)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes); `lengths` where the inputs are padded."""
        logits: Tensor = self.model(inputs) if lengths is None else self.model(inputs, lengths)
        return logits

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change a training batch and its targets (batch, classes); a task says how."""
        return batch, targets

    def setup(self, stage: str) -> None:
        """Refuse batches that cannot be trained on."""
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, ClassificationData):
            return
        world = self.trainer.world_size
        smallest = len(data.splits["train"]) // (len(data.train_dataloader()) * world)
        if not smallest:
            raise InputError(
                f"{len(data.splits['train'])} examples are too few for {world} devices"
            )
        if smallest < 2 and self.reg.normalized:
            raise InputError(
                f"data.batch_size={data.batch_size} leaves a batch of one: batch norm takes its "
                "statistics over a batch; raise it, or use model.reg.normalization=none"
            )

    def on_fit_start(self) -> None:
        """Put every layer into training mode: fit itself leaves a module in eval mode so."""
        self.train()
        if self.global_rank:
            # All ranks were seeded alike, for equal weights; their masks shall differ.
            torch.manual_seed(torch.initial_seed() + self.global_rank)
        self.sums, self.bad_step = self.sums.to(self.device), self.bad_step.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        targets = F.one_hot(batch.labels, len(self.classes)).float()
        batch, targets = self.augment(batch, targets)
        logits = self(batch.inputs, batch.lengths)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.reg.label_smoothing)
        with torch.no_grad():
            hits = (logits.argmax(1) == targets.argmax(1)).sum()
            count = len(targets)
            self.sums += torch.stack([loss.detach() * count, hits, hits.new_tensor(count)])
            bad = ~torch.isfinite(loss) & (self.bad_step < 0)
            self.bad_step.masked_fill_(bad, self.global_step)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what was summed up, at the trainer's interval."""
        trainer: Any = self.trainer
        if self.global_step % trainer.log_every_n_steps == 0:
            self.log_training()

    def log_training(self) -> None:
        """Log the mean training loss and accuracy since the last time.

        Raises:
            InputError: The loss of a step was NaN or infinite.
        """
        if int(self.bad_step) >= 0:
            raise InputError(
                f"the loss of step {int(self.bad_step)} is NaN or infinite; the last good "
                "checkpoint is kept; try a smaller model.optim.lr or trainer.gradient_clip_val=1"
            )
        loss, hits, count = self.sums.tolist()
        self.sums.zero_()
        if count and self.logger is not None:
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            metrics = {"train/loss": loss / count, "train/acc": hits / count, "train/lr": lr}
            self.logger.log_metrics(metrics, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        """Log the rest of the epoch."""
        self.log_training()

    def on_validation_epoch_start(self) -> None:
        """Look for a bad loss before a checkpoint of it can be saved."""
        if not self.trainer.sanity_checking:
            self.log_training()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the logits of one batch of the validation split or of the training examples."""
        split = self.predictions[EVALUATED[dataloader_idx]]
        split.add(batch.places, self(batch.inputs, batch.lengths), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log validation metrics and the generalization gap."""
        validation, train = (
            classification_metrics(*self.predictions[split].collect()) for split in EVALUATED
        )
        metrics = {f"val/{name}": value for name, value in validation.items() if name != "acc"}
        metrics |= {f"train/eval_{name}": value for name, value in train.items()}
        metrics |= {
            "reg/gap_acc": train["acc"] - validation["acc"],
            "reg/gap_loss": validation["loss"] - train["loss"],
        }
        self.log_dict(metrics)
        self.log("val/acc", validation["acc"], prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of one batch."""
        logits = self(batch.inputs, batch.lengths)
        self.predictions["test"].add(batch.places, logits, batch.labels)

    def on_test_epoch_end(self) -> None:
        """Log test metrics and keep the predictions for the results."""
        self.test_logits, self.test_labels = self.predictions["test"].collect()
        metrics = classification_metrics(self.test_logits, self.test_labels)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the constructor's arguments as plain data, which loads without running code."""
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        plain = {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in checkpoint.get(key, {}).items()
        }
        # Lightning's own, which makes dataclasses of them again.
        checkpoint[key] = plain | {"_instantiator": "lightning.pytorch.cli.instantiate_module"}

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the schedule of the learning rate, stepped after every batch."""
        groups = parameter_groups(self.model, self.reg.weight_decay)
        optim = self.optim
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            nesterov = optim.momentum > 0
            optimizer = torch.optim.SGD(groups, optim.lr, optim.momentum, nesterov=nesterov)
        else:
            optimizer = torch.optim.AdamW(groups, optim.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        rise = round(optim.warmup * steps) if optim.schedule == "one_cycle" else 0
        scheduler: lr_scheduler.LRScheduler
        if optim.schedule == "constant":
            scheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
        else:
            scheduler = lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise))
        if rise:
            warmup = lr_scheduler.LinearLR(optimizer, 1 / 25, total_iters=rise)
            scheduler = lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], [rise])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_callbacks(self) -> list[Callback]:
        """Add early stopping and the moving average of weights where they are asked for."""
        callbacks: list[Callback] = []
        if self.reg.early_stopping:
            patience = self.reg.early_stopping
            callbacks.append(EarlyStopping("val/acc", mode="max", patience=patience))
        if self.optim.ema:
            callbacks.append(EMAWeightAveraging(decay=self.optim.ema))
        return callbacks
