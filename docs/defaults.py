"""Choice of the presets' learning rates and training lengths on validation data: docs/defaults.md.

`PYTHONPATH=. python docs/defaults.py vision builtin none,both model.optim.min_steps=1000,4000 0,1
--data.train_fraction=0.4` trains each preset with each value of a key and each seed, and adds the
results to a file in `results/defaults`; runs that it has are not repeated. Without arguments, it
writes the tables of these files into the page; `make docs` does so too. No test split is read.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from blocks import fill, table
from intervals import cell, interval_of

from study.statistics import paired_estimate
from tasks.run.results import VALIDATION
from tasks.train import parse, train

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "results" / "defaults"
LENGTH = "model.optim.min_steps"
KEPT = ("best", "last", "at_chance", "epochs", "examples", "seconds", "versions")


def measure(task: str, data: str, presets: str, axis: str, seeds: str, further: list[str]) -> None:
    """Run a grid of trainings, and save each result at once."""
    key, _, values = axis.partition("=")
    kind = "lr" if key.endswith(".lr") else "length"
    # Runs with other arguments are of another question.
    values_of = "".join(f"-{argument.rpartition('=')[2]}" for argument in further)
    file = RESULTS / f"{kind}-{task}-{Path(data).name}{values_of}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"task": task, "data": data, "key": key, "arguments": further, "rows": []}
    if file.exists():
        made = json.loads(file.read_text())
    grid = [
        (reg, value, seed)
        for seed in seeds.split(",")
        for reg in presets.split(",")
        for value in values.split(",")
    ]
    for reg, value, seed in grid:
        name = {"reg": reg, "value": float(value), "seed": int(seed)}
        if any(name.items() <= row.items() for row in made["rows"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = ["--task", task, "--data", data, "--reg", reg, "--seed", seed]
            run += [f"--{key}={value}", *further, "--no_test", f"--run_dir={folder}/run"]
            with contextlib.redirect_stdout(io.StringIO()):
                train(*parse([*run, "--trainer.logger=false", "--trainer.accelerator=cpu"]))
            record = json.loads(Path(folder, "run", VALIDATION).read_text())
        found = {one: record[one] for one in KEPT} | {"threads": torch.get_num_threads()}
        found["seconds"] = round(record["seconds"]["all"], 1)
        made["rows"].append(name | found)
        partial = file.with_suffix(".partial")
        rows = ",\n".join(json.dumps(row) for row in made["rows"])
        head = json.dumps({one: part for one, part in made.items() if one != "rows"})
        partial.write_text(f'{head[:-1]}, "rows": [\n{rows}\n]}}\n')
        partial.replace(file)
        print(name, f"{100 * record['best']['val/acc']:.1f} %", found["seconds"], flush=True)


def accuracies(made: dict[str, Any], reg: str, value: float) -> dict[int, float]:
    """Return the validation accuracy of the best epoch in %, by seed."""
    return {
        row["seed"]: 100 * row["best"]["val/acc"]
        for row in made["rows"]
        if (row["reg"], row["value"]) == (reg, value)
    }


def floor_of(task: str) -> int:
    """Return the smallest number of optimizer steps of a task."""
    config = yaml.safe_load((RESULTS.parents[1] / "configs" / f"{task}.yaml").read_text())
    return int(config["model"]["optim"]["min_steps"])


def accuracy_table(made: dict[str, Any]) -> list[str]:
    """Return the mean validation accuracy of the best epoch, in %, for each preset and value.

    A table of lengths also has the difference between four times the floor and the floor.
    """
    rows = made["rows"]
    floor = floor_of(made["task"]) if made["key"] == LENGTH else None
    values = sorted({row["value"] for row in rows})
    heads = [f"{made['task']}, {Path(made['data']).name}", *(f"{value:g}" for value in values)]
    if floor is not None:
        heads.append(f"{4 * floor} minus {floor}")
    lines = []
    for reg in dict.fromkeys(row["reg"] for row in rows):
        found = [list(accuracies(made, reg, value).values()) for value in values]
        cells = [f"{statistics.fmean(one):.1f} ({len(one)})" if one else "" for one in found]
        if floor is not None:
            cells.append(gain_of_length(made, reg, floor))
        lines.append([f"`{reg}`", *cells])
    return table(heads, lines)


def gain_of_length(made: dict[str, Any], reg: str, floor: int) -> str:
    """Return what four times the floor gains over the floor, with the 95 % interval."""
    short, long = (accuracies(made, reg, float(steps)) for steps in (floor, 4 * floor))
    differences = [long[seed] - short[seed] for seed in short if seed in long]
    if not differences:
        return ""
    gain = paired_estimate(differences)
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.1f}"
    return cell(interval_of(gain))


def main() -> None:
    """Measure, or write the tables."""
    if sys.argv[1:]:
        measure(*sys.argv[1:6], sys.argv[6:])
        return
    made = {
        file.stem: accuracy_table(json.loads(file.read_text())) for file in RESULTS.glob("*.json")
    }
    fill(DOCS / "defaults.md", made)


if __name__ == "__main__":
    main()
