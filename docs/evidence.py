"""Write docs/evidence.md and its figures from the studies and searches in results/.

`make docs` runs it. It computes everything anew from the `metrics.json` of each run.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from study.page import made_with
from study.plan import load_study
from study.results import Collection, collect
from study.tables import MEANINGS, Table, markdown, tables, verdict

# The same results make the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
# One study of each task, for the first page.
FRONT = ["speech-arabic_speech_commands_half", "nlp-trec", "vision-cifar10-fifth"]
COLUMNS = 3
# What a reader must know of a study to judge it.
READ_BY_SEARCH = (
    "The rates of dropout, both, augment, full and weight_decay are from searches that had read "
)
MEASURED = " (`.venv/bin/python docs/overlap.py ../shared/data`)"
NOTES = {
    "nlp-mr": "**What this is worth.** When these runs were made, each seed held out test examples "
    f"of its own. {READ_BY_SEARCH}88 to 90 % of the test examples of each seed{MEASURED}: their "
    "gains may be too high, and what none and batchnorm have is not affected. Nothing is shown to "
    "gain here. The seeds have training and test examples in common, for which the intervals and "
    "p are corrected (Nadeau & Bengio 2003): they are 1.27 times as wide as without. Now the test "
    "part is the same for all seeds, and no search reads it.",
    "nlp-sst2": f"**What this is worth.** {READ_BY_SEARCH}71 % of these test sentences: they are "
    f"on the movie reviews, which SST-2 takes its sentences from{MEASURED}. The gains of these "
    "variants may be too high. Nothing is shown to gain here.",
}
SEARCHES = (
    "These searches differ from those made now in three points "
    "([studies.md](studies.md#where-the-rates-come-from)). Those for dropout drew uniformly from 0 "
    "to 0.5, 0.8 and 0.6: 1 of 90 draws had mild rates, up to 0.1, in all three places. Trials "
    "whose accuracy was below the median of the others at the same epoch were cut short, which "
    "are those with more dropout, since they learn more slowly. And the first trial has the lowest "
    "values, which is mostly the network without, in the four searches on CIFAR-10 only; the other "
    "twelve are older than that rule."
)


def searches() -> list[str]:
    """Write what each search has found."""
    lines = [
        "| search | trials, cut short | best | validation % there |",
        "| --- | --- | --- | --- |",
    ]
    for file in sorted((RESULTS / "sweeps").glob("*/trials.json")):
        content: dict[str, Any] = json.loads(file.read_text())
        states = [trial["state"] for trial in content["trials"]]
        best = ", ".join(
            f"`{key.rsplit('.', 1)[-1]}` {value:.3g}" for key, value in content["best"].items()
        )
        mean, half = content["expected"]
        lines.append(
            f"| [{file.parent.name}](../results/sweeps/{file.parent.name}/trials.json) "
            f"| {states.count('complete') + states.count('pruned')}, {states.count('pruned')} "
            f"| {best} | {100 * mean:.1f} ± {100 * half:.1f} |"
        )
    return lines


def section(collection: Collection, found: list[Table]) -> list[str]:
    """Write what one study has found."""
    study, made = collection.study, made_with(collection)
    lines = [f"## {study.name}", ""]
    planned = len(list(study.arms())) * len(study.seeds)
    if collection.done < planned:
        lines += [f"**Not finished: {collection.done} of {planned} runs.**", ""]
    if study.name in NOTES:
        lines += [NOTES[study.name], ""]
    for table in found:
        title = [f"### {table.title}", ""] if table.title else []
        lines += [*title, verdict(table), "", markdown(table), ""]
    lines += [
        "```sh",
        made["command"],
        "```",
        "",
        f"Machine: {made['machine']}; {made['versions']}. {made['hours of training']} hours of "
        f"training. The runs: [results/studies/{study.name}](../results/studies/{study.name}).",
        "",
    ]
    return lines


def draw(found: list[tuple[str, Table]], file: str) -> None:
    """Draw the gains of studies of variants side by side."""
    lines = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.2 * lines), layout="constrained")
    for place, (name, table) in enumerate(found):
        axes = figure.add_subplot(lines, COLUMNS, place + 1)
        rows = list(zip(table.labels, table.comparisons, strict=True))[1:]
        for height, (_, one) in enumerate(reversed(rows)):
            if one.gain is None:
                continue
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(100 * one.gain.mean, height, "D", color=colour, markersize=6)
            if one.gain.low is not None and one.gain.high is not None:
                ends = [100 * one.gain.low, 100 * one.gain.high]
                axes.plot(ends, [height, height], color=colour, linewidth=2.5)
        axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
        axes.axvline(0, color="#888888", linewidth=1, linestyle=":")
        seeds = len(table.comparisons[0].accuracies)
        axes.set_title(f"{name}\n{seeds} seed{'s' * (seeds > 1)}", fontsize=10)
        axes.set_xlabel(f"points over {table.labels[0]} ({100 * table.comparisons[0].mean:.1f} %)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / file, metadata={"Date": None})


def line(found: list[Table]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return the points of each curve over an axis: (value, gain, low, high), gains in points.

    Of one variant there is one curve, of gains over the first value; of several there is one for
    each but the first, of gains over the first variant at the same value.
    """
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for table in found:
        for arm, one in list(zip(table.arms, table.comparisons, strict=True))[1:]:
            if one.gain is None or one.gain.low is None or one.gain.high is None:
                continue
            value = float(arm.point[0][1])
            estimate = [100 * part for part in (one.gain.mean, one.gain.low, one.gain.high)]
            curves.setdefault(arm.title, []).append((value, *estimate))
    return curves


def draw_axes(found: list[tuple[str, str, list[Table]]]) -> None:
    """Draw the gains over the values of an axis, a panel for each study that has one."""
    if not found:
        return
    lines = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.0 * lines), layout="constrained")
    for place, (name, axis, tables_of_one) in enumerate(found):
        axes = figure.add_subplot(lines, COLUMNS, place + 1)
        for colour, (variant, points) in zip(COLOURS, line(tables_of_one).items(), strict=False):
            values, gains, lows, highs = zip(*points, strict=True)
            axes.plot(values, gains, "o-", color=colour, label=variant, markersize=4)
            axes.fill_between(values, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color="#888888", linewidth=1, linestyle=":")
        if axis in ("data.train_fraction", "trainer.max_epochs"):
            axes.set_xscale("log")
        measured = sorted({x for points in line(tables_of_one).values() for x, *_ in points})
        axes.set_xticks(measured, [f"{x:g}" for x in measured])
        axes.set_xticks([], minor=True)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(axis.rsplit(".", 1)[-1])
        single = len(tables_of_one) == 1
        axes.set_ylabel("points over the first" if single else "gain, points")
        if not single:
            axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / "axes.svg", metadata={"Date": None})


def main() -> None:
    """Write the page and the pictures."""
    lines = [
        "# Evidence",
        "",
        "Written by `make docs` from the runs in [results](../results). The first line of a file",
        "in configs/study tells where its rates are from: a search below, on validation data, with",
        "a seed that no study has, or a paper. SST-2 takes over those of the movie reviews; a",
        "variant without a file is a preset of configs/reg. Each run of a study read the test",
        "split once, with the epoch that validation chose; results before the last epoch was",
        "tested too have a dash there. The machine ran two at a time beside other work, so that",
        "step times are rough.",
        "",
        "![Gain of each variant in points, with 95 % intervals over seeds](figures/gains-all.svg)",
        "",
        "Over rates and over sizes of the training set:",
        "",
        "![Gain over the values of an axis](figures/axes.svg)",
        "",
    ]
    pictures, over_axes = [], []
    for folder in sorted((RESULTS / "studies").iterdir()):
        collection = collect(load_study(folder))
        found = tables(collection)
        lines += section(collection, found)
        if len(found) == 1 and len(found[0].arms) > 1 and not found[0].axis:
            pictures.append((collection.study.name, found[0]))
        elif len(collection.study.axes) == 1:
            over_axes.append((collection.study.name, next(iter(collection.study.axes)), found))
    draw([one for name in FRONT for one in pictures if one[0] == name], "gains.svg")
    draw(pictures, "gains-all.svg")
    draw_axes(over_axes)
    lines += ["## Searches", "", SEARCHES, "", *searches(), "", "## Columns", ""]
    lines += [f"- **{column}**: {meaning}." for column, meaning in MEANINGS.items()]
    (DOCS / "evidence.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
