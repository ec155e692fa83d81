"""What to do after a study: what to use, what is open, and how many seeds would settle it."""

from collections.abc import Sequence
from dataclasses import dataclass

from study.gain_table import (
    ALL_PARTS,
    NOT_KNOWN,
    GainTable,
    format_interval,
    format_points,
    join,
)
from study.statistics import FEWEST_SEEDS, MOST_SEEDS, POWER, Comparison
from study.verdict import not_known

# Seeds to add if the gains so far are equal.
MORE_SEEDS = 2
NOT_AFTER_HOLM = "interval excludes 0, but not significant after Holm's correction"


@dataclass(frozen=True)
class NextSteps:
    """The next steps after a study.

    Args:
        steps: Sentences, the most important one first.
        seeds: Number of seeds to continue with; None if no further seeds are advised.
    """

    steps: list[str]
    seeds: int | None = None


def steps_after(table: GainTable) -> NextSteps:
    """Say what to use, what is open, and how many seeds would settle it."""
    labels = table.labels
    if len(labels) < 2:
        return NextSteps(["Compare variants: at least two need complete runs."])
    seeds = len(set.intersection(*(set(results) for results in table.results)))
    if seeds < FEWEST_SEEDS:
        return NextSteps(
            [f"Run at least {FEWEST_SEEDS} seeds of each variant: with fewer, no gain is shown."],
            FEWEST_SEEDS,
        )
    if table.effect:
        return _after_outcomes(table, seeds)
    open_ones, equal = _open(table), _equal(table)
    steps = [_use(table), *_limits(table), *(_open_step(table, index) for index in open_ones)]
    for index in equal:
        points = format_points(table.comparisons[index].gain)
        steps.append(
            f"Open: {table.subjects[index]}, {points} points with each of {seeds} seeds. Equal "
            f"{table.quantity}s give no interval: run more seeds."
        )
    small = [index for index in _undecided(table) if index not in (*open_ones, *equal)]
    if small:
        steps.append(
            f"{join([table.subjects[index] for index in small])}: a {table.quantity} too small to "
            f"be shown with {MOST_SEEDS} seeds, if any."
        )
    needed = [one for index in open_ones if (one := table.comparisons[index].seeds_needed)]
    needed += [seeds + MORE_SEEDS] if equal else []
    return NextSteps(steps, min(needed, default=None))


def _after_outcomes(table: GainTable, seeds: int) -> NextSteps:
    """Say what to use and what is open, given the smallest effect of interest."""
    names = table.subjects
    steps = [_use(table), *_limits(table)]
    equal = [
        name
        for name, one in zip(names, table.comparisons, strict=True)
        if one.outcome == "practically equal"
    ]
    if equal and table.ablation:
        steps.append(f"{join(equal)}: can be left out; the contribution is practically zero.")
    elif equal:
        steps.append(
            f"{join(equal)}: practically equal to {table.labels[0]}; choose by cost or simplicity."
        )
    more = []
    for name, one in zip(names, table.comparisons, strict=True):
        if one.outcome == NOT_KNOWN:
            figures = f"{format_points(one.gain)} points ({format_interval(one.gain)})"
            steps.append(f"Open: {name}, {figures}, {not_known(one)}.")
            more += [] if one.more_seeds is None else [one.more_seeds]
    return NextSteps(steps, seeds + min(more) if more else None)


def note(one: Comparison) -> str:
    """Say in words whether a gain is significant; empty if there is nothing to point out."""
    if one.outcome:
        return not_known(one) if one.outcome == NOT_KNOWN else one.outcome
    if one.significant:
        return "significant"
    return NOT_AFTER_HOLM if one.only_uncorrected else ""


def _use(table: GainTable) -> str:
    """Name the variants to use: significantly better than the baseline and tied for best."""
    labels = table.labels
    better = [
        index
        for index, one in enumerate(table.comparisons)
        if one.significant
        and one.gain is not None
        and one.gain.mean > 0
        # A gain may be significant and too small to be of interest.
        and one.outcome in ("", "gains")
    ]
    if table.ablation:
        return _keep_parts(table, better)
    best = [index for index in table.best if index in better]
    if not best:
        return f"Keep {labels[0]}: no gain over it is shown."
    names = " or ".join(labels[index] for index in best)
    timed = [index for index in best if table.comparisons[index].seconds is not None]
    if len(best) == 1 or len(timed) < len(best):
        return f"Use {names}."
    seconds = {
        index: one.seconds.mean for index in best if (one := table.comparisons[index]).seconds
    }
    fastest = min(best, key=lambda index: seconds[index])
    return (
        f"Use {names}: they are statistically tied. {labels[fastest]} has the shortest training "
        f"step, x{seconds[fastest]:.2f} that of {labels[0]}."
    )


def _keep_parts(table: GainTable, better: Sequence[int]) -> str:
    """Say which parts of a recipe to keep, and which ones to remove."""
    names = table.subjects
    keep = [names[index] for index in better if names[index] != ALL_PARTS]
    remove = [
        name
        for name, one in zip(names, table.comparisons, strict=True)
        if one.significant
        and one.gain is not None
        and one.gain.mean < 0
        and one.outcome in ("", "loses")
        and name != ALL_PARTS
    ]
    said = [f"Keep {join(keep)} in {table.labels[0]}."] if keep else []
    said += [f"Remove {join(remove)}: without it, {table.labels[0]} is better."] if remove else []
    return " ".join(said) or f"No part of {table.labels[0]} is shown to contribute."


def _limits(table: GainTable) -> list[str]:
    """Name significant gains that other test examples might not show."""
    uncertain = [
        label
        for label, one in zip(table.subjects, table.comparisons, strict=True)
        if one.significant and one.gain_examples is not None and not one.gain_examples.excludes_zero
    ]
    if not uncertain:
        return []
    return [
        f"{join(uncertain)}: the {table.quantity} is significant for these test examples. The "
        "interval that includes the choice of test examples does not exclude 0: test on more "
        "examples."
    ]


def _undecided(table: GainTable) -> Sequence[int]:
    """Indices of variants with an interval whose gain is not significant."""
    return [
        index
        for index, one in enumerate(table.comparisons)
        if index and not one.significant and not one.at_chance and one.gain is not None
    ]


def _open(table: GainTable) -> list[int]:
    """Indices of variants that more seeds may settle, the fewest seeds first."""
    found = [i for i in _undecided(table) if table.comparisons[i].seeds_needed is not None]
    return sorted(found, key=lambda index: table.comparisons[index].seeds_needed or 0)


def _equal(table: GainTable) -> list[int]:
    """Indices of variants whose gain is the same with each seed, so that it has no interval."""
    gains = [(index, table.comparisons[index].gain) for index in _undecided(table)]
    return [index for index, gain in gains if gain is not None and gain.low is None]


def _open_step(table: GainTable, index: int) -> str:
    one, label = table.comparisons[index], table.subjects[index]
    what = f"{format_points(one.gain)} points ({format_interval(one.gain)}, p = {one.p_holm:.2g})"
    return (
        f"Open: {label}, {what}. If the {table.quantity} stays as large, {one.seeds_needed} "
        f"seeds show it with a probability of {100 * POWER:.0f} %."
    )
