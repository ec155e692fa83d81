"""Draw validation accuracy over time, for runs on one data set.

python docs/figures/time_to_accuracy.py PICTURE.svg RUN.json [RUN.json ...]

RUN is a results file of `make train` or of `benchmarks/airbench.py`. Each recipe has a colour; the
mark at the end of a curve is the test accuracy, with all views.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# For a reproducible file.
matplotlib.rcParams["svg.hashsalt"] = "regain"


def read(path: Path) -> tuple[str, list[float], list[float], float, float]:
    """Return a run's recipe, its curve in minutes and %, its duration, and its test score."""
    run = json.loads(path.read_text())
    if "curve" in run:
        seconds, accuracies = zip(*run["curve"], strict=True)
        recipe, end, test = "airbench94", run["seconds"], run["test"]
    else:
        seconds = run["seconds"]["epochs"]
        accuracies = [row["val/acc"] for row in run["history"]]
        recipe, end, test = "ours", run["seconds"]["all"], run["test"]["acc"]
    minutes = [second / 60 for second in seconds]
    return recipe, minutes, [100 * value for value in accuracies], end / 60, 100 * test


def draw(picture: Path, runs: list[Path]) -> None:
    """Draw the curves, from 75 % up, where the recipes differ."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for path in runs:
        recipe, minutes, accuracies, end, test = read(path)
        colour = colours.get(recipe, f"C{len(colours)}")
        axes.plot(minutes, accuracies, color=colour, label=None if recipe in colours else recipe)
        axes.plot([end], [test], "o", color=colour)
        colours[recipe] = colour
    axes.plot([], [], "o", color="grey", label="test, six views")
    axes.set(xlabel="minutes since the start", ylabel="accuracy in %", ylim=(75, None))
    axes.margins(y=0.12)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
