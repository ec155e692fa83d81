"""How much a regularizer gained, and how sure that is.

Runs are paired: with one seed, all variants have the same data in the same order and, where they
share a layer, the same first weights. What differs is the regularizer, so that the difference is
taken seed by seed before anything is averaged.

Two intervals answer two questions. The t interval over seeds: had other seeds been drawn, with
this test set? The interval over seeds and test examples: with other test examples too?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from study.results import Result, same_everywhere

LEVEL = 0.95
# Fewer seeds give no interval: of two, the t interval is 12.7 standard errors wide.
FEWEST_SEEDS = 3
# Differences of fractions of test examples that are closer than this are equal, but for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean of paired differences.

    Args:
        mean: The mean.
        low: Lower end of the 95 % interval; None with fewer than three seeds.
        high: Its upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval says in which direction it goes."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(differences: Sequence[float], overlap: float = 0.0) -> Estimate:
    """Estimate a mean by the t distribution (Student 1908).

    Where each seed splits the data anew, the seeds have training and test examples in common, and
    their differences are correlated. Nadeau & Bengio (2003) put the variance of the mean at
    `s2 * (1 / n + n_test / n_train)` then.

    Equal differences have no spread that an interval could be made of: on few test examples three
    seeds may well gain the same number of them. Only where nothing changed at all it is zero.

    Args:
        differences: One of each seed.
        overlap: `n_test / n_train` where each seed has a split of its own, otherwise 0.

    Example:
        >>> paired([1.0, 2.0])
        Estimate(mean=1.5, low=None, high=None)
    """
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if len(values) < FEWEST_SEEDS:
        return Estimate(mean)
    if np.ptp(values) < ROUNDING:
        return Estimate(mean) if abs(mean) > ROUNDING else Estimate(0.0, 0.0, 0.0)
    half = _quantile(len(values) - 1) * _standard_error(values, overlap)
    return Estimate(mean, mean - half, mean + half)


def p_value(differences: Sequence[float], overlap: float = 0.0) -> float | None:
    """Test whether a mean of paired differences is zero, two-sided; None if that cannot be told.

    Args:
        differences: One of each seed.
        overlap: As in `paired`.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS:
        return None
    if np.ptp(values) < ROUNDING:
        return None if abs(values.mean()) > ROUNDING else 1.0
    errors = abs(float(values.mean())) / _standard_error(values, overlap)
    return float(2 * stats.t.sf(errors, len(values) - 1))


def _standard_error(values: np.ndarray, overlap: float) -> float:
    return float(values.std(ddof=1) * np.sqrt(1 / len(values) + overlap))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = least
    return corrected


def over_seeds_and_examples(table: np.ndarray) -> Estimate:
    """Estimate a mean over seeds and test examples that all seeds share, both drawn at random.

    Seeds and examples are crossed random effects: entry (s, e) is the mean, plus an effect of the
    seed, of the example, and of both together. With the mean squares of the two-way layout, the
    variance of the mean is estimated by

        (MS_seeds + MS_examples - MS_both) / (n * m)

    for n seeds and m examples. `MS_seeds / (n * m)` is the `s2 / n` of the t interval over seeds:
    it contains the effect of both together already, which is why `MS_both` is subtracted from the
    examples' part. No effect has a variance below zero, so that `MS_seeds` and `MS_examples` count
    at least as much as `MS_both`. The degrees of freedom are Satterthwaite's (1946). With three
    seeds those are often many more than the seeds alone have, and the interval narrower than that
    over seeds: then it is as wide as that one.

    Args:
        table: (seeds, examples) differences; 1 where the variant alone is right, -1 where the
            baseline alone is.
    """
    seeds, examples = table.shape
    seed_means = table.mean(axis=1)
    over_seeds = paired(seed_means.tolist())
    if over_seeds.low is None or over_seeds.high is None or examples < 2 or not table.any():
        return over_seeds
    if np.ptp(seed_means) < ROUNDING:
        # No seed gains, but on different examples: there is no spread to make an interval of.
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
    """What one arm does against the baseline; accuracies, gaps and errors as fractions.

    Args:
        seeds: Those that both have.
        accuracies: Test accuracy of each seed of the arm, paired or not.
        at_chance: Seeds of the arm whose training never left chance.
        gain: In test accuracy, by the t interval over seeds.
        gain_examples: The same, with the interval over seeds and test examples; None if the two
            arms were not tested on the same examples.
        gain_last: In the test accuracy of the last epoch's weights; None if a run has none.
        loss: Change of the negative log-likelihood of the test labels, in nats.
        p: That there is no gain, before Holm's correction; None with fewer than three seeds.
        p_holm: The same, corrected for the number of variants.
        gap: Change of the generalization gap.
        calibration: Change of the expected calibration error.
        steps: Steps to the baseline's best validation accuracy over the baseline's own, a ratio;
            None if in any seed the arm never got there.
        reached: Number of seeds in which it got there.
        seconds: Seconds a step over the baseline's, a ratio.
        memory: Peak memory over the baseline's, a ratio.
    """

    seeds: list[int]
    accuracies: dict[int, float]
    at_chance: list[int] = field(default_factory=list)
    gain: Estimate | None = None
    gain_examples: Estimate | None = None
    gain_last: Estimate | None = None
    loss: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
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
    def shown(self) -> bool:
        """Whether there is a difference to the baseline, after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL


def compare(arms: Sequence[Mapping[int, Result]]) -> list[Comparison]:
    """Compare arms with the first of them.

    Args:
        arms: Results of each by seed.
    """
    baseline = arms[0]
    compared = [_against(baseline, arm) for arm in arms[1:]]
    corrected = holm([one.p for one in compared])
    return [
        _alone(baseline),
        *(replace(one, p_holm=p) for one, p in zip(compared, corrected, strict=True)),
    ]


def _alone(arm: Mapping[int, Result]) -> Comparison:
    return Comparison(
        sorted(arm),
        {seed: arm[seed].accuracy for seed in sorted(arm)},
        [seed for seed in sorted(arm) if arm[seed].at_chance],
    )


def _against(baseline: Mapping[int, Result], arm: Mapping[int, Result]) -> Comparison:
    alone = _alone(arm)
    seeds = sorted(set(baseline) & set(arm))
    if not seeds:
        return replace(alone, seeds=[])
    overlap = split_overlap(baseline, arm, seeds)

    def change(figure: Callable[[Result], float]) -> Estimate:
        return paired([figure(arm[s]) - figure(baseline[s]) for s in seeds], overlap)

    def ratio(figure: Callable[[Result], float]) -> Estimate:
        return _ratio([figure(arm[s]) / figure(baseline[s]) for s in seeds])

    steps = _steps(baseline, arm, seeds)
    gain = change(lambda result: result.accuracy)
    last = [(baseline[s].last_accuracy, arm[s].last_accuracy) for s in seeds]
    gains_last = [new - old for old, new in last if old is not None and new is not None]
    return replace(
        alone,
        seeds=seeds,
        gain=gain,
        gain_examples=_with_examples(baseline, arm, seeds, gain),
        gain_last=paired(gains_last, overlap) if len(gains_last) == len(seeds) else None,
        loss=change(lambda result: result.loss),
        p=p_value([arm[s].accuracy - baseline[s].accuracy for s in seeds], overlap),
        gap=change(lambda result: result.gap),
        calibration=change(lambda result: result.calibration_error),
        steps=_ratio(steps) if len(steps) == len(seeds) else None,
        reached=len(steps),
        seconds=ratio(lambda result: result.step_seconds),
        memory=ratio(lambda result: result.memory),
    )


def split_overlap(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int]
) -> float:
    """Return `n_test / n_train` if the seeds have test examples of their own, otherwise 0."""
    if all(same_everywhere(side[seed] for seed in seeds) for side in (baseline, arm)):
        return 0.0
    return max(baseline[seed].test_to_train for seed in seeds)


def _with_examples(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int], gain: Estimate
) -> Estimate | None:
    if any(baseline[seed].test_set != arm[seed].test_set for seed in seeds):
        return None
    if not same_everywhere(baseline[seed] for seed in seeds):
        # The spread over seeds is one over test examples too.
        return gain
    hits = [arm[seed].hits.astype(float) - baseline[seed].hits for seed in seeds]
    return over_seeds_and_examples(np.stack(hits))


def _ratio(ratios: Sequence[float]) -> Estimate:
    """Average ratios as their logarithms: then twice and half cancel out."""
    logs = paired(np.log(ratios).tolist())
    low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
    return Estimate(float(np.exp(logs.mean)), low, high)


def _steps(
    baseline: Mapping[int, Result], arm: Mapping[int, Result], seeds: Sequence[int]
) -> list[float]:
    ratios = []
    for seed in seeds:
        aim = baseline[seed].best_validation
        own, others = baseline[seed].steps_to(aim), arm[seed].steps_to(aim)
        if own and others:
            ratios.append(others / own)
    return ratios


def indistinguishable(arms: Sequence[Mapping[int, Result]]) -> list[int]:
    """Say which arms could be the best: the one with the highest mean, and all not shown below it.

    Each is compared with the highest, paired by seeds, with Holm's correction.

    Returns:
        Places of the arms, the highest first; none with fewer than three seeds.
    """
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))
    if len(seeds) < FEWEST_SEEDS:
        return []
    means = [np.mean([arm[s].accuracy for s in seeds]) for arm in arms]
    top = int(np.argmax(means))
    others = [place for place in range(len(arms)) if place != top]
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
    return [top, *sorted(near, key=lambda place: -means[place])]
