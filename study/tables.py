"""The gain table and the verdict, in words that claim no more than the intervals allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.plan import Arm, Study
from study.results import Collection, Result
from study.statistics import FEWEST_SEEDS, Comparison, Estimate, compare, indistinguishable
from tasks.errors import InputError

COLUMNS = [
    "variant",
    "seeds",
    "test %",
    "gain",
    "95 % interval",
    "and test examples",
    "p (Holm)",
    "last epoch",
    "NLL",
    "gap",
    "calibration",
    "steps",
    "step time",
    "memory",
]
# What each column holds, for those who see it for the first time.
MEANINGS = {
    "seeds": "runs of the variant, and how many of them never left chance in training",
    "test %": "mean test accuracy in %, and its standard deviation over seeds",
    "gain": "mean paired difference to the baseline's test accuracy, in points",
    "95 % interval": "t interval of the gain over seeds, with this test set; corrected by Nadeau "
    "and Bengio where each seed has test examples of its own",
    "and test examples": "95 % interval of the gain over seeds and test examples",
    "p (Holm)": "that there is no gain: paired t test, corrected for the number of variants",
    "last epoch": "gain with the weights of the last epoch instead of those that validation chose, "
    "in points; a dash where a run did not test them",
    "NLL": "negative log-likelihood of the test labels: change against the baseline, in nats; "
    "less is better",
    "gap": "training less validation accuracy: change against the baseline, in points",
    "calibration": "expected calibration error: change against the baseline, in points",
    "steps": "steps to the baseline's best validation accuracy over the baseline's own",
    "step time": "seconds of a training step over the baseline's",
    "memory": "peak memory over the baseline's",
}


@dataclass(frozen=True)
class Table:
    """A comparison with its arms.

    Args:
        title: The point of the axes that it is for; empty if there is none.
        arms: The first one is the baseline. Only those with results.
        results: Of each arm, by seed.
        comparisons: Of each arm.
        axis: The axis whose values are the arms, where a study has one variant only.
    """

    title: str
    arms: list[Arm]
    results: list[Mapping[int, Result]]
    comparisons: list[Comparison]
    axis: str | None = None

    def label(self, arm: Arm) -> str:
        """Name an arm as short as it can be told from the others."""
        if self.axis is None:
            return arm.title
        return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in arm.point)

    @property
    def labels(self) -> list[str]:
        """The names of all arms."""
        return [self.label(arm) for arm in self.arms]


def tables(collection: Collection) -> list[Table]:
    """Compare the variants at each point of the axes; of a single variant, compare the points."""
    study = collection.study
    with_results = [arm for arm in study.arms() if collection.results[arm]]
    if len(study.variants) == 1 and study.axes:
        axis = " x ".join(study.axes)
        return [_table("", with_results, collection, axis)] if with_results else []
    points = list(dict.fromkeys(arm.point for arm in with_results))
    found = []
    for point in points:
        arms = [arm for arm in with_results if arm.point == point]
        # Without the baseline there is nothing to compare with yet.
        if arms[0].variant == study.variants[0]:
            title = ", ".join(f"{key}={value}" for key, value in point)
            found.append(_table(title, arms, collection))
    return found


def _table(title: str, arms: list[Arm], collection: Collection, axis: str | None = None) -> Table:
    results = [collection.results[arm] for arm in arms]
    if axis is None:
        check_pairs(collection.study, arms, results)
    return Table(title, arms, list(results), compare(results), axis)


def check_pairs(study: Study, arms: Sequence[Arm], results: Sequence[Mapping[int, Result]]) -> None:
    """Refuse pairs that were not tested on the same examples.

    Raises:
        InputError: A variant has other test examples than the baseline with the same seed.
    """
    for arm, found in zip(arms[1:], results[1:], strict=True):
        for seed in sorted(set(found) & set(results[0])):
            if found[seed].test_set != results[0][seed].test_set:
                first, second = (study.run_folder(one, seed) for one in (arms[0], arm))
                raise InputError(
                    f"{first} and {second} have different test examples and are no pair; "
                    "delete the older of the two, and it is run again"
                )


def points(estimate: Estimate | None, sign: bool = True) -> str:
    """Write a share as points.

    Example:
        >>> points(Estimate(0.0123))
        '+1.23'
    """
    return "" if estimate is None else f"{100 * estimate.mean:{'+' if sign else ''}.2f}"


def interval(estimate: Estimate | None) -> str:
    """Write an interval of shares as points; "none" if seeds are too few or alike."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return "none"
    return f"{100 * estimate.low:+.2f} to {100 * estimate.high:+.2f}"


def change(estimate: Estimate | None, short: bool, scale: float = 1.0, digits: int = 3) -> str:
    """Write a change with its interval, or the change alone; a dash if it was not measured.

    Example:
        >>> change(Estimate(-0.0512, -0.06, -0.04), short=False)
        '-0.051 (-0.060 to -0.040)'
        >>> change(None, short=False)
        '-'
    """
    if estimate is None:
        return "-"
    mean, low, high = (
        None if end is None else f"{scale * end:+.{digits}f}"
        for end in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}" if short or low is None else f"{mean} ({low} to {high})"


def rows(table: Table, short: bool = False) -> list[list[str]]:
    """Write the cells of the gain table, a row an arm, as `COLUMNS` names them.

    Args:
        table: The table.
        short: Leave out the intervals of the last epoch and of the likelihood.
    """
    written = []
    for label, one in zip(table.labels, table.comparisons, strict=True):
        deviation = "" if one.deviation is None else f" ± {100 * one.deviation:.2f}"
        stuck = f", {len(one.at_chance)} at chance" if one.at_chance else ""
        steps = f"x{one.steps.mean:.2f}" if one.steps else ""
        if one.gain is not None and one.steps is None:
            steps = f"reached {one.reached} of {len(one.seeds)}"
        written.append(
            [
                label,
                f"{len(one.accuracies)}{stuck}",
                f"{100 * one.mean:.2f}{deviation}",
                points(one.gain) or "baseline",
                interval(one.gain),
                interval(one.gain_examples),
                "" if one.p_holm is None else f"{one.p_holm:.2g}",
                change(one.gain_last, short, 100, 2) if one.gain else "",
                change(one.loss, short) if one.gain else "",
                points(one.gap),
                points(one.calibration),
                steps,
                f"x{one.seconds.mean:.2f}" if one.seconds else "",
                f"x{one.memory.mean:.2f}" if one.memory else "",
            ]
        )
    return written


def markdown(table: Table) -> str:
    """Write the gain table for a page of documentation."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(table)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def verdict(table: Table) -> str:
    """Say what was found; a variant is called best only if all others are below.

    Of a variant with runs that never left chance it is not said that it has no effect: they say
    that its training failed, and nothing of what it does where training works.
    """
    stuck = [place for place, one in enumerate(table.comparisons) if one.at_chance]
    parts = [_found(table, stuck), *([_at_chance(table, stuck)] if stuck else [])]
    return " ".join(parts)


def _found(table: Table, stuck: Sequence[int]) -> str:
    """Say which variants gain and lose, and of which that is not shown."""
    if len(table.arms) < 2:
        return "There is nothing to compare yet."
    labels, baseline = table.labels, table.labels[0]
    common = set.intersection(*(set(results) for results in table.results))
    if len(common) < FEWEST_SEEDS:
        return (
            f"{_count(len(common), 'seed')} for all variants: no interval can be given with fewer "
            f"than {FEWEST_SEEDS}, and so nothing is claimed."
        )
    gains = [p for p, one in enumerate(table.comparisons) if one.shown and _gain(one) > 0]
    losses = [p for p, one in enumerate(table.comparisons) if one.shown and _gain(one) < 0]
    trained = [p for p in range(1, len(labels)) if p not in stuck and 0 not in stuck]
    silent = [labels[p] for p in trained if p not in gains and p not in losses]
    near = indistinguishable(table.results)
    parts = []
    if not gains and len(trained) == len(labels) - 1:
        parts.append(f"No variant is shown to gain over {baseline}")
    elif not gains:
        of = _listed([labels[p] for p in trained])
        parts.append(f"Of {of} no gain over {baseline} is shown" if of else "No gain is measured")
    elif len(near) == 1:
        parts.append(f"Best is {labels[near[0]]}: {_claim(table, near[0])} over {baseline}")
    else:
        top = max(gains, key=lambda place: table.comparisons[place].mean)
        parts.append(f"{labels[top]} gains {_claim(table, top)} over {baseline}")
        others = [place for place in gains if place != top]
        if others:
            parts.append(f"{_subject([labels[place] for place in others], 'gain')} too")
        # The baseline is shown to be below one of them.
        open_ones = [labels[place] for place in near if place != 0]
        if len(open_ones) > 1:
            parts.append(f"{_listed(open_ones)} are statistically tied for best")
    if losses:
        parts.append(_subject([labels[place] for place in losses], "lose"))
    if silent and (gains or losses):
        parts.append(f"of {_listed(silent)} no effect is shown")
    return "; ".join(parts) + f" ({_count(len(common), 'paired seed')})."


def _at_chance(table: Table, stuck: Sequence[int]) -> str:
    """Name the runs whose training never left chance."""
    parts = []
    for place in stuck:
        one = table.comparisons[place]
        seeds = _listed([str(seed) for seed in one.at_chance])
        which = f"seed{'s' if len(one.at_chance) > 1 else ''} {seeds}"
        total = _count(len(one.accuracies), "run")
        parts.append(f"{len(one.at_chance)} of {total} of {table.labels[place]} ({which})")
    return f"Training never left chance in {_listed(parts)}: their logs name the fix."


def _gain(one: Comparison) -> float:
    return one.gain.mean if one.gain else 0.0


def _claim(table: Table, place: int) -> str:
    gain = table.comparisons[place].gain
    return f"{points(gain)} points ({interval(gain)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _subject(names: Sequence[str], verb: str) -> str:
    return f"{_listed(names)} {verb}" + ("s" if len(names) == 1 else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])
