"""Write docs/evidence.md and its figures from the studies and searches in results/.

`make docs` runs it. Everything is computed from the `metrics.json` of each run.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from study.gain_table import MEANINGS, GainTable, gain_tables, markdown
from study.page import provenance
from study.plan import load_study
from study.results import Collection, collect
from study.verdict import verdict

# Fixed ids: the same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
COLUMNS = 3
# Titles in the figures; a study without one has its name.
TITLES = {
    "speech-arabic_speech_commands_half": "spoken keywords (Arabic, half)",
    "speech-builtin": "builtin speech",
    "nlp-builtin": "builtin texts",
    "nlp-mr": "movie reviews (MR)",
    "nlp-sst2": "movie reviews (SST-2)",
    "nlp-sst2-minilm": "SST-2, pretrained MiniLM",
    "nlp-trec": "question types (TREC)",
    "nlp-trec-transformer": "TREC, transformer",
    "nlp-trec-epochs": "TREC, by epochs",
    "nlp-trec-places": "TREC, by site of dropout",
    "nlp-trec-rate": "TREC, by rate",
    "nlp-trec-size": "TREC, by size",
    "speech-builtin-rate": "builtin speech, by rate",
    "vision-builtin": "builtin images",
    "vision-builtin-rate": "builtin images, by rate",
    "vision-cifar10-fifth": "images (CIFAR-10, a fifth)",
    "vision-cifar10-whole": "images (CIFAR-10)",
}
# Limitations of single studies.
READ_BY_SEARCH = (
    "The rates of dropout, both, augment, full and weight_decay are from searches that had used "
)
MEASURED = " (`PYTHONPATH=. .venv/bin/python docs/overlap.py ../shared/data`)"
NOTES = {
    "nlp-mr": "**Limitation.** In these runs each seed held out its own test examples. "
    f"{READ_BY_SEARCH}88 to 90 % of the test examples of each seed{MEASURED}: their "
    "gains may be too high; none and batchnorm are not affected. The "
    "seeds share training and test examples; the intervals and p are corrected for it (Nadeau & "
    "Bengio 2003), which makes the intervals 1.27 times as wide. Now all seeds share one test "
    "part, and no search reads it.",
    "vision-builtin": "**Limitation.** The test digits are mostly by other writers than the "
    "training digits.",
    "speech-builtin": "**Limitation.** Noise and voices were chosen by the test accuracy of "
    "networks with and without batch norm, so that the task is neither trivial nor impossible: "
    "the size of this gain is partly due to that choice.",
    "nlp-builtin": "**Limitation.** The rates of `both` were chosen on validation data after a "
    "first choice was worse than `none` on the test split.",
    "nlp-sst2": f"**Limitation.** {READ_BY_SEARCH}71 % of these test sentences: they are on "
    f"movie reviews, the source of SST-2's sentences{MEASURED}. The gains of these variants may "
    "be too high.",
}
SEARCHES = (
    "These searches differ from current ones in three points "
    "([studies.md](studies.md#where-the-rates-come-from)). Dropout rates were drawn uniformly from "
    "0 to 0.5, 0.8 and 0.6: in 1 of 90 draws all three rates were at most 0.1. Trials below the "
    "median accuracy at the same epoch were pruned, which favours low rates, since networks with "
    "more dropout learn more slowly. Only the four searches on CIFAR-10 began with the lowest "
    "values, mostly the network without regularizer; the other twelve are older."
)


def searches() -> list[str]:
    """Return the table of all searches."""
    lines = [
        "| search | trials, pruned | best | expected validation % |",
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


def section(collection: Collection, found: list[GainTable]) -> list[str]:
    """Return the section of one study."""
    study, made = collection.study, provenance(collection)
    lines = [f"## {study.name}", ""]
    if collection.done < study.size:
        lines += [f"**Incomplete: {collection.done} of {study.size} runs.**", ""]
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
        f"training. Runs: [results](../results/studies/{study.name}).",
        "",
    ]
    return lines


def draw(found: list[tuple[str, GainTable]]) -> None:
    """Draw the gains of each study in its own panel."""
    lines = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.2 * lines), layout="constrained")
    for index, (name, table) in enumerate(found):
        axes = figure.add_subplot(lines, COLUMNS, index + 1)
        rows = list(zip(table.labels, table.comparisons, strict=True))[1:]
        for height, (_, one) in enumerate(reversed(rows)):
            if one.gain is None:
                continue
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(100 * one.gain.mean, height, "D", color=colour, markersize=6)
            if one.gain.low is not None and one.gain.high is not None:
                ends = [100 * one.gain.low, 100 * one.gain.high]
                axes.plot(ends, [height, height], color=colour, linewidth=2.5)
        axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.axvline(0, color="#888888", linewidth=1, linestyle=":")
        seeds = len(table.comparisons[0].accuracies)
        axes.set_title(f"{TITLES.get(name, name)}\n{seeds} seed{'s' * (seeds > 1)}", fontsize=10)
        axes.set_xlabel(f"points over {table.labels[0]} ({100 * table.comparisons[0].mean:.1f} %)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / "gains-all.svg", metadata={"Date": None})


def curves_along_axis(found: list[GainTable]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return the points of each curve along an axis: (value, gain, low, high), gains in points.

    With one variant: one curve, of gains over the first value. With several: one curve for each
    but the first, of gains over the first variant at the same value.
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


def draw_axes(found: list[tuple[str, str, list[GainTable]]]) -> None:
    """Draw the gains along an axis, one panel per study with an axis."""
    if not found:
        return
    lines = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.0 * lines), layout="constrained")
    for index, (name, axis, tables) in enumerate(found):
        axes = figure.add_subplot(lines, COLUMNS, index + 1)
        curves = curves_along_axis(tables)
        for colour, (variant, points) in zip(COLOURS, curves.items(), strict=False):
            values, gains, lows, highs = zip(*points, strict=True)
            axes.plot(values, gains, "o-", color=colour, label=variant, markersize=4)
            axes.fill_between(values, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color="#888888", linewidth=1, linestyle=":")
        if axis in ("data.train_fraction", "trainer.max_epochs"):
            axes.set_xscale("log")
        measured = sorted({x for points in curves.values() for x, *_ in points})
        axes.set_xticks(measured, [f"{x:g}" for x in measured])
        axes.set_xticks([], minor=True)
        axes.set_title(TITLES.get(name, name), fontsize=10)
        axes.set_xlabel(axis.rsplit(".", 1)[-1])
        single = len(tables) == 1
        axes.set_ylabel("gain over the first value, points" if single else "gain, points")
        if not single:
            axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / "axes.svg", metadata={"Date": None})


def main() -> None:
    """Write the page and the figures."""
    lines = [
        "# Appendix: short studies of untuned presets",
        "",
        "Older studies, with three to five seeds: all variants have the learning rate and the",
        "length of the preset, which suit some of them better. [advised.md](advised.md) and",
        "[regimes.md](regimes.md) have the fair comparisons.",
        "",
        "Written by `make docs` from the runs in [results](../results). The first line of a file",
        "in configs/study gives the source of its rates: a paper, or a search below, on validation",
        "data with a seed that no study uses. SST-2 has the rates of the movie reviews. A variant",
        "without a file is a preset in configs/reg. Each run read the test split once, with the",
        "epoch that validation chose; older results did not test the last epoch and have a dash",
        "there. Two runs shared the machine with other work: step times are rough.",
        "",
        "![Gain of each variant in points, with 95 % intervals over seeds](figures/gains-all.svg)",
        "",
        "By rate, training length and size of the training set:",
        "",
        "![Gain along an axis](figures/axes.svg)",
        "",
    ]
    figures, over_axes = [], []
    for folder in sorted((RESULTS / "studies").iterdir()):
        collection = collect(load_study(folder))
        found = gain_tables(collection)
        lines += section(collection, found)
        if len(found) == 1 and len(found[0].arms) > 1 and not found[0].axis:
            figures.append((collection.study.name, found[0]))
        elif len(collection.study.axes) == 1:
            over_axes.append((collection.study.name, next(iter(collection.study.axes)), found))
    draw(figures)
    draw_axes(over_axes)
    lines += ["## Searches", "", SEARCHES, "", *searches(), "", "## Columns", ""]
    lines += [f"- **{column}**: {meaning}." for column, meaning in MEANINGS.items()]
    (DOCS / "evidence.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
