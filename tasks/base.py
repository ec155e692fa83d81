"""Base class of all tasks: training, validation and test of a classifier."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from regain import (
    ChannelNorm,
    KWinners,
    LearnedDropout,
    Regularization,
    SharpnessAware,
    convert_sync_batchnorm,
    elastic,
    parameter_groups,
    r_drop_loss,
)
from regain.registry import Registry
from regain.torchnorm import BATCH_NORMS
from tasks.building import check_logits, takes_lengths
from tasks.calibration import Calibration, calibrate
from tasks.data import Batch, ClassificationData, DataSpec
from tasks.errors import InputError
from tasks.gradient_checkpointing import checkpoint_blocks
from tasks.hub_files import HubFiles, saved_files
from tasks.metrics import Predictions, at_chance, classification_metrics
from tasks.optimization import Optimization
from tasks.regularizers import (
    AdaptiveClip,
    BufferAverage,
    DropoutRates,
    MaxNorm,
    PreciseBatchNorm,
)
from tasks.run.devices import check_precision, check_sharding, reduce_over_ranks, seed_rank
from tasks.run.rows import log_row
from tasks.run.safe_loading import SafelyOpened
from tasks.training import TrainingRegularization, check_model

Layer = TypeVar("Layer", bound=nn.Module)
Links = dict[str, tuple[tuple[str, ...], Callable[..., Any]]]

log = logging.getLogger(__name__)

# Batch statistics of fewer examples are inaccurate (Wu & He 2018).
SMALL_BATCH = 16
EVALUATED = ("validation", "train")
# Norms whose biases `bias_lr` applies to.
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, ChannelNorm)


class ClassificationTask(SafelyOpened):
    """Trains, validates and tests a classifier.

    A subclass builds its model and passes it to this constructor. The best checkpoint is selected
    by `val/acc`. The best and the last checkpoint are both tested once, at the end; test metrics
    select nothing.

    Args:
        model: The classifier.
        spec: Properties of the data that the model depends on.
        reg: Regularization in the layers of the model.
        training: Regularization in the training loop.
        optim: Optimizer and learning-rate schedule.
        gradient_checkpointing: Whether the backward pass recomputes the activations of each block
            of the model, instead of keeping them in memory.
        compile: Whether `torch.compile` compiles the model for training.

    Raises:
        ValueError: The model has no layer that an argument applies to.
    """

    data_class: ClassVar[type[ClassificationData]]
    """Class of the data module that the command line builds for this task."""
    config: ClassVar[Path | None] = None
    """YAML file with the defaults of this task, over those of `configs/base.yaml`."""
    models: ClassVar[Registry[Any] | None] = None
    """Registered models that `arch` selects from; None if the task has no such option."""
    presets: ClassVar[str | None] = None
    """Section of the presets in `configs/reg` and `configs/data` that applies to this task; if
    None, the section `vision` of `configs/reg` and none of `configs/data`."""
    preset_file: ClassVar[Path | None] = None
    """YAML file with presets of this task by name, which come before those of `configs/reg`."""
    links: ClassVar[Links] = {}
    """Configuration keys of the data that are computed from keys of the model."""

    def __init__(
        self,
        model: nn.Module,
        spec: DataSpec,
        reg: Regularization,
        training: TrainingRegularization,
        optim: Optimization,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        super().__init__()
        check_model(model, reg, training)
        if gradient_checkpointing:
            checkpoint_blocks(model)
        self.model = model
        self.takes_lengths = takes_lengths(model)
        self.compiled = compile
        self.classes = spec.classes
        self.reg = reg
        # `nn.Module.training` is the mode of a module, so that name is taken.
        self.training_reg = training
        self.sharpness = (
            SharpnessAware(model, training.sam, training.sam_adaptive) if training.sam else None
        )
        self.optim = optim
        self.predictions = {split: Predictions() for split in (*EVALUATED, "test")}
        # Prefix of the test metrics: "test" for the best checkpoint, "test_last" for the last one.
        self.tested: Literal["test", "test_last"] = "test"
        # Of the last validation; a checkpoint contains it.
        self.calibration = Calibration()
        self.test_logits = torch.empty(0)
        self.test_labels = torch.empty(0)
        # Sums since the last log, and the first step with a NaN or infinite loss. They are tensors
        # on the device, so that a step does not wait for a copy to the CPU.
        self.sums = torch.zeros(3)
        self.bad_step = torch.tensor(-1)
        self.train_examples = 1

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes); `lengths` is given if the inputs are padded."""
        logits: Tensor = (
            self.model(inputs, lengths=lengths) if self.takes_lengths else self.model(inputs)
        )
        # `len(inputs)` would fix the batch size of an exported graph.
        check_logits(logits, inputs.shape[0], len(self.classes), self.model)
        return logits

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the logits (batch, classes) of a test batch."""
        logits: Tensor = self(batch.inputs, batch.lengths)
        return logits

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Augment a training batch and its targets (batch, classes); subclasses override it."""
        return batch, targets

    def augment_half(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Augment the second half of a batch only, as `SplitBatchNorm` expects."""
        half = (len(targets) + 1) // 2
        lengths = None if batch.lengths is None else batch.lengths[half:]
        second = Batch(batch.inputs[half:], batch.labels[half:], batch.indices[half:], lengths)
        second, changed = self.augment(second, targets[half:])
        inputs = torch.cat((batch.inputs[:half], second.inputs))
        return batch._replace(inputs=inputs), torch.cat((targets[:half], changed))

    def layers_of(self, kind: type[Layer]) -> list[Layer]:
        """Return the layers of the model that are instances of this class."""
        return [layer for layer in self.model.modules() if isinstance(layer, kind)]

    def penalty(self) -> Tensor | float:
        """Return the penalty that is added to the loss of a step."""
        total: Tensor | float = 0.0
        if self.training_reg.l1 or self.training_reg.l2:
            total = elastic(self.model, self.training_reg.l1, self.training_reg.l2)
        learned = self.layers_of(LearnedDropout)
        if learned:
            total = total + sum(layer.penalty() for layer in learned) / self.train_examples
        return total

    def setup(self, stage: str) -> None:
        """Synchronize batch norm over the ranks, compile the model, and check the batch size.

        Raises:
            InputError: A batch is too small, or an option does not work with the strategy or the
                precision.
        """
        if stage == "fit" and self.reg.synchronized and self.trainer.world_size > 1:
            # Before the strategy wraps the model. The parameters stay the same objects.
            convert_sync_batchnorm(self.model)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, ClassificationData):
            return
        self.train_examples = len(data.splits["train"])
        if isinstance(self.trainer.strategy, FSDPStrategy):
            check_sharding(self.reg, self.training_reg, self.optim.ema)
        check_precision(self.training_reg, str(self.trainer.precision))
        if self.compiled:
            # Compiled in place, so that the keys of the state dict do not change.
            self.model.compile()
        world = self.trainer.world_size
        smallest = len(data.splits["train"]) // (len(data.train_dataloader()) * world)
        if not smallest:
            raise InputError(
                f"{len(data.splits['train'])} examples are too few for {world} devices"
            )
        self.log_batch_sizes(data.batch_size)
        # Split batch norm normalizes each half of a batch.
        needed = {"split": 4}.get(self.reg.normalization, 2)
        if self.reg.synchronized:
            smallest *= world
        if smallest < needed and self.reg.needs_batch:
            raise InputError(
                f"data.batch_size={data.batch_size} gives a batch of {smallest}: "
                f"{self.reg.normalization} norm needs {needed} or more examples; raise "
                "it, or use model.reg.normalization=none"
            )

    def log_batch_sizes(self, batch_size: int) -> None:
        """Log the effective batch size, and warn if that of batch norm is small."""
        world, steps = self.trainer.world_size, self.trainer.accumulate_grad_batches
        norm_batch = batch_size * (world if self.reg.synchronized else 1)
        if world > 1 or steps > 1:
            message = (
                f"effective batch size {batch_size * world * steps}: {batch_size} on each of "
                f"{world} devices" + (f", {steps} batches a step" if steps > 1 else "")
            )
            message += f"; model.optim.lr={self.optim.lr} is not scaled with it"
            if self.reg.needs_batch:
                message += f"; statistics of {self.reg.normalization} norm: {norm_batch} examples"
            log.info(message)
        if norm_batch < SMALL_BATCH and self.reg.normalization in ("batch", "split"):
            log.warning(
                f"{self.reg.normalization} norm computes its statistics from {norm_batch} "
                f"examples; under {SMALL_BATCH} they are inaccurate; raise data.batch_size, "
                + ("set model.reg.sync_bn=true, " if world > 1 and norm_batch == batch_size else "")
                + "or use model.reg.normalization=group"
            )

    def on_fit_start(self) -> None:
        """Put all layers into training mode: Lightning's `fit` keeps the mode of each module."""
        self.train()
        seed_rank(self.global_rank)
        self.sums, self.bad_step = self.sums.to(self.device), self.bad_step.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        targets = F.one_hot(batch.labels, len(self.classes)).float()
        if self.reg.normalization == "split":
            batch, targets = self.augment_half(batch, targets)
        else:
            batch, targets = self.augment(batch, targets)
        if self.sharpness is None:
            return self.batch_loss(batch, targets)
        return self.sharpness.climb(lambda: self.batch_loss(batch, targets))

    def on_after_backward(self) -> None:
        """Undo the perturbation of the weights by sharpness-aware minimization."""
        if self.sharpness is not None:
            self.sharpness.restore()

    def batch_loss(self, batch: Batch, targets: Tensor) -> Tensor:
        """Return the loss of an augmented batch, and add it to the sums."""
        logits = self(batch.inputs, batch.lengths)
        smoothing = self.training_reg.label_smoothing
        if self.training_reg.r_drop:
            again = self(batch.inputs, batch.lengths)
            loss = r_drop_loss(
                logits.float(),
                again.float(),
                targets,
                self.training_reg.r_drop,
                label_smoothing=smoothing,
            )
        else:
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        penalty = self.penalty()
        if self.sharpness is None or not self.sharpness.perturbed:
            self.count((loss + penalty).detach(), logits, targets)
        # The gradients of the ranks are averaged. The weight corrects for unequal batches per rank,
        # so that the result is the mean over all examples.
        return loss * batch.weight + penalty

    @torch.no_grad()
    def count(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to the sums, and record the first step with a NaN or infinite loss."""
        hits = (logits.argmax(1) == targets.argmax(1)).sum()
        examples = len(targets)
        self.sums += torch.stack([loss * examples, hits, hits.new_tensor(examples)])
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step.masked_fill_(bad, self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the training metrics at the trainer's interval."""
        self.log_at_interval()

    def log_at_interval(self) -> None:
        """Log the training metrics if this step is a multiple of `log_every_n_steps`."""
        trainer: Any = self.trainer
        if self.global_step % trainer.log_every_n_steps == 0:
            self.log_training()

    def log_training(self) -> None:
        """Log the mean training loss and accuracy of all ranks since the last log.

        Raises:
            InputError: The loss of a step was NaN or infinite, on any rank.
        """
        sums, bad_step = reduce_over_ranks(self.sums, self.bad_step)
        if int(bad_step) >= 0:
            raise InputError(
                f"the loss of step {int(bad_step)} is NaN or infinite; the last good "
                "checkpoint is kept; try a smaller model.optim.lr or trainer.gradient_clip_val=1"
            )
        loss, hits, count = sums.tolist()
        self.sums.zero_()
        if count:
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            metrics = {"train/loss": loss / count, "train/acc": hits / count, "train/lr": lr}
            log_row(self.trainer, metrics)

    def on_train_epoch_end(self) -> None:
        """Log the remaining steps of the training; those before a validation are logged there."""
        trainer: Any = self.trainer
        if trainer.should_stop or self.global_step >= trainer.estimated_stepping_batches:
            self.log_training()

    def on_validation_epoch_start(self) -> None:
        """Check for a NaN or infinite loss before a checkpoint is saved."""
        if not self.trainer.sanity_checking:
            self.log_training()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the logits of one batch of the validation split or of training examples."""
        split = self.predictions[EVALUATED[dataloader_idx]]
        split.add(batch.indices, self(batch.inputs, batch.lengths), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log validation metrics and the generalization gap."""
        found = {split: self.predictions[split].collect() for split in EVALUATED}
        validation, train = (classification_metrics(*found[split]) for split in EVALUATED)
        metrics = {f"val/{name}": value for name, value in validation.items() if name != "acc"}
        metrics |= {f"train_eval/{name}": value for name, value in train.items()}
        self.calibration = calibrate(*found["validation"])
        metrics |= {
            "val/temperature": self.calibration.temperature,
            "reg/gap_acc": train["acc"] - validation["acc"],
            "reg/gap_loss": validation["loss"] - train["loss"],
            "train/at_chance": float(at_chance(*found["train"])),
        }
        self.log_dict(metrics)
        self.log("val/acc", validation["acc"], prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits of one batch."""
        logits = self.evaluate(batch)
        self.predictions["test"].add(batch.indices, logits, batch.labels)

    def on_test_epoch_end(self) -> None:
        """Log test metrics and keep the predictions for the results."""
        self.test_logits, self.test_labels = self.predictions["test"].collect()
        metrics = classification_metrics(self.test_logits, self.test_labels)
        scaled = classification_metrics(
            self.test_logits / self.calibration.temperature, self.test_labels
        )
        metrics |= {f"{name}_calibrated": scaled[name] for name in ("loss", "ece")}
        self.log_dict({f"{self.tested}/{name}": value for name, value in metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums over all ranks, and the calibration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["calibration"] = self.calibration._asdict()
        files = getattr(self.model, "hub_files", None)
        if isinstance(files, HubFiles) and files.configs:
            checkpoint["hub"] = saved_files(files)
        checkpoint["sums"], _ = reduce_over_ranks(self.sums, self.bad_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the calibration, and on the first rank the sums; older checkpoints have none.

        Raises:
            ValueError: The calibration is not one.
        """
        saved = checkpoint.get("calibration", {})
        self.calibration = Calibration.of(saved)
        if "sums" in checkpoint and not self.global_rank:
            self.sums = checkpoint["sums"]

    def configure_optimizers(self) -> Any:
        """Create the optimizer and the learning-rate schedule."""
        groups = parameter_groups(self.model, self.training_reg.weight_decay)
        trainer: Any = self.trainer
        # In mixed precision, a fused optimizer unscales the gradients only after clipping.
        clipped = trainer.gradient_clip_val or self.training_reg.adaptive_clip
        fused = not (clipped and "mixed" in trainer.precision)
        norms = (m for m in self.model.modules() if isinstance(m, NORMS))
        biases = [norm.bias for norm in norms if norm.bias is not None]
        return self.optim.build(groups, int(trainer.estimated_stepping_batches), fused, biases)

    def configure_callbacks(self) -> list[Callback]:
        """Create the callbacks for the regularization in the training loop."""
        reg, training = self.reg, self.training_reg
        callbacks: list[Callback] = []
        if training.early_stopping:
            # After a validation: an epoch that max_steps ends has none.
            callbacks.append(
                EarlyStopping(
                    "val/acc",
                    mode="max",
                    patience=training.early_stopping,
                    check_on_train_epoch_end=False,
                )
            )
        if training.dropout_schedule != "constant" or self.layers_of(LearnedDropout):
            callbacks.append(
                DropoutRates(training.dropout_schedule, training.dropout_schedule_fraction)
            )
        # The limit before the average, so that the averaged weights are within the limit.
        if training.max_norm:
            callbacks.append(MaxNorm(training.max_norm))
        if training.adaptive_clip:
            callbacks.append(AdaptiveClip(training.adaptive_clip))
        if self.optim.ema:
            callbacks.append(EMAWeightAveraging(decay=self.optim.ema))
        # After the average, so that its statistics are recomputed.
        if training.norm_recompute:
            callbacks.append(PreciseBatchNorm(training.norm_recompute))
        # Synchronized statistics are equal on all ranks.
        if self.layers_of(KWinners) or (reg.needs_batch and not reg.synchronized):
            callbacks.append(BufferAverage())
        return callbacks
