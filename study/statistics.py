"""How much a regularizer gained, and how sure that is.

Runs are paired: with one seed, all variants have the same data in the same order and, where they
share a layer, the same first weights. What differs is the regularizer, so that the difference is
taken seed by seed before anything is averaged.

Two intervals answer two questions. The t interval over seeds: had other seeds been drawn, with
this test set? The bootstrap over seeds and test examples together: with other test examples too?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from study.results import Result, same_everywhere

LEVEL = 0.95
# Fewer seeds give no interval: of two, the t interval is 12.7 standard errors wide.
FEWEST_SEEDS = 3
DRAWS = 5000
# Differences of shares of test examples that are closer than this are equal, but for rounding.
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


def paired(differences: Sequence[float]) -> Estimate:
    """Estimate a mean by the t distribution (Student 1908).

    Equal differences have no spread that an interval could be made of: on few test examples three
    seeds may well gain the same number of them. Only where nothing changed at all it is zero.

    Args:
        differences: One of each seed.

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
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Estimate(mean, float(interval.low), float(interval.high))


def p_value(differences: Sequence[float]) -> float | None:
    """Test whether a mean of paired differences is zero, two-sided; None if that cannot be told."""
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS:
        return None
    if np.ptp(values) < ROUNDING:
        return None if abs(values.mean()) > ROUNDING else 1.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


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


def bootstrap(
    baseline: Mapping[int, Result], variant: Mapping[int, Result], draws: int = DRAWS
) -> Estimate:
    """Estimate the gain in test accuracy by drawing seeds and test examples anew, both at once.

    Where all seeds share their test examples, a draw takes the same ones for all of them: then they
    are a factor of their own, crossed with the seeds (Owen 2007). Where each seed has its own test
    examples, each draws among its own. Percentiles of a few seeds are a little too narrow.

    Args:
        baseline: Of each seed.
        variant: Of the same seeds.
        draws: How many.

    Returns:
        Gain in shares; the ends of its interval are None with fewer than three seeds.
    """
    seeds = sorted(baseline)
    differences = [variant[s].hits.astype(float) - baseline[s].hits.astype(float) for s in seeds]
    mean = float(np.mean([one.mean() for one in differences]))
    if len(seeds) < FEWEST_SEEDS:
        return Estimate(mean)
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(seeds), size=(draws, len(seeds)))
    if same_everywhere([*baseline.values(), *variant.values()]):
        means = np.take_along_axis(_resampled(np.stack(differences, axis=1), draws, rng), chosen, 1)
    else:
        means = np.empty(chosen.shape)
        for place, one in enumerate(differences):
            drawn = chosen == place
            # A seed that is drawn twice draws its examples twice.
            means[drawn] = _resampled(one[:, None], int(drawn.sum()), rng)[:, 0]
    low, high = np.quantile(means.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))


def _resampled(table: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of a table (examples, seeds) with replacement; return means (draws, seeds)."""
    # Many rows are alike: how often each kind is drawn is all that matters, and one draw of that.
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    drawn = rng.multinomial(len(table), counts / len(table), draws)
    means: np.ndarray = drawn @ kinds / len(table)
    return means


@dataclass(frozen=True)
class Comparison:
    """What one arm does against the baseline; accuracies, gaps and errors as shares.

    Args:
        seeds: Those that both have.
        accuracies: Test accuracy of each seed of the arm, paired or not.
        gain: In test accuracy, by the t interval over seeds.
        gain_bootstrap: The same, by the bootstrap over seeds and test examples.
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
    gain: Estimate | None = None
    gain_bootstrap: Estimate | None = None
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
    first = Comparison(sorted(baseline), {s: baseline[s].accuracy for s in sorted(baseline)})
    return [
        first,
        *(
            Comparison(**(one.__dict__ | {"p_holm": p}))
            for one, p in zip(compared, corrected, strict=True)
        ),
    ]


def _against(baseline: Mapping[int, Result], arm: Mapping[int, Result]) -> Comparison:
    accuracies = {seed: arm[seed].accuracy for seed in sorted(arm)}
    seeds = sorted(set(baseline) & set(arm))
    if not seeds:
        return Comparison([], accuracies)

    def change(figure: Callable[[Result], float]) -> Estimate:
        return paired([figure(arm[s]) - figure(baseline[s]) for s in seeds])

    def ratio(figure: Callable[[Result], float]) -> Estimate:
        return _ratio([figure(arm[s]) / figure(baseline[s]) for s in seeds])

    steps = _steps(baseline, arm, seeds)
    gains = [arm[s].accuracy - baseline[s].accuracy for s in seeds]
    return Comparison(
        seeds,
        accuracies,
        gain=paired(gains),
        gain_bootstrap=bootstrap({s: baseline[s] for s in seeds}, {s: arm[s] for s in seeds}),
        p=p_value(gains),
        gap=change(lambda result: result.gap),
        calibration=change(lambda result: result.calibration_error),
        steps=_ratio(steps) if len(steps) == len(seeds) else None,
        reached=len(steps),
        seconds=ratio(lambda result: result.step_seconds),
        memory=ratio(lambda result: result.memory),
    )


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
        [p_value([arms[top][s].accuracy - arms[o][s].accuracy for s in seeds]) for o in others]
    )
    near = [o for o, p in zip(others, p_values, strict=True) if p is None or p >= 1 - LEVEL]
    return [top, *sorted(near, key=lambda place: -means[place])]
