"""Checkpoints that hold all of a run, so that one that is stopped goes on as if it had not been."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from tasks.base import ClassificationTask

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
# Seconds of an epoch after which it is saved before its end.
LONG = 600.0


class Stopped(SystemExit):
    """The run was asked to end and has saved where it is."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: it is there whole, or not at all.

    Of `last.ckpt` the one before is kept, as `previous.ckpt`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: only within one file system is renaming done at once.
        partial = target.with_name(f"{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                target.replace(target.with_name(PREVIOUS))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def best_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keep `best.ckpt`, of the highest validation accuracy."""
    return ModelCheckpoint(
        folder,
        filename=Path(BEST).stem,
        monitor="val/acc",
        mode="max",
        enable_version_counter=False,
    )


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run can go on, and the one before it.

    It is written at the end of every epoch, ten minutes into a long one, and when the process gets
    SIGTERM: after the step that is under way, or after the validation. The run ends then.

    Args:
        folder: The run's own.
        config: The resolved configuration; a checkpoint tells by it which run it is of.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.file = folder / LAST
        self.config = config
        self.asked = False
        self.stopping = False
        self.saved = time.monotonic()

    def ask(self, *_: Any) -> None:
        """Note that the process shall end."""
        self.asked = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which would end the ranks at different steps."""
        if threading.current_thread() is threading.main_thread():
            # The trainer puts back the handler from before it when it is done.
            signal.signal(signal.SIGTERM, self.ask)
        self.saved = time.monotonic()
        run: Any = trainer
        run.should_stop = run.should_stop or self.stopping
        # Left to itself, the loop begins every epoch from its start.
        within = run.fit_loop.epoch_loop.batch_progress.current.ready
        run.fit_loop.epoch_loop.restarting = within > 0
        run.fit_loop.epoch_loop.update_restart_stage()
        run.train_dataloader.left_out = within

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, place: int
    ) -> None:
        """Save after this step, if it is time to."""
        run: Any = trainer
        done = place + 1
        # Gradients that are summed up are in no checkpoint, and a validation comes first.
        if done % run.accumulate_grad_batches or done % run.val_check_batch == 0:
            return
        due = self.asked or time.monotonic() - self.saved > LONG
        # All ranks save at the same step, or none.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            assert isinstance(pl_module, ClassificationTask)
            # Its own hook for the end of a step comes after those of callbacks.
            pl_module.log_at_interval()
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()
        if stop:
            raise Stopped

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what tells the run, and put the trainer's counters into order."""
        checkpoint["run"] = {"config": self.config, "stopping": trainer.should_stop}
        between_batches(checkpoint["loops"]["fit_loop"], trainer.global_step)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember whether the training was about to end early."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.stopping = checkpoint["run"]["stopping"]


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


class RandomState(Callback):
    """Keeps the state of all random generators in the checkpoints, for each rank its own."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the states of all ranks."""
        states: list[Any] = [random_state(pl_module)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        checkpoint["random"] = states

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take this rank's state."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.loaded = checkpoint["random"][trainer.global_rank]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set it: from here on, only training draws."""
        if self.loaded is not None:
            set_random_state(pl_module, self.loaded)
            self.loaded = None


def random_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of all generators that a training draws from, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "layers": {
            name: layer.generator.get_state()
            for name, layer in model.named_modules()
            if isinstance(getattr(layer, "generator", None), torch.Generator)
        },
    }


def set_random_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Put all generators into a state that `random_state` has returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    layers: dict[str, Tensor] = state["layers"]
    for name, layer_state in layers.items():
        layer: Any = model.get_submodule(name)
        if layer.generator is None:
            layer.generator = torch.Generator()
        layer.generator.set_state(layer_state)
