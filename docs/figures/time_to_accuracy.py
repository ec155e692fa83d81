"""Draw validation accuracy over minutes, of runs and of the script of benchmarks/airbench.py.

    .venv/bin/python docs/figures/time_to_accuracy.py

Each file of results/fast is a curve: a `metrics.json`, or what the script has written.
"""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# The same results make the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

HERE = Path(__file__).parent
FAST = HERE.parent.parent / "results" / "fast"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#999999"]


def curve(file: Path) -> tuple[list[float], list[float], float]:
    """Read minutes, validation accuracy in percent, and test accuracy."""
    content = json.loads(file.read_text())
    if "curve" in content:
        minutes = [seconds / 60 for seconds, _ in content["curve"]]
        accuracies = [100 * accuracy for _, accuracy in content["curve"]]
        return minutes, accuracies, 100 * content["test"]
    minutes = [seconds / 60 for seconds in content["seconds"]["epochs"]]
    accuracies = [100 * epoch["val/acc"] for epoch in content["history"]]
    return minutes, accuracies, 100 * content["test"]["acc"]


def main() -> None:
    """Draw."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    files = sorted(FAST.glob("vision-*.json"))
    for colour, file in zip(COLOURS, files, strict=False):
        minutes, accuracies, test = curve(file)
        label = f"{file.stem.removeprefix('vision-')} (test {test:.2f} %)"
        axes.plot(minutes, accuracies, "o-", color=colour, markersize=3, label=label)
    axes.set_xlabel("minutes on two cores")
    axes.set_ylabel("validation accuracy, %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "time_to_accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
