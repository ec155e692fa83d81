"""Checkpoints with the full state of a run, so that a resumed run ends with the same weights."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tasks.run.lightning_internals import reset_to_batch_boundary, resume_within_epoch

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
# Version of the content of a checkpoint: version 1 has all that a prediction needs.
FORMAT = 1
# Seconds between checkpoints within an epoch.
SAVE_INTERVAL = 600.0


class Stopped(SystemExit):
    """The run received SIGTERM and has saved its state."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary name, which is then renamed.

    The previous `last.ckpt` is kept as `previous.ckpt`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, since a rename is atomic only within one file system.
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
    """Keeps `best.ckpt`, the first checkpoint with the highest validation accuracy.

    After a resume, Lightning's `ModelCheckpoint` loses the best score, and its whole state if the
    run's folder has moved. It would then save the next epoch as the best.

    Args:
        folder: The run's folder.
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
        """The key of Lightning's class, which older checkpoints use for this state."""
        return super().state_key.replace("BestCheckpoint", "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with all paths changed to this run's folder."""

        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            state_dict
            | {name: moved(state_dict[name]) for name in paths}
            | {"best_k_models": {moved(k): v for k, v in state_dict["best_k_models"].items()}}
            | {"dirpath": self.dirpath}
        )
        self.current_score = state_dict["current_score"]


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run can resume, and the previous one.

    It is written after every validation, every ten minutes in between, and when the process
    receives SIGTERM: after the current step, or after the validation. SIGTERM then ends the run.

    Args:
        folder: The run's folder.
        config: The resolved configuration, saved to identify the run.
        facts: Task, data, preset, name and seed of the run, and versions of the packages.
    """

    def __init__(self, folder: Path, config: dict[str, Any], facts: dict[str, Any]) -> None:
        self.file = folder / LAST
        self.config = config
        self.facts = facts
        self.stop_requested = False
        self.stopping = False
        self.saved = time.monotonic()

    def request_stop(self, *_: Any) -> None:
        """Handle SIGTERM: stop after the current step."""
        self.stop_requested = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's SIGTERM handler, which stops the ranks at different steps."""
        if threading.current_thread() is threading.main_thread():
            # The trainer restores the previous handler at the end.
            signal.signal(signal.SIGTERM, self.request_stop)
        self.saved = time.monotonic()
        run: Any = trainer
        run.should_stop = run.should_stop or self.stopping
        run.train_dataloader.skipped = resume_within_epoch(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after this step if a stop was requested or the epoch is long."""
        run: Any = trainer
        done = batch_idx + 1
        # Checkpoints do not contain accumulated gradients. Before a validation, wait for its end.
        if done % run.accumulate_grad_batches or done % run.val_check_batch == 0:
            return
        # All ranks must save at the same step.
        if trainer.strategy.reduce_boolean_decision(self._due(), all=False):
            assert isinstance(pl_module, ClassificationTask)
            # The hook of the module runs after those of callbacks, so call its logging first.
            pl_module.log_at_interval()
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch if it was validated, if it is the last one, or if a save is due."""
        run: Any = trainer
        due = (run.current_epoch + 1) % (run.check_val_every_n_epoch or 1) == 0
        due = due or self._due() or run.should_stop
        due = due or run.global_step >= run.estimated_stepping_batches
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer)

    def _due(self) -> bool:
        return self.stop_requested or time.monotonic() - self.saved > SAVE_INTERVAL

    def _save(self, trainer: L.Trainer) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()
        if stop:
            raise Stopped

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save what identifies the run, and correct the trainer's counters."""
        checkpoint["run"] = {
            "format": FORMAT,
            "config": self.config,
            "facts": self.facts,
            "stopping": trainer.should_stop,
        }
        reset_to_batch_boundary(checkpoint["loops"]["fit_loop"], trainer.global_step)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore whether training was about to stop early."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.stopping = checkpoint["run"]["stopping"]


class RandomState(Callback):
    """Saves and restores the state of all random number generators of each rank."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the states of all ranks."""
        states: list[Any] = [random_state(pl_module)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        checkpoint["random"] = states

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load this rank's state."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.loaded = checkpoint["random"][trainer.global_rank]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the state; from here on, only training draws random numbers."""
        if self.loaded is not None:
            set_random_state(pl_module, self.loaded)
            self.loaded = None


def random_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of all random number generators that training uses, as plain data."""
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


@contextmanager
def repeatable(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers each time, and restore all generators at the end."""
    before = random_state(model)
    torch.manual_seed(0)
    # With one seed, layers of the same size would draw the same masks.
    for seed, name in enumerate(before["layers"], 1):
        layer: Any = model.get_submodule(name)
        layer.generator.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(model, before)


def set_random_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore a state that `random_state` returned."""
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
