"""Runs without the time of imports: they are forked from a process that has imported everything.

The imports of a run (torch, Lightning, torchvision, wandb) take about 9 seconds of a core. A
template process imports them once and then forks each run. A run is an independent process as if
Python had started it: it has a session of its own, ends as any interpreter, and goes on if the
template or the study is killed. The template holds no threads and no open CUDA context, which a
fork would break.

Study and template talk through sockets. The study sends one message per run over the socket of the
template, with the file descriptors of the run: one end of a new socket, its log, and those to
inherit. Over this new socket the study sends what to run, the run sends its process id, and the
template sends the exit code.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the template can run, and all that is imported before or during a run.
MODULES = ("tasks.train", "study.sweep_trial")
IMPORTS = (
    *("study.sweep_trial", "tasks.run.artifacts", "tasks.run.loggers"),
    *("tasks.vision", "tasks.speech", "tasks.nlp"),
    # Of wandb, for its tables.
    "pandas",
)
GPUS = "CUDA_VISIBLE_DEVICES"
ARROW_ALLOCATOR = "JE_ARROW_MALLOC_CONF"
# Milliseconds between looks at whether a run that waits for the imports is still wanted.
POLL = 100
MOST_DESCRIPTORS = 16


def can_fork(command: list[str]) -> bool:
    """Whether a command of the Python interpreter can be forked from a template.

    On other systems than Linux, libraries may hold threads after their import.
    """
    return sys.platform == "linux" and command[:1] == ["-m"] and command[1] in MODULES


@dataclass(eq=False)
class ForkedRun:
    """A run forked from a template; it has the methods of `subprocess.Popen` that are needed.

    Args:
        pid: Id of the process and of its group.
        watch: Descriptor that is readable when the process has ended, and its number is not reused.
        status: Socket from which the exit code comes.
    """

    pid: int
    watch: int
    status: socket.socket
    code: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Not earlier: several threads may wait.
        weakref.finalize(self, os.close, self.watch)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; that of a killed run if the template was killed before the run.

        Raises:
            subprocess.TimeoutExpired: The run has not ended within `timeout` seconds.
        """
        ended = select.poll()
        ended.register(self.watch, select.POLLIN)
        if not ended.poll(None if timeout is None else 1000 * timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        with self.lock:
            if self.code is None:
                told = self.status.recv(64)
                self.code = int(told) if told else -signal.SIGKILL
                self.status.close()
            return self.code


class Template:
    """A process that has imported everything, and forks runs.

    Args:
        environment: Environment of the process and of its runs.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        # A packet is sent as a whole or not at all, also by several threads.
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = theirs.fileno(), IMPORTS
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from study.warm import main; main(*{arguments})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.has_forked = False

    def fork(self, run: dict[str, Any], cancelled: Callable[[], bool], *fds: int) -> ForkedRun:
        """Fork a run.

        Args:
            run: Its module, arguments, working directory and GPUs.
            cancelled: Whether the run is no longer wanted.
            fds: Descriptor of its log, and those that it inherits.

        Raises:
            OSError: The template has ended or cannot fork, or the run was cancelled.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.requests, [b"r"], [theirs.fileno(), *fds])
            ours.sendall(json.dumps(run).encode())
            ours.shutdown(socket.SHUT_WR)
            told = select.poll()
            told.register(ours, select.POLLIN)
            while not told.poll(POLL):
                if cancelled():
                    raise InterruptedError
            pid, watch, *_ = socket.recv_fds(ours, 64, 1)
            if not watch:
                raise ConnectionError("the template could not fork")
        except OSError:
            # A run that is not forked yet ends when it finds the socket closed.
            ours.close()
            raise
        self.has_forked = True
        return ForkedRun(int(pid), watch[0], ours)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def retire(self) -> None:
        """Let the process end after the last of its runs."""
        self.requests.close()

    def kill(self) -> None:
        """End the process now; its runs continue."""
        self.process.kill()
        self.process.wait()


@dataclass
class Templates:
    """The template of the current environment, replaced if that changes."""

    environment: dict[str, str] | None = None
    template: Template | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fork(
        self,
        command: list[str],
        environment: dict[str, str],
        cancelled: Callable[[], bool],
        *fds: int,
    ) -> ForkedRun | None:
        """Fork a run; None if this is not possible.

        Args:
            command: Arguments of the Python interpreter.
            environment: Environment of the run.
            cancelled: Whether the run is no longer wanted.
            fds: Descriptor of its log, and those that it inherits.
        """
        if not can_fork(command):
            return None
        shared = {name: value for name, value in environment.items() if name != GPUS}
        with contextlib.suppress(OSError):
            template = self.get(shared)
            if template is not None:
                run: dict[str, Any] = {"module": command[1], "arguments": command[2:]}
                run |= {"folder": str(Path.cwd()), "gpus": environment.get(GPUS)}
                return template.fork(run, cancelled, *fds)
        return None

    def get(self, environment: dict[str, str]) -> Template | None:
        """Return the template of an environment, started if needed; None if it cannot start."""
        with self.lock:
            if environment != self.environment:
                if self.template is not None:
                    self.template.retire()
                self.environment, self.template = environment, Template(environment)
            elif self.template is not None and self.template.ended:
                # One that never forked would fail again.
                again = self.template.has_forked
                self.template.retire()
                self.template = Template(environment) if again else None
            return self.template

    def close(self) -> None:
        """End the template; its runs continue."""
        with self.lock:
            if self.template is not None:
                self.template.kill()
            self.environment = self.template = None


TEMPLATES = Templates()
atexit.register(TEMPLATES.close)


def main(descriptor: int, imports: Sequence[str]) -> None:
    """Serve as template; return only in a run, when it has ended.

    Args:
        descriptor: Of the socket of this template.
        imports: Modules that it imports.
    """
    # pandas imports pyarrow, whose allocator would start a thread.
    os.environ[ARROW_ALLOCATOR] = "background_thread:false"
    for name in imports:
        importlib.import_module(name)
    del os.environ[ARROW_ALLOCATOR]
    gc.collect()
    # Garbage collection would write to all objects, and so copy the memory that is shared.
    gc.freeze()
    status, log, *_ = serve(socket.socket(fileno=descriptor))
    # From here on this process is a run.
    os.setsid()
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)
    with socket.socket(fileno=status) as study:
        with study.makefile() as told:
            run = json.load(told)
        watch = os.pidfd_open(os.getpid())
        # Fails, and ends the run, if the study no longer wants it.
        socket.send_fds(study, [str(os.getpid()).encode()], [watch])
        os.close(watch)
    if run["gpus"] is not None:
        os.environ[GPUS] = run["gpus"]
    # As `python -m` would.
    os.chdir(run["folder"])
    if sys.path[0] == "":
        sys.path[0] = run["folder"]
    sys.argv = [run["module"], *run["arguments"]]
    sys.modules.pop(run["module"], None)
    runpy.run_module(run["module"], run_name="__main__", alter_sys=True)


def serve(requests: socket.socket) -> list[int]:
    """Fork runs until the study ends; return in each run, with its file descriptors."""
    running: dict[int, tuple[int, socket.socket]] = {}
    ready = select.poll()
    ready.register(requests, select.POLLIN)
    wanted = True
    while wanted or running:
        for descriptor, _ in ready.poll():
            if descriptor in running:
                ready.unregister(descriptor)
                pid, status = running.pop(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with status, contextlib.suppress(OSError):
                    status.send(str(code).encode())
                os.close(descriptor)
                continue
            message, fds, *_ = socket.recv_fds(requests, 1, MOST_DESCRIPTORS)
            if not message:
                ready.unregister(requests)
                wanted = False
                continue
            pid = os.fork()
            if pid == 0:
                requests.close()
                for other, (_, status) in running.items():
                    os.close(other)
                    status.close()
                return fds
            watch = os.pidfd_open(pid)
            running[watch] = (pid, socket.socket(fileno=fds[0]))
            ready.register(watch, select.POLLIN)
            for given in fds[1:]:
                os.close(given)
    os._exit(0)
