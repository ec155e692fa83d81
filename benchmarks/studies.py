"""Runs a minute: how to split the cores into runs at a time and threads of each."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row

ROOT = Path(__file__).parent.parent
SHORT = {"vision": 6, "speech": 2, "nlp": 3}
RUNS = 4


def seconds_of(task: str, jobs: int, threads: int) -> float:
    """Time a study of four short runs, less what starting and the report take."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
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
        return time.perf_counter() - begin


def studies() -> list[Row]:
    """All cores for one run, against one core for each of several."""
    cores = os.cpu_count() or 1
    splits = [(1, cores), (cores, 1)]
    rows = []
    for task in SHORT:
        found = {split: seconds_of(task, *split) for split in splits}
        for ours, theirs in itertools.pairwise(reversed(splits)):
            rates = {split: 60 * RUNS / seconds for split, seconds in found.items()}
            ratio = found[ours] / found[theirs]
            rows.append(
                Row(
                    f"{task}: a study of {RUNS} short runs, {ours[0]} at a time, {ours[1]} thread",
                    f"{theirs[0]} at a time, {theirs[1]} threads",
                    *(found[ours], found[theirs], ratio, ratio, ratio, 1.0),
                    f"{rates[ours]:.1f} and {rates[theirs]:.1f} runs a minute, report included; "
                    "measured once",
                )
            )
    return rows
