"""Runs a minute: how to split the cores into runs at a time and threads of each."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, seconds

ROOT = Path(__file__).parent.parent
SHORT = {"vision": 6, "speech": 2, "nlp": 3}
RUNS = 4


def study(task: str, jobs: int, threads: int) -> None:
    """Do a study of four short runs, with its report."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "study.run", "--task", task, "--variants", "none both"),
                *("--seeds", "0,1", "--jobs", str(jobs), "--threads", str(threads)),
                f"--trainer.max_epochs={SHORT[task]}",
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
            check=True,
            capture_output=True,
        )


def studies() -> list[Row]:
    """One core for each of several runs, against all cores for one."""
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
                f"{60 * RUNS / ours:.1f} and {60 * RUNS / theirs:.1f} runs a minute, report "
                "included; measured once",
            )
        )
    return rows
