"""Draw the variance shift between training and test that dropout before a batch norm causes.

python docs/figures/variance_shift.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from regain import Dropout, batch_norm, variance_shift

# For a reproducible file: fixed ids, and one thread, which fixes the order of sums.
matplotlib.rcParams["svg.hashsalt"] = "regain"
torch.set_num_threads(1)

UNITS, EXAMPLES, BATCHES = 32, 1000, 10
RATES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
COLOURS = ["#2f6f9f", "#3a9a6b", "#d9822b", "#c0453b"]


def formula(p: Tensor, c: float, v: float) -> Tensor:
    """Return test variance divided by training variance, for units of mean c and variance v."""
    return v / ((c**2 + v) / (1 - p) - c**2)


def measured(p: float, c: float, v: float, relu: bool) -> float:
    """Return the same ratio, measured at a batch norm after dropout."""
    # momentum=None: the plain average over all batches.
    norm = batch_norm(UNITS, dims=0, momentum=None)
    model = nn.Sequential(Dropout(p), norm).train()
    batches = c + v**0.5 * torch.randn(BATCHES, EXAMPLES, UNITS)
    if relu:
        batches = torch.randn(BATCHES, EXAMPLES, UNITS).relu()
    for batch in batches:
        model(batch)
    return variance_shift(model, batches)["1"]


def draw(picture: Path) -> None:
    """Draw the formula as lines and the measurements as points."""
    torch.manual_seed(0)
    half = torch.distributions.HalfNormal(1.0)
    # A standard normal through ReLU: half of a half-normal, and zero otherwise.
    c = float(half.mean) / 2
    cases = [
        ("mean 0, variance 1", 0.0, 1.0, False),
        ("ReLU of a standard normal", c, 0.5 - c**2, True),
        ("mean 1, variance 1", 1.0, 1.0, False),
        ("mean 2, variance 1", 2.0, 1.0, False),
    ]
    rates = torch.linspace(0.0, 0.7, 141)
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    for (name, mean, variance, relu), colour in zip(cases, COLOURS, strict=True):
        axes.plot(rates, formula(rates, mean, variance), color=colour, label=name)
        points = [measured(p, mean, variance, relu) for p in RATES]
        axes.plot(RATES, points, "o", color=colour, markersize=5)
    axes.plot([], [], "o", color="grey", markersize=5, label="measured: Dropout, then batch norm")
    axes.set(
        xlabel="dropout rate p before the batch norm",
        ylabel="variance: test / training",
        title="Test variance relative to batch norm's stored variance",
        ylim=(0.0, 1.05),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
