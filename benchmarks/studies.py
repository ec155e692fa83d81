"""Studies: parallel runs of one thread, and forked runs, against their alternatives."""

import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Row, row, seconds

ROOT = Path(__file__).parent.parent
SHORT = {"vision": 6, "speech": 2, "nlp": 3}
RUNS = 4
# The command line of a study, with runs that are forked, and with each run as a new process.
FORKED = ("-m", "study.run")
NEW = ("-c", "from study import run, warm; warm.MODULES = (); run.main()")


def study(task: str, jobs: int, threads: int, start: tuple[str, ...] = FORKED) -> None:
    """Run a study of four short runs, with its report."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, *start, "--task", task, "--variants", "none both"),
                *("--seeds", "0,1", "--jobs", str(jobs), "--threads", str(threads)),
                f"--trainer.max_epochs={SHORT[task]}",
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
            check=True,
            capture_output=True,
        )


def studies() -> list[Row]:
    """Parallel runs on one core each, against one run at a time on all cores."""
    cores = os.cpu_count() or 1
    rows = []
    for task in SHORT:
        theirs = seconds(lambda task=task: study(task, 1, cores))
        ours = seconds(lambda task=task: study(task, cores, 1))
        ratio = ours / theirs
        rows.append(
            Row(
                f"{task}: a study of {RUNS} short runs, {cores} at a time, 1 thread",
                f"1 at a time, {cores} threads",
                *(ours, theirs, ratio, ratio, ratio, 1.0),
                f"{60 * RUNS / ours:.1f} and {60 * RUNS / theirs:.1f} runs per minute, report "
                "included; measured once",
            )
        )
    return rows


def cpu_seconds(start: tuple[str, ...]) -> float:
    """Run a study of four short runs, and return the CPU time of all its processes."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    study("vision", 2, 1, start)
    return used() - before


def forked() -> list[Row]:
    """Forked runs against runs as new processes, in turns."""
    theirs, ours = zip(*((cpu_seconds(NEW), cpu_seconds(FORKED)) for _ in range(3)), strict=True)
    found = row(
        f"vision: a study of {RUNS} runs of {SHORT['vision']} epochs, forked from one process",
        "each run a new process",
        *(list(ours), list(theirs), 1.0),
    )
    note = f"CPU time with report: {found.ours:.0f} and {found.theirs:.0f} seconds"
    return [replace(found, note=note)]
