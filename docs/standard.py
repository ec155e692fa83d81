"""Keep the standard studies, and write docs/standard.md.

A standard study is an advice with the design `kinds`: a recipe and it without each kind of
regularizer, each tuned with the same effort, then confirmed on fresh paired seeds. With the folder
of such an advice, this keeps it: `PYTHONPATH=. .venv/bin/python docs/standard.py
runs/advice/NAME`. Without arguments it writes the page; `make docs` does so too.
"""

import contextlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median, stdev
from typing import Any

import matplotlib
from advice_answer import answer
from blocks import table
from effects import write
from intervals import Interval, cell, in_points, mark, name_rows
from matplotlib.figure import Figure
from scipy.optimize import brentq

from study.advising.design_page import design_study
from study.advising.records import ADVICE, load_advice
from study.factorial import effects, effects_markdown
from study.gain_table import GainTable, gain_tables, rows, with_outcomes
from study.page import provenance
from study.plan import load_study
from study.results import Collection, collect
from study.statistics import POWER, Comparison, detection_power
from study.verdict import verdict

# Fixed ids: the same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results" / "standard"
# Titles of the studies, in the order in which they are shown.
TITLES = {"trec-text_cnn": "TREC questions, TextCNN"}
KINDS = {
    "dropout": "dropout",
    "normalization": "norm",
    "augmentation": "augmentation",
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "dropout and normalization": "dropout and norm",
    "all parts": "everything",
}
# Smallest effect of interest, a fraction.
SMALLEST = 0.01
# Of each run, what the page does not need: epochs of training curves are in W&B.
UNUSED = ("confusion", "best_checkpoint", "parameters")
SHOWN = ("part", "seeds", "test % without it", "contribution", "95 % interval", "p (Holm)")
SHOWN += ("last epoch", "NLL", "gap", "calibration")


def keep(advice: Path) -> None:
    """Copy the results of an advice with a design."""
    known = load_advice(advice)
    study = design_study(known, advice)
    if study is None:
        sys.exit(f"error: {advice} has no design, or not all of its arms were confirmed")
    to = RESULTS / advice.name
    shutil.copytree(advice / "tuned", to / "tuned", dirs_exist_ok=True)
    for name in (ADVICE, "recommended.yaml"):
        shutil.copy(advice / name, to)
    variants = [f"results/standard/{advice.name}/tuned/{Path(v).name}" for v in study.variants]
    collection = collect(study)
    # The presets are named by their paths from there.
    with contextlib.chdir(DOCS.parent):
        replace(study, variants=variants, name=advice.name, root=RESULTS).save()
    write(collection, to, reduced)


def reduced(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the page needs of a run."""
    made = {key: value for key, value in record.items() if key not in UNUSED}
    fraction = record["config"]["data"].get("train_fraction", 1.0)
    predictions = {name: record["predictions"][name] for name in ("label", "predicted")}
    return made | {"config": {"data": {"train_fraction": fraction}}, "predictions": predictions}


def detectable(table: GainTable) -> float:
    """Return the contribution that the study would show with a probability of 80 %, a fraction.

    It is that of a t test of one contrast, for the median spread of the contrasts.
    """
    gains = [list(table.gains(index).values()) for index in range(1, len(table.arms))]
    error = median(stdev(one) / len(one) ** 0.5 for one in gains)
    pairs = len(gains[0])
    return float(
        brentq(lambda gain: float(detection_power(gain, error, pairs)) - POWER, 0, 20 * error)
    )


def read(name: str) -> tuple[Collection, GainTable]:
    """Read a study and its table of contributions."""
    collection = collect(load_study(RESULTS / name))
    (table,) = gain_tables(collection)
    return collection, with_outcomes(table, SMALLEST)


def contribution(one: Comparison) -> Interval:
    """Return a contribution and its interval in points."""
    assert one.gain is not None
    return in_points(one.gain.mean, one.gain.low, one.gain.high)


def significant(one: Comparison) -> bool:
    """Whether a contribution differs from zero after the correction."""
    return one.p_holm is not None and one.p_holm < 0.05


def overview() -> list[str]:
    """Return one table of all studies: what each kind of regularizer contributes."""
    heads = ["data and model", "seeds", "nothing", "full recipe", *KINDS.values()]
    lines = []
    for name in TITLES:
        _, gains = read(name)
        found = dict(zip(gains.subjects[1:], gains.comparisons[1:], strict=True))
        recipe, nothing = gains.comparisons[0], found["all parts"]
        cells = [TITLES[name], str(len(recipe.seeds))]
        cells += [f"{100 * nothing.mean:.1f} %", f"{100 * recipe.mean:.1f} %"]
        cells += [cell(contribution(found[kind]), significant(found[kind])) for kind in KINDS]
        lines.append(cells)
    return table(heads, lines)


def draw() -> None:
    """Draw what each kind contributes, one panel per study, below one another for a phone."""
    figure = Figure(figsize=(6.0, 2.4 * len(TITLES)), layout="constrained")
    for index, name in enumerate(TITLES):
        _, table = read(name)
        axes = figure.add_subplot(len(TITLES), 1, index + 1)
        rows = list(zip(table.subjects, table.comparisons, strict=True))[1:]
        for height, (_, one) in enumerate(reversed(rows)):
            mark(axes, height, contribution(one), significant(one))
        name_rows(axes, [KINDS[subject] for subject, _ in reversed(rows)])
        recipe, nothing = table.comparisons[0], dict(rows)["all parts"]
        axes.set_title(
            f"{TITLES[name]}, {len(recipe.seeds)} seeds\n{100 * recipe.mean:.1f} % with the full "
            f"recipe, {100 * nothing.mean:.1f} % with nothing",
            fontsize=9,
            loc="left",
        )
    axes.set_xlabel("lost if it is removed from the full recipe, points of test accuracy")
    figure.savefig(DOCS / "figures" / "parts.svg", metadata={"Date": None})


def section(folder: Path) -> list[str]:
    """Return the section of one study."""
    advice = load_advice(folder)
    collection, table = read(folder.name)
    made = provenance(collection)
    indices = [table.headings.index(name) for name in SHOWN]
    lines = [SHOWN, ["---"] * len(SHOWN), *([row[i] for i in indices] for row in rows(table))]
    trials = len(advice.tuning[-1].trials)
    return [
        f"## {TITLES[folder.name]}",
        "",
        *answer(advice),
        verdict(table),
        "",
        *(f"| {' | '.join(cells)} |" for cells in lines),
        "",
        *([effects_markdown(found), ""] if (found := effects(table)) else []),
        f"{trials} trials of each variant. A contribution of {100 * detectable(table):.1f} points "
        "would have been shown with a probability of 80 % (one contrast, without correction).",
        "",
        f"Machine: {made['machine']}; {made['versions']}. {made['hours of training']} hours of "
        "training in the confirmation. "
        f"Results: [{folder.name}](../results/standard/{folder.name}).",
        "",
    ]


def main() -> None:
    """Keep an advice, or write the page."""
    if sys.argv[1:]:
        keep(Path(sys.argv[1]))
        return
    lines = [
        "# Standard studies",
        "",
        "What each kind of regularizer contributes to a full recipe, on real data. Every variant,",
        "the baseline without any regularizer included, was tuned on validation data with the same",
        "number of trials (learning rate, length, its own rates), and then trained with fresh",
        "paired seeds; each of these runs read the test split once. The first row is the whole",
        "recipe. A contribution above 0 means that the part helps; bold: after Holm's correction.",
        "Practically equal: shown to be below 1 point either way. `make docs` writes this page",
        "from [results](../results/standard).",
        "",
    ]
    draw()
    lines += ["![What each kind contributes](figures/parts.svg)", "", *overview(), ""]
    for name in TITLES:
        lines += section(RESULTS / name)
    (DOCS / "standard.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
