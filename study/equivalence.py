"""Gains against a smallest effect of interest: a gain, a loss, practically equal, or not known yet.

A gain that is not significant may still be large. Two one-sided tests (Schuirmann 1987) show that
it is small: they reject gains of at least the effect and losses of at least the effect, each at
5 %. This is the case if the 90 % interval of the gain lies between the two.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from study.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    MOST_SEEDS,
    POWER,
    ROUNDING,
    detection_power,
    p_value,
    standard_error,
)

Verdict = Literal["gains", "loses", "practically equal", "not known yet"]
ALPHA = 1 - LEVEL
# Deviations, by their probability, over which the power of an equivalence test is averaged.
DEVIATIONS = (np.arange(200) + 0.5) / 200


def equivalence_p_value(
    differences: Sequence[float], effect: float, overlap: float = 0.0
) -> float | None:
    """Return the p-value of two one-sided paired t tests (Schuirmann 1987).

    It is small if the mean is neither `effect` or more, nor `-effect` or less.

    Args:
        differences: One per seed.
        effect: Smallest effect of interest, above 0, in the unit of the differences.
        overlap: `n_test / n_train` if each seed has its own split, otherwise 0.

    Returns:
        The larger of the two p-values; None with fewer than three seeds or if all differences are
        equal and not zero. If all are zero, so is the p-value.

    Example:
        >>> round(equivalence_p_value([0.002, -0.001, 0.003, 0.0], effect=0.01), 4)
        0.0011
    """
    if effect <= 0:
        raise ValueError(f"the smallest effect of interest must be above 0, not {effect}")
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS:
        return None
    mean = abs(float(values.mean()))
    if np.ptp(values) < ROUNDING:
        return None if mean > ROUNDING else 0.0
    # The test against the nearer end of the zone has the larger p-value.
    return float(stats.t.cdf((mean - effect) / standard_error(values, overlap), len(values) - 1))


def classify(
    differences: Sequence[float],
    effect: float,
    overlap: float = 0.0,
    p: float | None = None,
    p_equal: float | None = None,
) -> Verdict:
    """Say what is known of a gain, at the 5 % level.

    "practically equal" comes first: a gain that is shown to be smaller than the effect is of no
    interest, even if it is shown to be above zero.

    Args:
        differences: One per seed.
        effect: Smallest effect of interest, above 0, in the unit of the differences.
        overlap: `n_test / n_train` if each seed has its own split, otherwise 0.
        p: p-value for no gain, corrected for the number of comparisons; by default that of
            `p_value`, without a correction.
        p_equal: p-value of equivalence, likewise; by default that of `equivalence_p_value`.

    Example:
        >>> gains = [0.021, 0.034, 0.018, 0.029]
        >>> classify(gains, effect=0.01), classify(gains, effect=0.05)
        ('gains', 'practically equal')
        >>> classify([0.03, -0.02, 0.01, 0.0], effect=0.01)
        'not known yet'
    """
    if p is None:
        p = p_value(differences, overlap)
    if p_equal is None:
        p_equal = equivalence_p_value(differences, effect, overlap)
    if p_equal is not None and p_equal < ALPHA:
        return "practically equal"
    if p is not None and p < ALPHA:
        return "gains" if np.mean(differences) > 0 else "loses"
    return "not known yet"


def pairs_needed(
    differences: Sequence[float], effect: float, overlap: float = 0.0, comparisons: int = 1
) -> int | None:
    """Return about how many more paired seeds would tell, in 80 % of studies.

    With them a true gain of `effect` is significant, and a true gain of zero is shown to be
    practically equal, if the true deviation is that of the differences. If there are already so
    many, the mean is between the two: then a true gain of that mean would be told.

    Args:
        differences: One per seed.
        effect: Smallest effect of interest, above 0, in the unit of the differences.
        overlap: `n_test / n_train` if each seed has its own split, otherwise 0.
        comparisons: Number of variants that are compared with the baseline (Bonferroni).

    Returns:
        The number of further seeds; None with fewer than three seeds, if all differences are
        equal, or if 100 seeds in total are too few.

    Example:
        >>> pairs_needed([0.02, -0.01, 0.01, 0.0], effect=0.01)
        12
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < FEWEST_SEEDS or np.ptp(values) < ROUNDING:
        return None
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    level = ALPHA / comparisons

    def enough(number: int) -> bool:
        error = deviation * float(np.sqrt(1 / number + overlap))
        return bool(
            detection_power(effect, error, number, level) >= POWER
            and equivalence_power(0.0, effect, error, number, level) >= POWER
        )

    def enough_for_mean(number: int) -> bool:
        error = deviation * float(np.sqrt(1 / number + overlap))
        return bool(
            detection_power(mean, error, number, level) >= POWER
            or equivalence_power(mean, effect, error, number, level) >= POWER
        )

    wanted = enough_for_mean if enough(len(values)) else enough
    numbers = range(len(values) + 1, MOST_SEEDS + 1)
    return next((number - len(values) for number in numbers if wanted(number)), None)


def equivalence_power(
    mean: float, effect: float, error: float, pairs: int, level: float = ALPHA
) -> float:
    """Return the probability that two one-sided t tests show a mean to be practically equal.

    Args:
        mean: True mean.
        effect: Smallest effect of interest.
        error: Standard error of the estimated mean.
        pairs: Number of pairs.
        level: Level of each test.
    """
    # For an estimated error, the estimated mean must be inside the zone by t errors.
    estimated = error * np.sqrt(stats.chi2.ppf(DEVIATIONS, pairs - 1) / (pairs - 1))
    inside = np.maximum(effect - stats.t.isf(level, pairs - 1) * estimated, 0.0)
    found = stats.norm.cdf((inside - mean) / error) - stats.norm.cdf((-inside - mean) / error)
    return float(found.mean())
