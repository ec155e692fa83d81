"""How many CPU cores a run may use, and whether it gets them."""

import logging
import os
from pathlib import Path
from typing import Any

import joblib
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)

# Linux writes here, for each thread, the nanoseconds that it ran and that it waited for a core.
THREADS = Path("/proc/self/task")
# Fraction of its time that a run may wait for a core before the log names it. Alone on two cores,
# `make train TASK=vision` with two threads waits at most 0.03 of an epoch.
BUSY = 0.1


def usable_cores() -> int:
    """Return the number of cores that this process may use: by affinity, cgroup and machine."""
    cores: int = joblib.cpu_count()
    return cores


def limit_threads() -> None:
    """Compute with at most as many threads as there are usable cores.

    OpenMP respects the affinity of the process, but not the CPU limit of a container: there, all
    threads would share less time than they have cores. `OMP_NUM_THREADS` overrides it.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def thread_times() -> dict[str, tuple[int, int]]:
    """Return the nanoseconds that each thread ran and that it waited for a core.

    Empty where the system does not count them.
    """
    times = {}
    for thread in THREADS.glob("*"):
        try:
            ran, waited, _ = (thread / "schedstat").read_text().split()
        except OSError:
            continue  # The thread has ended, or the system does not count.
        times[thread.name] = int(ran), int(waited)
    return times


class CoreMonitor(Callback):
    """Logs the fraction of its time that the run waited for a core, `speed/core_wait`.

    If other programs use the cores, it warns once: step times then say little, and fewer threads
    lose less time.
    """

    def __init__(self) -> None:
        self.warned = False
        self.before: dict[str, tuple[int, int]] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the counters."""
        self.before = thread_times()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the counters at the start of the epoch."""
        now = thread_times()
        known = now.keys() & self.before.keys()
        ran, waited = (sum(now[t][i] - self.before[t][i] for t in known) for i in (0, 1))
        if not ran:
            return
        fraction = waited / (ran + waited)
        logger: Any = trainer.logger
        if logger is not None:
            logger.log_metrics({"speed/core_wait": fraction}, step=trainer.global_step)
        if fraction > BUSY and not self.warned:
            self.warned = True
            threads = torch.get_num_threads()
            log.warning(
                f"this machine is busy: the run waited {100 * fraction:.0f} % of an epoch for "
                f"one of {usable_cores()} cores, so that its step times say little"
                + (f"; it has {threads} threads, try OMP_NUM_THREADS=1" if threads > 1 else "")
            )
