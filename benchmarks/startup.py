"""Time from `make train` to the first step, against the necessary imports alone."""

import os
import subprocess
import sys
import tempfile

from lightning.pytorch.callbacks import Callback

from benchmarks.measure import Row, compare


class FirstStep(Callback):
    """Ends the process just before the first training step."""

    def on_train_batch_start(self, *args: object) -> None:
        """End the process."""
        os._exit(0)


def python(*arguments: str) -> None:
    """Run a Python process."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def startup() -> list[Row]:
    """Processes in turns, with cached data."""
    with tempfile.TemporaryDirectory() as folder:
        first_step = (
            *("-m", "tasks.train", "--task", "vision", "--run_dir", folder),
            "--trainer.callbacks+=benchmarks.startup.FirstStep",
        )
        found = compare(
            "`make train TASK=vision` to the first step",
            "`import torch, lightning` alone",
            lambda: python(*first_step),
            lambda: python("-c", "import torch, lightning"),
            1.3,
            rounds=7,
        )
    return [found]
