"""The gain table of a study: each arm compared with the first, and how figures are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from study.designs import LACKING, NONE, WITHOUT
from study.equivalence import classify, equivalence_p_value, pairs_needed
from study.plan import Arm, Study
from study.results import Collection, Result
from study.statistics import Comparison, Estimate, compare, holm, split_overlap, tied_for_best
from tasks.errors import InputError

# What is known of a gain, if neither a gain, a loss nor practical equality is shown.
NOT_KNOWN = "not known yet"
COLUMNS = [
    "variant",
    "seeds",
    "test %",
    "gain",
    "95 % interval",
    "incl. test examples",
    "p (Holm)",
    "last epoch",
    "NLL",
    "gap",
    "calibration",
    "steps",
    "step time",
    "memory",
]
# Explanation of each column.
MEANINGS = {
    "seeds": "number of runs, and how many of them stayed at chance accuracy in training",
    "test %": "mean test accuracy in %, and its standard deviation over seeds",
    "gain": "mean paired difference to the baseline's test accuracy, in points",
    "95 % interval": "t interval of the gain over seeds, for this test set; with the correction of "
    "Nadeau and Bengio if each seed has its own test examples",
    "incl. test examples": "95 % interval of the gain over seeds and test examples",
    "p (Holm)": "p-value of a paired t test for no gain, corrected for the number of variants",
    "last epoch": "gain with the weights of the last epoch instead of the chosen epoch, in points; "
    "a dash if a run did not test them",
    "NLL": "negative log-likelihood of the test labels: change from the baseline, in nats; "
    "lower is better",
    "gap": "training minus validation accuracy: change from the baseline, in points",
    "calibration": "expected calibration error: change from the baseline, in points",
    "steps": "steps to reach the baseline's best validation accuracy, relative to the baseline",
    "step time": "seconds per training step, relative to the baseline",
    "memory": "peak memory, relative to the baseline",
}


# An ablation compares a recipe with it without one part: what a gain is called, and means, there.
ALL_PARTS = "all parts"
ABLATION_HEADINGS = {"variant": "part", "test %": "test % without it", "gain": "contribution"}
ABLATION_MEANINGS = {
    "seeds": "number of runs without the part, and how many of them stayed at chance accuracy",
    "test %": "mean test accuracy in % without the part, and its standard deviation over seeds; "
    "first row: of the whole recipe",
    "gain": "what the part contributes: test accuracy of the recipe minus that of the recipe "
    "without the part, mean of paired differences, in points; above 0, the part helps",
    "95 % interval": MEANINGS["95 % interval"].replace("gain", "contribution"),
    "incl. test examples": "95 % interval of the contribution over seeds and test examples",
    "p (Holm)": "p-value of a paired t test for no contribution, corrected for the number of parts",
    "last epoch": MEANINGS["last epoch"].replace("gain", "contribution"),
    "NLL": "negative log-likelihood of the test labels: change by the part, in nats; below 0, the "
    "part helps",
    "gap": "training minus validation accuracy: change by the part, in points",
    "calibration": "expected calibration error: change by the part, in points",
    "steps": "steps of the recipe to reach the best validation accuracy without the part, relative "
    "to those without it",
    "step time": "seconds per training step, relative to those without the part",
    "memory": "peak memory, relative to that without the part",
}


@dataclass(frozen=True)
class GainTable:
    """Arms with results, compared with the first of them.

    Args:
        title: The values of the axes at this point; empty without axes.
        arms: The arms that have results; the first one is the baseline.
        results: For each arm, its results by seed.
        comparisons: For each arm, its comparison with the baseline.
        axis: Set if the arms are values of this axis, in a study with a single variant.
        design: Design of the study. In an ablation, the other arms lack a part of the first one,
            and the gains are what the parts contribute.
        effect: Smallest effect of interest, a fraction; 0 for none.
    """

    title: str
    arms: list[Arm]
    results: list[Mapping[int, Result]]
    comparisons: list[Comparison]
    axis: str | None = None
    design: str = ""
    effect: float = 0.0

    def label(self, arm: Arm) -> str:
        """Return the shortest unambiguous name of an arm."""
        if self.axis is None:
            return arm.title
        return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in arm.point)

    @property
    def labels(self) -> list[str]:
        """The names of all arms."""
        return [self.label(arm) for arm in self.arms]

    @property
    def ablation(self) -> bool:
        """Whether the gains are contributions of the parts of a recipe."""
        return self.design in LACKING

    @property
    def quantity(self) -> str:
        """What a difference in test accuracy is called."""
        return "contribution" if self.ablation else "gain"

    @property
    def subjects(self) -> list[str]:
        """What each gain is of: the arms; in an ablation, the parts that they lack."""
        if not self.ablation:
            return self.labels
        parts = [
            ALL_PARTS if label == NONE else label.removeprefix(WITHOUT).replace("-and-", " and ")
            for label in self.labels[1:]
        ]
        return [self.labels[0], *parts]

    @property
    def headings(self) -> list[str]:
        """The headings of the columns."""
        return [ABLATION_HEADINGS.get(c, c) if self.ablation else c for c in COLUMNS]

    @property
    def meanings(self) -> dict[str, str]:
        """Explanations of the columns, by their headings."""
        known = ABLATION_MEANINGS if self.ablation else MEANINGS
        pairs = zip(COLUMNS, self.headings, strict=True)
        return {heading: known[column] for column, heading in pairs if column in known}

    def gains(self, index: int) -> dict[int, float]:
        """Return the gain of an arm in test accuracy with each seed, a fraction."""
        sign = -1 if self.ablation else 1
        arm, baseline = self.results[index], self.results[0]
        return {
            seed: sign * (arm[seed].accuracy - baseline[seed].accuracy)
            for seed in self.comparisons[index].seeds
        }

    @cached_property
    def best(self) -> list[int]:
        """Indices of the arms that are statistically tied for best, the highest mean first."""
        return tied_for_best(self.results)


def gain_tables(collection: Collection) -> list[GainTable]:
    """Compare the variants at each point of the axes; a single variant: compare the points."""
    study = collection.study
    with_results = [arm for arm in study.arms() if collection.results[arm]]
    if len(study.variants) == 1 and study.axes:
        axis = " x ".join(study.axes)
        return [_table("", with_results, collection, axis)] if with_results else []
    points = list(dict.fromkeys(arm.point for arm in with_results))
    found = []
    for point in points:
        arms = [arm for arm in with_results if arm.point == point]
        # The baseline has no results yet.
        if arms[0].variant == study.variants[0]:
            title = ", ".join(f"{key}={value}" for key, value in point)
            found.append(_table(title, arms, collection))
    return found


def _table(
    title: str, arms: list[Arm], collection: Collection, axis: str | None = None
) -> GainTable:
    study, results = collection.study, [collection.results[arm] for arm in arms]
    if axis is None:
        check_pairs(study, arms, results)
    comparisons = compare(results, lacking=study.design in LACKING)
    table = GainTable(title, arms, list(results), comparisons, axis, study.design)
    return with_outcomes(table, study.effect / 100) if study.effect else table


def with_outcomes(table: GainTable, effect: float) -> GainTable:
    """Compare the gains with a smallest effect of interest.

    Holm's correction covers the tests of equivalence too. Of an arm with runs at chance accuracy,
    and without a baseline that trains, it cannot be said that it is practically equal.

    Args:
        table: The table.
        effect: Smallest effect of interest, a fraction.
    """
    compared = table.comparisons[1:]
    differences = [list(table.gains(index).values()) for index in range(1, len(table.arms))]
    overlaps = [
        split_overlap(table.results[0], table.results[index], one.seeds) if one.seeds else 0.0
        for index, one in enumerate(compared, 1)
    ]
    equal = holm(
        [
            equivalence_p_value(values, effect, overlap) if values else None
            for values, overlap in zip(differences, overlaps, strict=True)
        ]
    )
    judged = [table.comparisons[0]]
    for one, values, overlap, p in zip(compared, differences, overlaps, equal, strict=True):
        failed = one.at_chance or table.comparisons[0].at_chance
        outcome, more = "", None
        if values:
            # 1: not shown, because an undefined p-value is not below 5 %.
            outcome = classify(
                values,
                effect,
                overlap,
                1.0 if one.p_holm is None else one.p_holm,
                1.0 if p is None or failed else p,
            )
        if outcome == NOT_KNOWN and failed:
            outcome = ""
        if outcome == NOT_KNOWN:
            more = pairs_needed(values, effect, overlap, len(compared))
        judged.append(replace(one, outcome=outcome, more_seeds=more))
    return replace(table, comparisons=judged, effect=effect)


def check_pairs(study: Study, arms: Sequence[Arm], results: Sequence[Mapping[int, Result]]) -> None:
    """Check that the runs of each pair were tested on the same examples.

    Raises:
        InputError: With the same seed, a variant and the baseline have different test examples.
    """
    for arm, found in zip(arms[1:], results[1:], strict=True):
        for seed in sorted(set(found) & set(results[0])):
            if found[seed].test_set != results[0][seed].test_set:
                first, second = (study.run_folder(one, seed) for one in (arms[0], arm))
                raise InputError(
                    f"{first} and {second} have different test examples and cannot be compared; "
                    "delete the older one, then start the study again"
                )


def format_points(estimate: Estimate | None, sign: bool = True) -> str:
    """Format a fraction in percentage points.

    Example:
        >>> format_points(Estimate(0.0123))
        '+1.23'
    """
    return "" if estimate is None else f"{100 * estimate.mean:{'+' if sign else ''}.2f}"


def format_interval(estimate: Estimate | None) -> str:
    """Format an interval of fractions in points; "none" if too few seeds, or seeds that agree."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return "none"
    return f"{100 * estimate.low:+.2f} to {100 * estimate.high:+.2f}"


def format_change(
    estimate: Estimate | None, short: bool, scale: float = 1.0, digits: int = 3
) -> str:
    """Format a change, with its interval unless `short`; a dash if it was not measured.

    Example:
        >>> format_change(Estimate(-0.0512, -0.06, -0.04), short=False)
        '-0.051 (-0.060 to -0.040)'
        >>> format_change(None, short=False)
        '-'
    """
    if estimate is None:
        return "-"
    mean, low, high = (
        None if end is None else f"{scale * end:+.{digits}f}"
        for end in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}" if short or low is None else f"{mean} ({low} to {high})"


def rows(table: GainTable, short: bool = False) -> list[list[str]]:
    """Return the cells of the gain table: one row per arm, columns as in `COLUMNS`.

    Args:
        table: The table.
        short: Omit the intervals of the last epoch and of the likelihood.
    """
    written = []
    for label, one in zip(table.subjects, table.comparisons, strict=True):
        deviation = "" if one.deviation is None else f" ± {100 * one.deviation:.2f}"
        at_chance = f", {len(one.at_chance)} at chance" if one.at_chance else ""
        steps = f"x{one.steps.mean:.2f}" if one.steps else ""
        if one.gain is not None and one.steps is None:
            steps = f"reached {one.reached} of {len(one.seeds)}"
        written.append(
            [
                label,
                f"{len(one.accuracies)}{at_chance}",
                f"{100 * one.mean:.2f}{deviation}",
                format_points(one.gain) or ("recipe" if table.ablation else "baseline"),
                format_interval(one.gain),
                format_interval(one.gain_examples),
                "" if one.p_holm is None else f"{one.p_holm:.2g}",
                format_change(one.gain_last, short, 100, 2) if one.gain else "",
                format_change(one.loss, short) if one.gain else "",
                format_points(one.gap),
                format_points(one.calibration),
                steps,
                f"x{one.seconds.mean:.2f}" if one.seconds else "",
                f"x{one.memory.mean:.2f}" if one.memory else "",
            ]
        )
    return written


def markdown(table: GainTable) -> str:
    """Return the gain table in Markdown."""
    lines = [table.headings, ["---"] * len(COLUMNS), *rows(table)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def count(number: int, noun: str) -> str:
    """Return a number and its noun.

    Example:
        >>> count(1, "seed"), count(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def join(names: Sequence[str]) -> str:
    """Join names to a list; of more than four, only three are named.

    Example:
        >>> join(["a", "b", "c"]), join(["a", "b", "c", "d", "e"])
        ('a, b and c', 'a, b, c and 2 more')
    """
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])
