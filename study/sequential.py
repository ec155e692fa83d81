"""Repeated looks at paired differences that keep the error at 5 %.

A study that adds seeds and tests after each round has several chances to find a gain that is not
there. Here each look may use up a part of the 5 % (alpha spending, Lan & DeMets 1983), and its
interval is as wide as that part demands (repeated confidence intervals, Jennison & Turnbull 1989).
The intervals of all looks together contain the true mean with a probability of at least 95 %, so
the study may stop at any of them, for any reason. `docs/statistics.md` has the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from study.statistics import FEWEST_SEEDS, LEVEL, ROUNDING, Estimate, holm

ALPHA = 1 - LEVEL
# Of the error probability that is left, the last planned look spends 80 %. The rest is for a study
# that is continued.
SPENT_AT_END = 0.8
# Simulated studies without an effect, from which the critical values are taken.
PATHS = 400_000
# With fewer paths beyond the critical value, an upper bound replaces it.
FEWEST_PATHS = 200
# Error probabilities with a critical value each; p-values are interpolated between them.
LEVELS = np.sort(np.append(np.geomspace(1e-6, 1.0, 61), ALPHA))


@dataclass(frozen=True)
class Boundary:
    """The critical value of one look, given the looks before it.

    Args:
        looks: Number of pairs and error probability spent so far, of each look up to this one.
    """

    looks: tuple[tuple[int, float], ...]

    @property
    def pairs(self) -> int:
        """Number of paired differences at this look."""
        return self.looks[-1][0]

    @property
    def alpha_spent(self) -> float:
        """Error probability spent up to this look."""
        return self.looks[-1][1]

    @property
    def critical(self) -> float:
        """Critical value of the paired t statistic, at the two-sided level of 5 % in all looks."""
        return float(self.criticals[np.searchsorted(LEVELS, ALPHA)])

    @property
    def criticals(self) -> np.ndarray:
        """Critical value for each of `LEVELS`, from high to low."""
        return _simulate(self.looks).criticals

    def estimate(self, differences: Sequence[float]) -> Estimate:
        """Estimate the mean with its repeated confidence interval.

        Equal differences give no interval, as in `paired_estimate`.

        Args:
            differences: One per pair.
        """
        values = self._checked(differences)
        mean = float(values.mean())
        if np.ptp(values) < ROUNDING:
            return Estimate(mean) if abs(mean) > ROUNDING else Estimate(0.0, 0.0, 0.0)
        half = self.critical * float(values.std(ddof=1) / np.sqrt(len(values)))
        return Estimate(mean, mean - half, mean + half)

    def p_value(self, differences: Sequence[float]) -> float | None:
        """Return the repeated p-value for zero mean: below 5 % if the interval excludes zero.

        It is at least 1e-6; None if all differences are equal and not zero.

        Args:
            differences: One per pair.
        """
        values = self._checked(differences)
        mean = float(values.mean())
        if np.ptp(values) < ROUNDING:
            return None if abs(mean) > ROUNDING else 1.0
        return float(self.p_values(mean / (values.std(ddof=1) / np.sqrt(len(values)))))

    def p_values(self, statistics: np.ndarray | float) -> np.ndarray:
        """Return the repeated p-values of paired t statistics."""
        return _p_values(statistics, self.criticals)

    def _checked(self, differences: Sequence[float]) -> np.ndarray:
        if len(differences) != self.pairs:
            raise ValueError(f"this look is after {self.pairs} pairs, not {len(differences)}")
        return np.asarray(differences, dtype=float)


def next_boundary(pairs: int, most: int, earlier: Sequence[tuple[int, float]] = ()) -> Boundary:
    """Return the boundary of the next look.

    Of the error probability that is left, the look spends 0.8 times the fraction of the remaining
    pairs that it adds. Neither number may depend on the differences seen so far. A study whose time
    runs out passes its last number of pairs as `most`, before it has seen their results; a study
    that is continued passes a larger one.

    Args:
        pairs: Number of pairs at this look, at least 3.
        most: Number of pairs at the planned end, at least `pairs`.
        earlier: Number of pairs and error probability spent so far, of each look before.

    Example:
        >>> first = next_boundary(5, most=12)
        >>> last = next_boundary(8, most=8, earlier=first.looks)  # the time runs out
        >>> round(first.critical, 1), round(last.critical, 1)
        (3.9, 2.7)
        >>> round(last.alpha_spent, 3)
        0.043
    """
    before, spent = earlier[-1] if earlier else (0, 0.0)
    if pairs < FEWEST_SEEDS:
        raise ValueError(f"a look needs at least {FEWEST_SEEDS} pairs, not {pairs}")
    if not before < pairs <= most:
        raise ValueError(f"the number of pairs {pairs} must be above {before} and at most {most}")
    spent += (ALPHA - spent) * SPENT_AT_END * (pairs - before) / (most - before)
    return Boundary((*earlier, (pairs, spent)))


def adjust(primary: float | None, others: Sequence[float | None]) -> list[float | None]:
    """Correct the p-values of all contrasts, so that any false claim has a probability below 5 %.

    The primary contrast, fixed before the data, is tested first, at the full level. Only if it is
    significant are the others tested, with Holm's correction among them (serial gatekeeping,
    Westfall & Krishen 2001).

    Args:
        primary: p-value of the primary contrast; None if it is undefined.
        others: p-values of the other contrasts.

    Returns:
        The corrected p-values, that of the primary contrast first.

    Example:
        >>> adjust(0.02, [0.01, 0.2])
        [0.02, 0.02, 0.2]
        >>> adjust(0.3, [0.001])
        [0.3, 0.3]
    """
    gate = 1.0 if primary is None else primary
    return [primary, *(None if p is None else max(gate, p) for p in holm(others))]


@dataclass(frozen=True)
class _Simulated:
    """Studies without an effect after the last of some looks.

    Args:
        sums: Sum of the differences of each study.
        squares: Sum of their squares.
        p_values: Smallest p-value of each study at the looks so far.
        criticals: Critical values for `LEVELS`.
    """

    sums: np.ndarray
    squares: np.ndarray
    p_values: np.ndarray
    criticals: np.ndarray


@lru_cache(maxsize=8)
def _simulate(looks: tuple[tuple[int, float], ...]) -> _Simulated:
    """Simulate t statistics without an effect, whose joint law does not depend on the variance."""
    if len(looks) == 1:
        before, spent = 0, 0.0
        earlier = _Simulated(np.zeros(PATHS), np.zeros(PATHS), np.ones(PATHS), np.zeros(0))
    else:
        (before, spent), earlier = looks[-2], _simulate(looks[:-1])
    pairs, now = looks[-1]
    added = pairs - before
    # A seed for each look: a later look has the same studies as the earlier ones.
    rng = np.random.default_rng(len(looks))
    normal = rng.standard_normal(PATHS)
    sums = earlier.sums + np.sqrt(added) * normal
    rest = 2 * rng.standard_gamma((added - 1) / 2, PATHS) if added > 1 else 0.0
    squares = earlier.squares + normal**2 + rest
    variance = (squares - sums**2 / pairs) / (pairs - 1)
    statistics = np.abs(sums) / np.sqrt(pairs * variance)
    order = np.argsort(-statistics)
    ordered, p_before = statistics[order], earlier.p_values[order]
    criticals = [
        _critical(ordered, p_before, level, level * (now - spent) / ALPHA, pairs)
        for level in LEVELS
    ]
    # A stricter level has a critical value at least as high.
    monotone = np.maximum.accumulate(criticals[::-1])[::-1]
    p_values = np.minimum(earlier.p_values, _p_values(statistics, monotone))
    return _Simulated(sums, squares, p_values, monotone)


def _critical(
    ordered: np.ndarray, p_before: np.ndarray, level: float, spend: float, pairs: int
) -> float:
    """Return the value that a fraction `spend` of all studies exceeds here and not before.

    Args:
        ordered: t statistics of all studies, the largest first.
        p_before: Smallest p-value of each at the earlier looks.
        level: Error probability of all looks.
        spend: Error probability of this look.
        pairs: Number of pairs.
    """
    wanted = int(spend * len(ordered))
    if wanted < FEWEST_PATHS:
        # Exceeding here and not before is at most as probable as exceeding here.
        return float(stats.t.isf(spend / 2, pairs - 1))
    not_before = np.flatnonzero(p_before > level)
    return float(ordered[not_before[wanted - 1]]) if wanted <= len(not_before) else 0.0


def _p_values(statistics: np.ndarray | float, criticals: np.ndarray) -> np.ndarray:
    # `interp` wants increasing arguments, and the criticals decrease with the level.
    logs: np.ndarray = np.interp(np.abs(statistics), criticals[::-1], np.log(LEVELS)[::-1])
    return np.asarray(np.exp(logs))
