"""Write docs/regimes.md and its figures from results/effects; `make docs` runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from blocks import table
from effects import RESULTS, accuracy, changes, places, read
from intervals import cell, interval_of
from matplotlib.figure import Figure

from study.page import provenance
from study.results import Collection, Result
from study.statistics import Estimate, paired_estimate

# Fixed ids: the same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

DOCS = Path(__file__).parent


@dataclass(frozen=True)
class Regime:
    """What is varied.

    Args:
        name: The part of the study's name after that of the data.
        label: What the axis is.
        log: Whether its scale is logarithmic.
        percent: Whether its values are fractions, shown in percent.
    """

    name: str
    label: str
    log: bool = True
    percent: bool = False

    def value(self, text: str) -> str:
        """Return a value as it is shown."""
        return f"{100 * float(text):g} %" if self.percent else text


REGIMES = [
    Regime("size", "training examples", percent=True),
    Regime("noise", "training labels that are wrong", log=False, percent=True),
    Regime("length", "optimizer steps"),
    Regime("width", "units of a layer"),
    Regime("rate", "learning rate"),
    Regime("batch", "batch size"),
]
DATA = {"digits": "the builtin digits, a perceptron of three hidden layers of 500 units"}
# Variants, with the name and the colour of each.
NONE = "none"
# Marks of the axis of gains.
GRID = [-50, -20, -10, -4, -2, 0, 2, 4, 10, 20, 50]
VARIANTS = {"half": ("dropout", "#0072b2"), "batchnorm": ("batch norm", "#d55e00")}


def last_accuracy(run: Result) -> float:
    """Return the test accuracy of the last epoch in points."""
    found = run.last_accuracy
    assert found is not None
    return 100 * found


def gain(
    collection: Collection, value: str, variant: str, measure: Callable[[Result], float]
) -> Estimate:
    """Estimate what a variant gains at a value of the axis, in points."""
    found = changes(places(collection), (variant, value), (NONE, value), measure)
    return paired_estimate(list(found.values()))


def values_of(collection: Collection) -> list[str]:
    """Return the values of the axis."""
    [values] = collection.study.axes.values()
    return values


def draw(data: str, found: list[tuple[Regime, Collection]]) -> None:
    """Draw the gains over each axis: of the chosen epoch with intervals, and of the last one."""
    columns = 2
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * lines), layout="constrained")
    for index, (regime, collection) in enumerate(found):
        axes = figure.add_subplot(lines, columns, index + 1)
        values = values_of(collection)
        ticks = [float(value) for value in values]
        for variant, (label, colour) in VARIANTS.items():
            best = [gain(collection, value, variant, accuracy) for value in values]
            last = [gain(collection, value, variant, last_accuracy).mean for value in values]
            axes.plot(ticks, [one.mean for one in best], "o-", color=colour, label=label, ms=4)
            ends = [one.low for one in best], [one.high for one in best]
            axes.fill_between(ticks, *ends, color=colour, alpha=0.15, linewidth=0)
            axes.plot(ticks, last, ":", color=colour, linewidth=1.2)
        axes.axhline(0, color="#888888", linewidth=1)
        if regime.log:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [regime.value(value) for value in values], fontsize=8)
        axes.set_xticks([], minor=True)
        # Linear near zero: most gains are of a few points, and some of 80.
        axes.set_yscale("symlog", linthresh=4, linscale=2)
        axes.set_yticks(GRID, [f"{value:+d}" if value else "0" for value in GRID], fontsize=8)
        axes.set_yticks([], minor=True)
        axes.set_ylim(GRID[0] - 15, GRID[-1] + 50)
        axes.set_xlabel(regime.label)
        if index % columns == 0:
            axes.set_ylabel("gain, points")
        if index == 0:
            axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / f"regimes-{data}.svg", metadata={"Date": None})


def gains_table(regime: Regime, collection: Collection) -> list[str]:
    """Return the gains at each value."""
    names = [name for name, _ in VARIANTS.values()]
    heads = [regime.label, "no regularization", *names, *(f"{name}, last" for name in names)]
    rows = []
    runs = places(collection)
    for value in values_of(collection):
        base = [accuracy(run) for run in runs[NONE, value].values()]
        cells = [regime.value(value), f"{sum(base) / len(base):.1f} %"]
        for measure in (accuracy, last_accuracy):
            for variant in VARIANTS:
                one = gain(collection, value, variant, measure)
                cells.append(cell(interval_of(one), bold=one.excludes_zero))
        rows.append(cells)
    return table(heads, rows)


def section(data: str, about: str) -> list[str]:
    """Return the section of one data set."""
    kept = [one for one in REGIMES if (RESULTS / f"{data}-{one.name}").is_dir()]
    found = [(regime, read(f"{data}-{regime.name}")) for regime in kept]
    draw(data, found)
    title = f"{about[0].upper()}{about[1:]}"
    figure = f"![Gain of dropout and batch norm by {', '.join(one.label for one in kept)}]"
    lines = [f"## {title}", "", f"{figure}(figures/regimes-{data}.svg)", ""]
    for regime, collection in found:
        lines += [*gains_table(regime, collection), ""]
    made = [provenance(collection) for _, collection in found]
    hours = sum(float(one["hours of training"]) for one in made)
    lines += ["```sh", *(one["command"] for one in made), "```", ""]
    machine = f"Machine: {made[0]['machine']}; {made[0]['versions']}. {hours:.1f} hours in all."
    return [*lines, machine, ""]


def main() -> None:
    """Write the page and the figures."""
    lines = [
        "# When dropout and batch norm help",
        "",
        "The gain of dropout and of batch norm over the same network without regularization,",
        "while one condition varies. Dropout: 0.5 in the hidden layers and before the last one.",
        "Points of test accuracy; 95 % t intervals over paired seeds, not corrected for the number",
        "of comparisons. The solid line is the epoch that validation chose, the dotted line the",
        "last epoch; the scale is linear up to 4 points, and logarithmic beyond. All other",
        "settings are the presets', also the learning rate. `make docs` writes this page from",
        "[results](../results/effects).",
        "",
    ]
    for data, about in DATA.items():
        lines += section(data, about)
    (DOCS / "regimes.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
