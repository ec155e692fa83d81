"""From `make train` to the first step, against the imports that nobody can do without."""

import os
import subprocess
import sys
import tempfile
import time

from lightning.pytorch.callbacks import Callback

from benchmarks.measure import Row, row

ROUNDS = 7


class FirstStep(Callback):
    """Ends the process where the first training step would begin."""

    def on_train_batch_start(self, *args: object) -> None:
        """End it at once."""
        os._exit(0)


def seconds_of(*arguments: str) -> float:
    """Time a process of Python from its start to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begin


def startup() -> list[Row]:
    """Processes in turns, with data that is cached already."""
    with tempfile.TemporaryDirectory() as folder:

        def first_step() -> float:
            return seconds_of(
                *("-m", "tasks.train", "--task", "vision", "--run_dir", folder),
                "--trainer.callbacks+=benchmarks.startup.FirstStep",
            )

        def imports() -> float:
            return seconds_of("-c", "import torch, lightning")

        first_step(), imports()
        pairs = [(first_step(), imports()) for _ in range(ROUNDS)]
    ours, theirs = (list(column) for column in zip(*pairs, strict=True))
    what = "`make train TASK=vision` to the first step"
    return [row(what, "`import torch, lightning` alone", ours, theirs, 1.3)]
