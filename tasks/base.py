"""The base of every task: how a classifier is trained, validated and tested."""

import logging
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from modules import (
    AttentionDropout,
    DropHead,
    DropPath,
    EmbeddingDropout,
    LayerDrop,
    LearnedDropout,
    Regularization,
    SharpnessAware,
    TokenDropout,
    WeightStandardization,
    dropout_rates,
    elastic,
    parameter_groups,
    r_drop_loss,
)
from modules.inference import moving_norms
from tasks.data import Batch, ClassificationData, DataSpec
from tasks.devices import draw_own_masks, on_all_ranks, refuse_scaled, refuse_sharded
from tasks.errors import InputError
from tasks.metrics import Predictions, at_chance, classification_metrics
from tasks.opening import SafelyOpened
from tasks.optimization import Optimization
from tasks.regularizers import (
    AdaptiveClip,
    BufferAverage,
    DropoutRates,
    MaxNorm,
    PreciseBatchNorm,
)

log = logging.getLogger(__name__)

# Under it, the statistics of a batch say too little of the data (Wu & He 2018).
SMALL_BATCH = 16
EVALUATED = ("validation", "train")
# Kinds of dropout whose rates are learned.
LEARNED = ("concrete", "variational")
# Those whose biases may have a learning rate of their own.
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
# What a regularizer drops: no model has all of them.
SITES: tuple[tuple[str, type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ("drop_path", DropPath, "residual branches"),
    ("layer_drop", LayerDrop, "layers that keep their input's shape"),
    ("embedding_dropout", EmbeddingDropout, "words of an embedding"),
    ("token_dropout", TokenDropout, "tokens of a transformer"),
    ("attention_head_dropout", DropHead, "heads of attention"),
    # An encoder that computes attention by itself has PyTorch's layer.
    ("attention_dropout", (AttentionDropout, nn.Dropout), "attention probabilities"),
)


def chosen_sizes(**sizes: int | None) -> dict[str, int]:
    """Leave out the sizes of a model that are not given.

    Raises:
        ValueError: One is less than 1.

    Example:
        >>> chosen_sizes(depth=None, width=32)
        {'width': 32}
    """
    chosen = {name: size for name, size in sizes.items() if size is not None}
    for name, size in chosen.items():
        if size < 1:
            raise ValueError(f"{name} is at least 1, not {size!r}")
    return chosen


class ClassificationTask(SafelyOpened):
    """Trains a classifier with the regularization and optimization that it is given.

    A subclass builds its model and calls this constructor with it. The best checkpoint is chosen by
    `val/acc`. The test split is read at the end, with that checkpoint and with the last one; the
    test does not choose between them.

    Args:
        model: The classifier.
        spec: What the model must know of the data.
        reg: Regularization inside the model and of its weights.
        optim: Optimizer and schedule.
        gradient_checkpointing: Whether the blocks of the model are computed again in the backward
            pass, instead of keeping what they computed.
        compile: Whether the model is compiled for the training.

    Raises:
        ValueError: The model has nothing of what an argument is for.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: DataSpec,
        reg: Regularization,
        optim: Optimization,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        super().__init__()
        for name, kind, subject in SITES:
            rate = getattr(reg, name)
            if rate and not any(isinstance(layer, kind) for layer in model.modules()):
                raise ValueError(
                    f"{name}={rate} drops {subject}, and this model has none; leave it at 0"
                )
        if reg.norm_recompute and not moving_norms(model):
            raise ValueError(
                f"norm_recompute={reg.norm_recompute} recomputes running statistics, and this "
                "model keeps none; leave it at 0, or use normalization=batch"
            )
        if reg.dropout_schedule != "constant" and not dropout_rates(model):
            raise ValueError(
                f"dropout_schedule={reg.dropout_schedule} changes dropout rates, and this model "
                "drops nothing at a given rate; set one, or leave the schedule at constant"
            )
        if reg.weight_standardization and not any(
            isinstance(layer, WeightStandardization) for layer in model.modules()
        ):
            raise ValueError(
                "weight_standardization=True is for convolutions and hidden linear layers, and "
                "this model has none; leave it at false"
            )
        if gradient_checkpointing:
            checkpoint_blocks(model)
        self.model = model
        self.compiled = compile
        self.classes = spec.classes
        self.reg = reg
        self.sharpness = SharpnessAware(model, reg.sam, reg.sam_adaptive) if reg.sam else None
        self.optim = optim
        self.predictions = {split: Predictions() for split in (*EVALUATED, "test")}
        # What the test is of: the selected weights, or those of the last epoch.
        self.tested: Literal["test", "test_last"] = "test"
        self.test_logits = torch.empty(0)
        self.test_labels = torch.empty(0)
        # Sums since the last log, and the first step with a bad loss: tensors on the device, so
        # that no step has to wait for them.
        self.sums = torch.zeros(3)
        self.bad_step = torch.tensor(-1)
        self.train_examples = 1

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes); `lengths` where the inputs are padded."""
        logits: Tensor = self.model(inputs) if lengths is None else self.model(inputs, lengths)
        return logits

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the logits (batch, classes) that the test is measured by."""
        logits: Tensor = self(batch.inputs, batch.lengths)
        return logits

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change a training batch and its targets (batch, classes); a task says how."""
        return batch, targets

    def augment_half(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the second half of a batch, as `SplitBatchNorm` expects it."""
        half = (len(targets) + 1) // 2
        lengths = None if batch.lengths is None else batch.lengths[half:]
        second = Batch(batch.inputs[half:], batch.labels[half:], batch.places[half:], lengths)
        second, changed = self.augment(second, targets[half:])
        inputs = torch.cat((batch.inputs[:half], second.inputs))
        return batch._replace(inputs=inputs), torch.cat((targets[:half], changed))

    def penalty(self) -> Tensor | float:
        """Return what the regularization adds to the loss of a step."""
        total: Tensor | float = 0.0
        if self.reg.l1 or self.reg.l2:
            total = elastic(self.model, self.reg.l1, self.reg.l2)
        if self.reg.dropout_kind in LEARNED:
            learned = (m for m in self.model.modules() if isinstance(m, LearnedDropout))
            total = total + sum(layer.penalty() for layer in learned) / self.train_examples
        return total

    def setup(self, stage: str) -> None:
        """Refuse batches that cannot be trained on."""
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, ClassificationData):
            return
        self.train_examples = len(data.splits["train"])
        if isinstance(self.trainer.strategy, FSDPStrategy):
            refuse_sharded(self.reg, self.optim.ema)
        refuse_scaled(self.reg, str(self.trainer.precision))
        if self.compiled:
            # In place: the names in the state dict stay as they are.
            self.model.compile()
        world = self.trainer.world_size
        smallest = len(data.splits["train"]) // (len(data.train_dataloader()) * world)
        if not smallest:
            raise InputError(
                f"{len(data.splits['train'])} examples are too few for {world} devices"
            )
        self.tell_batches(data.batch_size)
        # Split batch norm halves a batch.
        needed = {"split": 4}.get(self.reg.normalization, 2)
        if self.reg.synchronized:
            smallest *= world
        if smallest < needed and self.reg.needs_batch:
            raise InputError(
                f"data.batch_size={data.batch_size} leaves a batch of {smallest}: "
                f"{self.reg.normalization} norm takes its statistics over {needed} or more; raise "
                "it, or use model.reg.normalization=none"
            )

    def tell_batches(self, batch_size: int) -> None:
        """Log the batch that a step of all devices takes, and what batch norm sees of it."""
        world, steps = self.trainer.world_size, self.trainer.accumulate_grad_batches
        seen = batch_size * (world if self.reg.synchronized else 1)
        if world > 1 or steps > 1:
            told = (
                f"each step takes {batch_size * world * steps} examples: {batch_size} on each of "
                f"{world} devices" + (f", {steps} times" if steps > 1 else "")
            )
            told += f"; model.optim.lr={self.optim.lr} is taken as it is"
            if self.reg.needs_batch:
                told += f"; {self.reg.normalization} norm takes its statistics over {seen}"
            log.info(told)
        if seen < SMALL_BATCH and self.reg.normalization in ("batch", "split"):
            log.warning(
                f"{self.reg.normalization} norm takes its statistics over {seen} examples, and "
                f"under {SMALL_BATCH} they say little; raise data.batch_size, "
                + ("let model.reg.sync be true, " if world > 1 and seen == batch_size else "")
                + "or use model.reg.normalization=group"
            )

    def on_fit_start(self) -> None:
        """Put every layer into training mode: fit itself leaves a module in eval mode so."""
        self.train()
        draw_own_masks(self.global_rank)
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
        """Put the weights back to where the optimizer goes on from."""
        if self.sharpness is not None:
            self.sharpness.restore()

    def batch_loss(self, batch: Batch, targets: Tensor) -> Tensor:
        """Return the loss of one batch as it is, and add it to the sums."""
        logits = self(batch.inputs, batch.lengths)
        smoothing = self.reg.label_smoothing
        if self.reg.r_drop:
            again = self(batch.inputs, batch.lengths)
            loss = r_drop_loss(
                logits.float(), again.float(), targets, self.reg.r_drop, label_smoothing=smoothing
            )
        else:
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        penalty = self.penalty()
        if self.sharpness is None or not self.sharpness.perturbed:
            self.count((loss + penalty).detach(), logits, targets)
        # The ranks' gradients are averaged: with the weight, it is the mean over all examples.
        return loss * batch.weight + penalty

    @torch.no_grad()
    def count(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to the sums, and note the first step with a bad loss."""
        hits = (logits.argmax(1) == targets.argmax(1)).sum()
        examples = len(targets)
        self.sums += torch.stack([loss * examples, hits, hits.new_tensor(examples)])
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step.masked_fill_(bad, self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the step, if it is one to log."""
        self.log_at_interval()

    def log_at_interval(self) -> None:
        """Log what was summed up, at the trainer's interval."""
        trainer: Any = self.trainer
        if self.global_step % trainer.log_every_n_steps == 0:
            self.log_training()

    def log_training(self) -> None:
        """Log the mean training loss and accuracy of all ranks since the last time.

        Raises:
            InputError: The loss of a step was NaN or infinite, on any rank.
        """
        sums, bad_step = on_all_ranks(self.sums, self.bad_step)
        if int(bad_step) >= 0:
            raise InputError(
                f"the loss of step {int(bad_step)} is NaN or infinite; the last good "
                "checkpoint is kept; try a smaller model.optim.lr or trainer.gradient_clip_val=1"
            )
        loss, hits, count = sums.tolist()
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
        found = {split: self.predictions[split].collect() for split in EVALUATED}
        validation, train = (classification_metrics(*found[split]) for split in EVALUATED)
        metrics = {f"val/{name}": value for name, value in validation.items() if name != "acc"}
        metrics |= {f"train/eval_{name}": value for name, value in train.items()}
        metrics |= {
            "reg/gap_acc": train["acc"] - validation["acc"],
            "reg/gap_loss": validation["loss"] - train["loss"],
            "train/at_chance": float(at_chance(*found["train"])),
        }
        self.log_dict(metrics)
        self.log("val/acc", validation["acc"], prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of one batch."""
        logits = self.evaluate(batch)
        self.predictions["test"].add(batch.places, logits, batch.labels)

    def on_test_epoch_end(self) -> None:
        """Log test metrics and keep the predictions for the results."""
        self.test_logits, self.test_labels = self.predictions["test"].collect()
        metrics = classification_metrics(self.test_logits, self.test_labels)
        self.log_dict({f"{self.tested}/{name}": value for name, value in metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was summed up over all ranks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sums"], _ = on_all_ranks(self.sums, self.bad_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what was summed up, on the first rank; older checkpoints do not hold it."""
        if "sums" in checkpoint and not self.global_rank:
            self.sums = checkpoint["sums"]

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the schedule of the learning rate."""
        groups = parameter_groups(self.model, self.reg.weight_decay)
        trainer: Any = self.trainer
        # A fused optimizer in mixed precision unscales the gradients after they would be clipped.
        clipped = trainer.gradient_clip_val or self.reg.adaptive_clip
        fused = not (clipped and "mixed" in trainer.precision)
        norms = (m for m in self.model.modules() if isinstance(m, NORMS))
        biases = [norm.bias for norm in norms if norm.bias is not None]
        return self.optim.build(groups, int(trainer.estimated_stepping_batches), fused, biases)

    def configure_callbacks(self) -> list[Callback]:
        """Add what regularizes from outside of the model, where it is asked for."""
        reg = self.reg
        callbacks: list[Callback] = []
        if reg.early_stopping:
            callbacks.append(EarlyStopping("val/acc", mode="max", patience=reg.early_stopping))
        if reg.dropout_schedule != "constant" or reg.dropout_kind in LEARNED:
            callbacks.append(DropoutRates(reg.dropout_schedule, reg.dropout_schedule_share))
        # The limit first, and then the average: it shall be one of weights within the limit.
        if reg.max_norm:
            callbacks.append(MaxNorm(reg.max_norm))
        if reg.adaptive_clip:
            callbacks.append(AdaptiveClip(reg.adaptive_clip))
        if self.optim.ema:
            callbacks.append(EMAWeightAveraging(decay=self.optim.ema))
        # After the average, whose statistics it is that are recomputed.
        if reg.norm_recompute:
            callbacks.append(PreciseBatchNorm(reg.norm_recompute))
        # Synchronized ones are the same on all ranks.
        if reg.dropout_kind == "kwinners" or (reg.needs_batch and not reg.synchronized):
            callbacks.append(BufferAverage())
        return callbacks


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the blocks of a model be computed again in the backward pass.

    Raises:
        ValueError: It has no blocks.
    """
    found = False
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "checkpointing"):
            layer.checkpointing = found = True
        # An encoder of transformers has blocks of its own; the first name is the newer one.
        elif hasattr(layer, "activation_checkpointing_enable"):
            layer.activation_checkpointing_enable({"use_reentrant": False})
            found = True
        elif hasattr(layer, "gradient_checkpointing_enable"):
            layer.gradient_checkpointing_enable({"use_reentrant": False})
            found = True
    if not found:
        raise ValueError(
            "gradient_checkpointing=true computes blocks again, and this model has none; leave it "
            "at false"
        )
