"""Interrupted runs: a training process that receives a signal at a given moment.

Processes are forked from one that has imported all packages, so that they start fast.
"""

import functools
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from tasks import train
from tasks.run import checkpoints

FORKS = multiprocessing.get_context("forkserver")
# Modules that are imported beforehand must be found without pytest's search path.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)
FORKS.set_forkserver_preload(["interrupt", "tasks.vision", "tasks.speech", "tasks.nlp"])
SECONDS = 240


@dataclass(frozen=True)
class Moment:
    """The moment of a signal: a Lightning hook, after a number of steps.

    Args:
        hook: Name of the hook.
        step: Number of optimizer steps.
        sign: The signal.
    """

    hook: str
    step: int
    sign: int = signal.SIGKILL


class Sender(Callback):
    """Sends a signal to its own process, once.

    Args:
        moment: When.
    """

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.sent = False
        setattr(self, moment.hook, self.send)

    def send(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Send the signal, if the moment has come."""
        if trainer.global_step >= self.moment.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.moment.sign)


def _run(arguments: list[str], moment: Moment | None, long: float) -> None:
    with Path("log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    checkpoints.SAVE_INTERVAL = long
    if moment is not None:
        train.train = functools.partial(train.train, further=[Sender(moment)])
    train.main(arguments)


def in_process(arguments: list[str], moment: Moment | None = None, long: float = 600.0) -> int:
    """Run the command line in a new process and return its exit code.

    Args:
        arguments: Of the command line.
        moment: When the process gets a signal.
        long: Seconds of an epoch after which it is saved before its end.
    """
    process = FORKS.Process(target=_run, args=(arguments, moment, long))
    process.start()
    process.join(SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        raise TimeoutError(" ".join(arguments))
    return code
