"""Fill the tables of README.md, and draw its figure, from results/; `make docs` runs it."""

import json
from pathlib import Path
from statistics import fmean

import matplotlib
from blocks import fill, table
from intervals import Interval, cell, in_points, mark, name_rows
from matplotlib.figure import Figure

from study.advising.records import Contrast, load_advice
from study.gain_table import gain_tables
from study.plan import load_study
from study.results import collect

# Fixed ids: the same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
TASKS = ("vision", "speech", "nlp")
# Advices, in the order in which they are shown.
ADVICES = {
    "cifar10-fifth": "images: a fifth of CIFAR-10, CNN",
    "speech-arabic_speech_commands_half": "speech: 40 Arabic keywords, TC-ResNet",
    "nlp-ohsumed": "text: Ohsumed abstracts, TextCNN",
    "nlp-trec": "text: TREC questions, TextCNN",
}
ARMS = {"dropout": "dropout", "batchnorm": "batch norm", "both": "both"}


def contrasts(name: str) -> dict[str, Contrast]:
    """Return the gain of each tuned arm over the tuned baseline, by arm."""
    advice = load_advice(RESULTS / "advise" / name)
    assert advice.confirmation is not None
    return {one.arm: one for one in advice.confirmation.looks[-1].contrasts}


def points(one: Contrast) -> Interval:
    """Return a gain and its interval in points."""
    return in_points(one.gain, one.low, one.high)


def tuned_gains() -> list[str]:
    """Return the table of the tuned arms."""
    heads = ["data and model", "seeds", "no regularization", *ARMS.values()]
    rows = []
    for name, title in ADVICES.items():
        found = contrasts(name)
        seeds = found["both"].seeds
        check = json.loads((RESULTS / "advise" / name / "check.json").read_text())
        none = list(check["confirmation"]["none"].values())[:seeds]
        cells = [title, str(seeds), f"{100 * fmean(none):.1f} %"]
        cells += [cell(points(found[arm]), bold=found[arm].significant) for arm in ARMS]
        rows.append(cells)
    return table(heads, rows)


def draw() -> None:
    """Draw the gains of the tuned arms, one panel per data set, below one another for a phone."""
    figure = Figure(figsize=(6.0, 1.25 * len(ADVICES) + 0.4), layout="constrained")
    panels = figure.subplots(len(ADVICES), 1, sharex=True)
    for axes, (name, title) in zip(panels, ADVICES.items(), strict=True):
        found = contrasts(name)
        for height, arm in enumerate(reversed(ARMS)):
            mark(axes, height, points(found[arm]), found[arm].significant)
        name_rows(axes, list(reversed(ARMS.values())))
        axes.set_title(title, fontsize=10, loc="left")
    panels[-1].set_xlabel("gain over the tuned network without regularization, points")
    figure.savefig(DOCS / "figures" / "gains.svg", metadata={"Date": None})


def builtin_gains() -> list[str]:
    """Return the table of `both` over `none` on the builtin data."""
    rows = []
    for task in TASKS:
        collection = collect(load_study(RESULTS / "studies" / f"{task}-builtin"))
        (found,) = gain_tables(collection)
        none, both = (found.comparisons[found.labels.index(name)] for name in ("none", "both"))
        assert both.gain is not None
        gain = in_points(both.gain.mean, both.gain.low, both.gain.high)
        rows.append([task, f"{100 * none.mean:.1f} %", f"{100 * both.mean:.1f} %", cell(gain)])
    return table(["task", "`none`", "`both`", "gain, points, 95 % interval"], rows)


def main() -> None:
    """Write the tables and the figure."""
    draw()
    fill(DOCS.parent / "README.md", {"gains": tuned_gains(), "builtin": builtin_gains()})


if __name__ == "__main__":
    main()
