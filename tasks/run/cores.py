"""Number of CPU cores for a run, and a monitor of the time that it waits for them."""

import logging
import os
from pathlib import Path

import joblib
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from tasks.run.rows import log_row

log = logging.getLogger(__name__)

# Linux counts here, for each thread, the nanoseconds of running and of waiting for a core.
THREADS = Path("/proc/self/task")
# Fraction of the time spent waiting for a core above which the run logs a warning. On two idle
# cores, `make train TASK=vision` with two threads waits at most 0.03 of an epoch.
BUSY = 0.1


def usable_cores() -> int:
    """Return the number of cores that this process may use, by CPU affinity and cgroup limit."""
    cores: int = joblib.cpu_count()
    return cores


def limit_threads() -> None:
    """Limit the number of threads to the number of usable cores.

    OpenMP respects the CPU affinity of the process, but not the CPU limit of a container, where it
    would start too many threads. `OMP_NUM_THREADS` overrides the limit.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def thread_times() -> dict[str, tuple[int, int]]:
    """Return the nanoseconds of running and of waiting for a core, by thread.

    The result is empty if the system does not count them.
    """
    times = {}
    for thread in THREADS.glob("*"):
        try:
            ran, waited, _ = (thread / "schedstat").read_text().split()
        except OSError:
            continue  # The thread has ended, or the system has no counters.
        times[thread.name] = int(ran), int(waited)
    return times


class CoreMonitor(Callback):
    """Logs the fraction of the time that the run waited for a core, `speed/core_wait`.

    If other programs use the cores, it logs one warning: step times are then not reliable, and
    fewer threads are often faster.
    """

    def __init__(self) -> None:
        self.warned = False
        self.before: dict[str, tuple[int, int]] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the counters at the start."""
        self.before = thread_times()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the fraction of the epoch, and warn if it is high."""
        now = thread_times()
        known = now.keys() & self.before.keys()
        ran, waited = (sum(now[t][i] - self.before[t][i] for t in known) for i in (0, 1))
        if not ran:
            return
        fraction = waited / (ran + waited)
        log_row(trainer, {"speed/core_wait": fraction})
        if fraction > BUSY and not self.warned:
            self.warned = True
            threads = torch.get_num_threads()
            log.warning(
                f"the CPU is busy with other programs: the run waited for one of {usable_cores()} "
                f"cores during {100 * fraction:.0f} % of the epoch; its step times are not reliable"
                + (f"; try OMP_NUM_THREADS=1 instead of {threads}" if threads > 1 else "")
            )
