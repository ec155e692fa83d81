"""The small studies in results/effects, which docs/published.py and docs/regimes.py read.

`PYTHONPATH=. .venv/bin/python docs/effects.py runs/studies/NAME` keeps the results of a study.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from study.plan import load_study
from study.results import Collection, Result, collect

RESULTS = Path(__file__).parent.parent / "results" / "effects"
# What the pages do not need of a run.
UNUSED = ("confusion", "best_checkpoint", "parameters", "predictions_last")
# A variant's short name, and the value of the axis; empty without an axis.
Place = tuple[str, str]


def keep(folder: Path) -> None:
    """Copy the results of a complete study."""
    collection = collect(load_study(folder))
    if collection.done < collection.study.size:
        sys.exit(f"error: {folder} has {collection.done} of {collection.study.size} runs")
    to = RESULTS / folder.name
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "study.yaml", to)
    write(collection, to, reduced)


def write(
    collection: Collection, to: Path, reduce: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Write the results of each run, reduced to what is needed of them, as in a study's folder."""
    for arm, results in collection.results.items():
        for seed, result in results.items():
            file = to / f"{arm.name}-s{seed}" / "metrics.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(reduce(result.record), separators=(",", ":")) + "\n")


def reduced(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the pages need of a run."""
    made = {key: value for key, value in record.items() if key not in UNUSED}
    seconds = {key: value for key, value in record["seconds"].items() if key != "epochs"}
    history = [{key: epoch[key] for key in ("step", "val/acc")} for epoch in record["history"]]
    return made | {"config": {}, "history": history, "predictions": {}, "seconds": seconds}


def read(name: str) -> Collection:
    """Read a study that was kept."""
    return collect(load_study(RESULTS / name))


def places(collection: Collection) -> dict[Place, dict[int, Result]]:
    """Return the runs of each variant at each value of the axis, by seed."""
    return {
        (arm.title, arm.point[0][1] if arm.point else ""): results
        for arm, results in collection.results.items()
    }


def accuracy(run: Result) -> float:
    """Return the test accuracy in points."""
    return 100 * run.accuracy


def changes(
    runs: dict[Place, dict[int, Result]],
    place: Place,
    against: Place,
    measure: Callable[[Result], float] = accuracy,
) -> dict[int, float]:
    """Return the difference between two places with each seed that both have."""
    return {
        seed: measure(run) - measure(runs[against][seed])
        for seed, run in runs[place].items()
        if seed in runs[against]
    }


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
