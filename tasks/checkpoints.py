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
from tasks.lightning_internals import begin_within_epoch, between_batches

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


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, of the highest validation accuracy, the first one of equals.

    Lightning's own forgets the score of the best epoch when a run goes on, and all of its state if
    the run's folder has moved meanwhile: the next epoch would be the best one.

    Args:
        folder: The run's own.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=Path(BEST).stem,
            monitor="val/acc",
            mode="max",
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The name in checkpoints, which also hold this state from before this class."""
        return super().state_key.replace("BestCheckpoint", "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over all of the state; its files lie in this run's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            state_dict
            | {name: here(state_dict[name]) for name in paths}
            | {"best_k_models": {here(k): v for k, v in state_dict["best_k_models"].items()}}
            | {"dirpath": self.dirpath}
        )
        self.current_score = state_dict["current_score"]


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
        run.train_dataloader.left_out = begin_within_epoch(trainer)

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
