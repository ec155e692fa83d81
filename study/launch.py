"""Start the runs of a study as processes on this machine, and the interface of launchers."""

import contextlib
import fcntl
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from study.warm import TEMPLATES, ForkedRun
from tasks.errors import InputError
from tasks.run.cores import usable_cores

LOCK, LOG, RESULTS, ERROR = "lock", "log.txt", "metrics.json", "error.txt"
# Number of last lines of a failed run's log that become its `error.txt`.
ERROR_LINES = 20
# Time for a run to end after SIGTERM, before SIGKILL.
SECONDS_TO_END = 10.0
# How often a run is started in all if its process is killed, by a user or for lack of memory.
ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One run: a command that writes its results into its folder.

    Args:
        name: Name of the run, unique in its study.
        folder: Folder of the run.
        command: Arguments of the Python interpreter.
        threads: Number of CPU threads.
        gpus: Number of GPUs.
        results: Name of the file with its results, which is written last and atomically.
    """

    name: str
    folder: Path
    command: list[str]
    threads: int = 1
    gpus: int = 0
    results: str = RESULTS

    @property
    def done(self) -> bool:
        """Whether the run is complete: it has its results."""
        return (self.folder / self.results).exists()


@dataclass
class Processes:
    """The running processes, to end them on an interruption.

    Args:
        warm: Whether runs are forked from a process that has imported everything, if possible.
    """

    warm: bool = False
    running: set[subprocess.Popen[bytes] | ForkedRun] = field(default_factory=set)
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(
        self, command: list[str], environment: dict[str, str], log: int, *inherited: int
    ) -> subprocess.Popen[bytes] | ForkedRun | None:
        """Start a process in its own process group; None after `end`.

        Args:
            command: Arguments of the Python interpreter.
            environment: Environment of the process.
            log: File descriptor of its output.
            inherited: Further file descriptors that it holds until its end.
        """
        forked = None
        if self.warm:
            forked = TEMPLATES.fork(command, environment, lambda: self.closed, log, *inherited)
        with self.lock:
            if self.closed:
                if forked is not None:
                    os.killpg(forked.pid, signal.SIGKILL)
                return None
            process = forked or subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=inherited,
                start_new_session=True,
            )
            self.running.add(process)
            return process

    def end(self) -> None:
        """Send SIGTERM to all process groups, and SIGKILL to those that do not end in time."""
        with self.lock:
            self.closed = True
        for process in list(self.running):
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_END)
                    break


def start_job(job: Job, gpu: str | None, processes: Processes, *inherited: int) -> int:
    """Run the command of a job with its output in `log.txt`; return the exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (job.folder / LOG).open("ab") as log:
        process = processes.start(job.command, environment, log.fileno(), *inherited)
        if process is None:
            return -signal.SIGTERM
        code = process.wait()
    processes.running.discard(process)
    return code


def execute(job: Job, gpu: str | None = None, processes: Processes | None = None) -> bool:
    """Run a job in its own process unless it is complete; return whether it is complete now.

    The process holds a lock on its folder, even after the study that started it has ended: a
    restarted study waits for the run instead of running it twice. Interrupted runs are resumed. A
    failed run gets an `error.txt` with the end of its log and restarts in an empty folder.
    """
    processes = processes or Processes()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if job.done:
            return True
        if (job.folder / ERROR).exists():
            for old in job.folder.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
        for _ in range(ATTEMPTS):
            # The process inherits the lock, and so do its child processes for further devices.
            code = start_job(job, gpu, processes, lock.fileno())
            if processes.closed or not was_terminated(code):
                break
        if code != 0 and not processes.closed:
            lines = (job.folder / LOG).read_text(errors="replace").splitlines()
            text = "\n".join([f"exit code {code}", *lines[-ERROR_LINES:]])
            (job.folder / ERROR).write_text(text + "\n")
        return code == 0 and job.done


def was_terminated(code: int) -> bool:
    """Whether the exit code says that the process was killed or terminated by a signal."""
    return code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)


class Launcher(Protocol):
    """Starts runs, several in parallel."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, successfully or not."""


def gpus_here() -> list[str]:
    """List the visible GPUs of this machine, named as in CUDA_VISIBLE_DEVICES."""
    # Imported here because it takes seconds.
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def jobs_at_a_time(asked: str, threads: int) -> int:
    """Return the number of parallel runs: one per GPU, or else as many as the cores allow.

    Args:
        asked: `auto`, or a number.
        threads: Number of threads per run.

    Raises:
        InputError: `asked` is something else.
    """
    if asked == "auto":
        return len(gpus_here()) or max(1, usable_cores() // threads)
    if not asked.isdecimal() or int(asked) < 1:
        raise InputError(f"JOBS={asked} must be auto or a whole number of at least 1")
    return int(asked)


class Local:
    """Starts runs as processes on this machine, each on the next free GPU if there are GPUs.

    Args:
        at_a_time: Number of parallel runs.
    """

    def __init__(self, at_a_time: int) -> None:
        self.at_a_time = at_a_time

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, successfully or not; if interrupted, end the others."""
        waiting = iter(jobs)
        for job, _ in run_jobs(self.at_a_time, lambda: next(waiting, None), execute):
            yield job


def run_jobs(
    at_a_time: int,
    next_job: Callable[[], Job | None],
    work: Callable[[Job, str | None, Processes], bool],
) -> Iterator[tuple[Job, bool]]:
    """Run jobs, `at_a_time` in parallel, each on the next free GPU if there are GPUs.

    `next_job` is called when a job can start; the loop ends when it returns None and nothing is
    running. On an interruption all processes are ended.
    """
    processes = Processes(warm=True)
    gpus: queue.Queue[str] = queue.Queue()
    devices = gpus_here() or [""]
    for index in range(at_a_time):
        gpus.put(devices[index % len(devices)])

    def one(job: Job) -> bool:
        gpu = gpus.get()
        try:
            return work(job, gpu or None, processes)
        finally:
            gpus.put(gpu)

    with ThreadPoolExecutor(at_a_time) as pool:
        running: dict[Future[bool], Job] = {}
        try:
            while True:
                while len(running) < at_a_time and (job := next_job()) is not None:
                    running[pool.submit(one, job)] = job
                if not running:
                    return
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield running.pop(future), future.result()
        finally:
            processes.end()
