"""How the runs of a study are carried out: as processes here, on a Ray cluster or by Slurm."""

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
from typing import Any, Protocol

from tasks.cores import usable_cores
from tasks.errors import InputError

LOCK, LOG, RESULTS, ERROR = "lock", "log.txt", "metrics.json", "error.txt"
# Lines of a failed run's log that are kept as its error.
TAIL = 20
# Seconds that a run has to end by itself when the study is interrupted.
PATIENCE = 10.0
# So often a run goes on whose process was ended from outside: by a user, or for want of memory.
ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One run: a command that leaves `metrics.json` in its folder.

    Args:
        name: Of the run, unique in its study.
        folder: The run's own.
        command: Arguments for the Python interpreter.
        threads: Number of CPU threads it computes with.
        gpus: Number of GPUs it computes on.
    """

    name: str
    folder: Path
    command: list[str]
    threads: int = 1
    gpus: int = 0

    @property
    def done(self) -> bool:
        """Whether the run is complete: its results are written last, whole or not at all."""
        return (self.folder / RESULTS).exists()


@dataclass
class Processes:
    """The processes that are running, so that an interruption can end them."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    closed: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes] | None:
        """Start a process in a group of its own, unless all are being ended."""
        with self.guard:
            if self.closed:
                return None
            process = subprocess.Popen(command, start_new_session=True, **options)
            self.running.add(process)
            return process

    def end(self) -> None:
        """Ask all processes and what they started to end, make them if they do not."""
        with self.guard:
            self.closed = True
        for process in list(self.running):
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                    break


def start_job(job: Job, gpu: str | None, processes: Processes, *inherited: int) -> int:
    """Run the command of a job to its end, with its output in `log.txt`; return its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (job.folder / LOG).open("ab") as log:
        process = processes.start(
            [sys.executable, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=inherited,
        )
        if process is None:
            return -signal.SIGTERM
        code = process.wait()
    processes.running.discard(process)
    return code


def execute(job: Job, gpu: str | None = None, processes: Processes | None = None) -> bool:
    """Carry out a run in a process of its own, unless it is done; return whether it is now.

    Its folder is locked for as long as the process lives, even if the study that started it does
    not: a study that is started again waits for such a run instead of running it twice. A run that
    was interrupted, now or in an earlier study, goes on. Of a failed one `error.txt` holds the end
    of its log; it begins anew, in an empty folder.
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
            # The process holds the lock too, and so do its own ones for further devices.
            code = start_job(job, gpu, processes, lock.fileno())
            if processes.closed or not ended_from_outside(code):
                break
        if code != 0 and not processes.closed:
            lines = (job.folder / LOG).read_text(errors="replace").splitlines()
            text = "\n".join([f"exit code {code}", *lines[-TAIL:]])
            (job.folder / ERROR).write_text(text + "\n")
        return code == 0 and job.done


def ended_from_outside(code: int) -> bool:
    """Whether a process with this exit code was told to end, and would have gone on otherwise."""
    return code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)


def end_on_sigterm() -> None:
    """Let a scheduler end a study as a user does: its runs end with it."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)


class Launcher(Protocol):
    """Carries out runs, several at a time."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, well or not."""


def gpus_here() -> list[str]:
    """List the GPUs of this machine that may be used, by the names CUDA_VISIBLE_DEVICES takes."""
    # Seconds to import, and nothing else here needs it.
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(place) for place in range(count)]


def jobs_at_a_time(asked: str, threads: int) -> int:
    """Say how many runs go in parallel: one a GPU, or else as many as there are cores for.

    Args:
        asked: `auto`, or a number.
        threads: Number of threads of each run.

    Raises:
        InputError: `asked` is neither.
    """
    if asked == "auto":
        return len(gpus_here()) or max(1, usable_cores() // threads)
    if not asked.isdecimal() or int(asked) < 1:
        raise InputError(f"JOBS={asked} is neither auto nor a whole number of at least 1")
    return int(asked)


class Local:
    """Runs as processes of this machine; each takes the next free GPU if there are any.

    Args:
        at_a_time: Number of runs in parallel.
    """

    def __init__(self, at_a_time: int) -> None:
        self.at_a_time = at_a_time

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, well or not; on an interruption, end all others."""
        waiting = iter(jobs)
        for job, _ in in_turns(self.at_a_time, lambda: next(waiting, None), execute):
            yield job


def in_turns(
    at_a_time: int,
    next_job: Callable[[], Job | None],
    work: Callable[[Job, str | None, Processes], bool],
) -> Iterator[tuple[Job, bool]]:
    """Do the jobs, `at_a_time` of them in parallel, each on the next free GPU if there are any.

    A job is asked for whenever there is room for one; it is over when there is none and none is
    running. On an interruption all processes are ended.
    """
    processes = Processes()
    gpus: queue.Queue[str] = queue.Queue()
    devices = gpus_here() or [""]
    for place in range(at_a_time):
        gpus.put(devices[place % len(devices)])

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
