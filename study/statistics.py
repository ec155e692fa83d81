"""The gain of a regularizer and its uncertainty.

Runs are paired: with the same seed, all variants have the same data in the same order and, in
layers that they share, the same initial weights. Only the regularizer differs, so differences are
taken within each seed before they are averaged.

There are two 95 % intervals. The t interval over seeds covers the choice of seeds, for this test
set. The interval over seeds and test examples also covers the choice of test examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special, stats

from study.results import Result, same_test_examples

LEVEL = 0.95
# No interval with fewer seeds: with two, the t interval extends 12.7 standard errors each way.
FEWEST_SEEDS = 3
# Probability that a planned study finds a gain of the expected size.
POWER = 0.8
# No plan needs more seeds.
MOST_SEEDS = 100
# Tolerance for rounding errors when accuracies are compared.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean of paired differences.

    Args:
        mean: The mean.
        low: Lower end of the 95 % interval; None if there is no interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_estimate(differences: Sequence[float], overlap: float = 0.0) -> Estimate:
    """Estimate a mean with its t interval (Student 1908).

    If each seed has its own split, seeds share training and test examples, so their differences
    are correlated. The variance of the mean is then estimated as
    `s2 * (1 / n + n_test / n_train)` (Nadeau & Bengio 2003).

    Equal differences give no interval, because their standard deviation is zero: on few test
    examples, three seeds can gain the same number by chance. If all are zero, so is the interval.

    Args:
        differences: One per seed.
        overlap: `n_test / n_train` if each seed has its own split, otherwise 0.

    Example:
        >>> paired_estimate([1.0, 2.0])
        Estimate(mean=1.5, low=None, high=None)
    """
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if len(values) < FEWEST_SEEDS:
        return Estimate(mean)
    if np.ptp(values) < ROUNDING:
        return Estimate(mean) if abs(mean) > ROUNDING else Estimate(0.0, 0.0, 0.0)
    half = _quantile(len(values) - 1) * standard_error(values, overlap)
    return Estimate(mean, mean - half, mean + half)


def p_value(differences: Sequence[float], overlap: float = 0.0) -> float | None:
    """Return the two-sided p-value of a paired t test for zero mean; None if it is undefined.

    Args:
        differences: One per seed.
        overlap: As in `paired`.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS:
        return None
    if np.ptp(values) < ROUNDING:
        return None if abs(values.mean()) > ROUNDING else 1.0
    errors = abs(float(values.mean())) / standard_error(values, overlap)
    return float(2 * stats.t.sf(errors, len(values) - 1))


def seeds_to_settle(
    differences: Sequence[float], comparisons: int, overlap: float = 0.0
) -> int | None:
    """Return the number of paired seeds that would show the gain in 80 % of studies.

    It is the sample size of a two-sided paired t test at the 5 % level, divided by the number of
    comparisons (Bonferroni, as Holm's first step), if the true mean and deviation are those of the
    differences. From few seeds both are rough, and so is the number.

    Args:
        differences: One per seed.
        comparisons: Number of variants that are compared with the baseline.
        overlap: As in `paired_estimate`.

    Returns:
        The number of seeds, larger than that of the differences; None if there are fewer than
        three, if all are equal, or if 100 seeds are too few.

    Example:
        >>> seeds_to_settle([0.02, 0.05, 0.0, 0.03], comparisons=1)
        8
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS or np.ptp(values) < ROUNDING:
        return None
    numbers = np.arange(len(values) + 1, MOST_SEEDS + 1)
    errors = values.std(ddof=1) * np.sqrt(1 / numbers + overlap)
    power = detection_power(float(values.mean()), errors, numbers, (1 - LEVEL) / comparisons)
    enough = numbers[power >= POWER]
    return int(enough[0]) if len(enough) else None


def detection_power(
    mean: float,
    error: np.ndarray | float,
    pairs: np.ndarray | int,
    level: float = 1 - LEVEL,
) -> np.ndarray:
    """Return the probability that a two-sided paired t test finds a mean.

    Args:
        mean: True mean.
        error: Standard error of the estimated mean.
        pairs: Number of pairs.
        level: Level of the test.
    """
    threshold = stats.t.isf(level / 2, pairs - 1)
    return np.asarray(stats.nct.sf(threshold, pairs - 1, abs(mean) / error))


def standard_error(values: np.ndarray, overlap: float) -> float:
    """Return the standard error of the mean (Nadeau & Bengio 2003), as in `paired_estimate`."""
    return float(values.std(ddof=1) * np.sqrt(1 / len(values) + overlap))


def _quantile(freedom: float) -> float:
    # The same as `stats.t.ppf`, which takes 70 times as long to check its arguments.
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple comparisons (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def over_seeds_and_examples(table: np.ndarray) -> Estimate:
    """Estimate a mean over random seeds and random test examples, which all seeds share.

    Seeds and examples are crossed random effects: entry (s, e) is the mean plus a seed effect, an
    example effect and their interaction. From the mean squares of the two-way layout, the variance
    of the mean is estimated as

        (MS_seeds + MS_examples - MS_both) / (n * m)

    for n seeds and m examples. `MS_seeds / (n * m)` is the `s2 / n` of the t interval over seeds.
    It already includes the interaction, so `MS_both` is subtracted from `MS_examples`. Variances
    are not negative: `MS_seeds` and `MS_examples` are raised to `MS_both` if they are smaller. The
    degrees of freedom are Satterthwaite's (1946). With three seeds they often far exceed those of
    the seeds, and the interval would be narrower than the one over seeds; it is then widened to it.

    Args:
        table: (seeds, examples) differences: 1 if only the variant is correct, -1 if only the
            baseline is.
    """
    seeds, examples = table.shape
    seed_means = table.mean(axis=1)
    over_seeds = paired_estimate(seed_means.tolist())
    if over_seeds.low is None or over_seeds.high is None or examples < 2 or not table.any():
        return over_seeds
    if np.ptp(seed_means) < ROUNDING:
        # Predictions changed, but no seed gained: the interval is undefined.
        return Estimate(over_seeds.mean)
    example_means = table.mean(axis=0)
    mean = float(seed_means.mean())
    both = table - seed_means[:, None] - example_means + mean
    of_seeds = examples * float(seed_means.var(ddof=1))
    of_examples = seeds * float(example_means.var(ddof=1))
    rest = (seeds - 1) * (examples - 1)
    of_both = float((both**2).sum()) / rest
    seeds_part, seeds_freedom = max((of_seeds, seeds - 1), (of_both, rest))
    total = seeds_part + max(of_examples - of_both, 0.0)
    freedom = total**2 / (
        seeds_part**2 / seeds_freedom + of_examples**2 / (examples - 1) + of_both**2 / rest
    )
    half = _quantile(freedom) * float(np.sqrt(total / table.size))
    half = max(half, over_seeds.high - mean)
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """One arm compared with the baseline; accuracies, gaps and errors are fractions.

    Args:
        seeds: The seeds that both have.
        accuracies: Test accuracy by seed, including seeds that the baseline lacks.
        at_chance: Seeds whose training stayed at chance accuracy.
        gain: Gain in test accuracy, with the t interval over seeds.
        gain_examples: The same gain, with the interval over seeds and test examples; None if the
            two arms were tested on different examples.
        gain_last: Gain with the weights of the last epoch; None if a run did not test them.
        loss: Change of the negative log-likelihood of the test labels, in nats.
        loss_calibrated: The same after temperature scaling; None if a run has no such loss.
        p: p-value of the paired t test for no gain; None with fewer than three seeds.
        p_holm: The same after Holm's correction for the number of variants.
        outcome: What is known of the gain if there is a smallest effect of interest: `gains`,
            `loses`, `practically equal` or `not known yet`; empty if there is none.
        more_seeds: For `not known yet`, about how many more seeds would tell; None if unknown or
            more than 100 in total.
        seeds_needed: Number of seeds that would make a gain of this size significant with a
            probability of 80 %; None if unknown or more than 100.
        gap: Change of the generalization gap.
        calibration: Change of the expected calibration error.
        steps: Ratio of the steps needed to reach the baseline's best validation accuracy; None if
            any seed did not reach it.
        reached: Number of seeds that reached it.
        seconds: Ratio of the seconds per step.
        memory: Ratio of the peak memory.
    """

    seeds: list[int]
    accuracies: dict[int, float]
    at_chance: list[int] = field(default_factory=list)
    gain: Estimate | None = None
    gain_examples: Estimate | None = None
    gain_last: Estimate | None = None
    loss: Estimate | None = None
    loss_calibrated: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    seeds_needed: int | None = None
    outcome: str = ""
    more_seeds: int | None = None
    gap: Estimate | None = None
    calibration: Estimate | None = None
    steps: Estimate | None = None
    reached: int = 0
    seconds: Estimate | None = None
    memory: Estimate | None = None

    @property
    def mean(self) -> float:
        """Mean test accuracy."""
        return float(np.mean(list(self.accuracies.values())))

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the test accuracy over seeds."""
        values = list(self.accuracies.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def significant(self) -> bool:
        """Whether the gain differs from zero at the 5 % level, after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL

    @property
    def only_uncorrected(self) -> bool:
        """Whether the interval excludes zero, but the gain is not significant once corrected."""
        return self.gain is not None and self.gain.excludes_zero and not self.significant


def compare(arms: Sequence[Mapping[int, Result]], lacking: bool = False) -> list[Comparison]:
    """Compare arms with the first of them.

    Args:
        arms: For each arm, its results by seed.
        lacking: The other arms are the first one without a part. A gain is then what the part
            contributes: the first arm compared with the one that lacks it.
    """
    baseline = arms[0]
    compared = []
    for arm in arms[1:]:
        before, after = (arm, baseline) if lacking else (baseline, arm)
        one = _compare_pair(before, after, len(arms) - 1)
        own = _unpaired(arm)
        compared.append(replace(one, accuracies=own.accuracies, at_chance=own.at_chance))
    corrected = holm([one.p for one in compared])
    return [
        _unpaired(baseline),
        *(replace(one, p_holm=p) for one, p in zip(compared, corrected, strict=True)),
    ]


def _unpaired(arm: Mapping[int, Result]) -> Comparison:
    return Comparison(
        sorted(arm),
        {seed: arm[seed].accuracy for seed in sorted(arm)},
        [seed for seed in sorted(arm) if arm[seed].at_chance],
    )


def _compare_pair(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], comparisons: int
) -> Comparison:
    unpaired = _unpaired(arm)
    seeds = sorted(set(baseline) & set(arm))
    if not seeds:
        return replace(unpaired, seeds=[])
    overlap = split_overlap(baseline, arm, seeds)

    def change(figure: Callable[[Result], float]) -> Estimate:
        return paired_estimate([figure(arm[s]) - figure(baseline[s]) for s in seeds], overlap)

    def ratio(figure: Callable[[Result], float]) -> Estimate:
        return _mean_ratio([figure(arm[s]) / figure(baseline[s]) for s in seeds])

    steps = _step_ratios(baseline, arm, seeds)
    gain = change(lambda result: result.accuracy)
    differences = [arm[s].accuracy - baseline[s].accuracy for s in seeds]

    def change_if_all(figure: Callable[[Result], float | None]) -> Estimate | None:
        pairs = [(figure(baseline[s]), figure(arm[s])) for s in seeds]
        found = [new - old for old, new in pairs if old is not None and new is not None]
        return paired_estimate(found, overlap) if len(found) == len(seeds) else None

    return replace(
        unpaired,
        seeds=seeds,
        gain=gain,
        gain_examples=_with_examples(baseline, arm, seeds, gain),
        gain_last=change_if_all(lambda result: result.last_accuracy),
        loss=change(lambda result: result.loss),
        loss_calibrated=change_if_all(lambda result: result.loss_calibrated),
        p=p_value(differences, overlap),
        seeds_needed=seeds_to_settle(differences, comparisons, overlap),
        gap=change(lambda result: result.gap),
        calibration=change(lambda result: result.calibration_error),
        steps=_mean_ratio(steps) if len(steps) == len(seeds) else None,
        reached=len(steps),
        seconds=ratio(lambda result: result.step_seconds),
        memory=ratio(lambda result: result.memory),
    )


def split_overlap(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int]
) -> float:
    """Return `n_test / n_train` if each seed has its own test examples, otherwise 0."""
    if all(same_test_examples(side[seed] for seed in seeds) for side in (baseline, arm)):
        return 0.0
    return max(baseline[seed].test_to_train for seed in seeds)


def _with_examples(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int], gain: Estimate
) -> Estimate | None:
    if any(baseline[seed].test_set != arm[seed].test_set for seed in seeds):
        return None
    if not same_test_examples(baseline[seed] for seed in seeds):
        # Differences between seeds already include those between test examples.
        return gain
    hits = [arm[seed].hits.astype(float) - baseline[seed].hits for seed in seeds]
    return over_seeds_and_examples(np.stack(hits))


def _mean_ratio(ratios: Sequence[float]) -> Estimate:
    """Return the geometric mean of ratios, so that 2 and 1/2 average to 1."""
    logs = paired_estimate(np.log(ratios).tolist())
    low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
    return Estimate(float(np.exp(logs.mean)), low, high)


def _step_ratios(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int]
) -> list[float]:
    ratios = []
    for seed in seeds:
        target = baseline[seed].best_validation
        own, other = baseline[seed].steps_to(target), arm[seed].steps_to(target)
        if own and other:
            ratios.append(other / own)
    return ratios


def tied_for_best(arms: Sequence[Mapping[int, Result]]) -> list[int]:
    """Find the arm with the highest mean and all that are not significantly worse.

    Each is compared with the highest by a paired t test over seeds, with Holm's correction.

    Returns:
        Indices of the arms, the highest mean first; empty with fewer than three seeds.
    """
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))
    if len(seeds) < FEWEST_SEEDS:
        return []
    means = [np.mean([arm[s].accuracy for s in seeds]) for arm in arms]
    top = int(np.argmax(means))
    others = [index for index in range(len(arms)) if index != top]
    p_values = holm(
        [
            p_value(
                [arms[top][s].accuracy - arms[o][s].accuracy for s in seeds],
                split_overlap(arms[top], arms[o], seeds),
            )
            for o in others
        ]
    )
    near = [o for o, p in zip(others, p_values, strict=True) if p is None or p >= 1 - LEVEL]
    return [top, *sorted(near, key=lambda index: -means[index])]
