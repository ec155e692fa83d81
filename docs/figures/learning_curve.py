"""Draw the accuracy of a run over its epochs.

PYTHONPATH=. python docs/figures/learning_curve.py results/RUN.json docs/figures/RUN.svg
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from study.results import read_result

# For a reproducible file.
matplotlib.rcParams["svg.hashsalt"] = "regain"


def draw(results: dict, picture: Path) -> None:
    """Draw training and validation accuracy as curves, and the test score as a line."""
    epochs = [epoch["epoch"] + 1 for epoch in results["history"]]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, name in (("train_eval/acc", "training"), ("val/acc", "validation")):
        axes.plot(epochs, [100 * epoch[key] for epoch in results["history"]], label=name)
    test = 100 * results["test"]["acc"]
    axes.axhline(test, color="grey", linestyle=":", label=f"test, best epoch: {test:.2f} %")
    axes.set(xlabel="epoch", ylabel="accuracy in %", title=results["name"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(read_result(Path(sys.argv[1])), Path(sys.argv[2]))
