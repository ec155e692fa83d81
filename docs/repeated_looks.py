"""Simulated studies that look repeatedly at their paired differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from study.sequential import ALPHA, Boundary, adjust, next_boundary

STUDIES = 20_000
PLANNED = [5, 8, 12, 20]


@dataclass(frozen=True)
class Naive:
    """A boundary that ignores the looks before: the t interval at each look."""

    pairs: int
    looks: tuple[tuple[int, float], ...] = ()

    @property
    def critical(self) -> float:
        """The quantile of Student's t."""
        return float(stats.t.isf(ALPHA / 2, self.pairs - 1))

    def p_values(self, statistics: np.ndarray) -> np.ndarray:
        """Return the p-values of the t test."""
        return 2 * stats.t.sf(np.abs(statistics), self.pairs - 1)


@dataclass(frozen=True)
class Ended:
    """Studies at the looks at which they stopped.

    Args:
        pairs: Number of pairs of each study.
        means: Mean of each contrast, (studies, contrasts).
        halves: Half width of its interval.
        p_values: Its p-value before the correction.
    """

    pairs: np.ndarray
    means: np.ndarray
    halves: np.ndarray
    p_values: np.ndarray

    def claims(self, correct: Callable[..., list] = adjust) -> np.ndarray:
        """Return which contrasts are significant after correction, (studies, contrasts)."""
        return np.array([[p < ALPHA for p in correct(row[0], row[1:])] for row in self.p_values])

    def coverage(self, mean: float = 0.0) -> float:
        """Return the fraction of intervals that contain the true mean."""
        return float((np.abs(self.means - mean) <= self.halves).mean())


def naive(pairs: int, most: int, earlier: Sequence[tuple[int, float]]) -> Naive:
    """Return the t interval, whatever the looks before."""
    return Naive(pairs)


def differences(rng: np.random.Generator, gains: Sequence[float], pairs: int) -> np.ndarray:
    """Draw normal differences with standard deviation 1 of several arms and one baseline."""
    arms = rng.standard_normal((STUDIES, len(gains) + 1, pairs)) / np.sqrt(2)
    return arms[:, 1:] - arms[:, :1] + np.array(gains)[:, None]


def statistics_of(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means, standard errors and t statistics; t is 0 if all differences are equal."""
    means = seen.mean(axis=-1)
    errors = seen.std(axis=-1, ddof=1) / np.sqrt(seen.shape[-1])
    return means, errors, np.divide(means, errors, out=np.zeros_like(means), where=errors > 1e-12)


def look_repeatedly(
    drawn: np.ndarray,
    ends: np.ndarray,
    boundary_of: Callable[..., Naive | Boundary] = next_boundary,
    planned: Sequence[int] = PLANNED,
    precision: float = 0.0,
    settled: bool = False,
) -> Ended:
    """Run studies until they stop.

    Args:
        drawn: Differences, (studies, contrasts, pairs).
        ends: Number of pairs at which the time of each study has run out.
        boundary_of: Returns the boundary of a look.
        planned: Numbers of pairs of the planned looks.
        precision: Stop if all intervals are narrower each way.
        settled: Stop if the primary contrast is significant.
    """
    studies, contrasts, _ = drawn.shape
    pairs = np.zeros(studies, int)
    means, halves, p_values = (np.zeros((studies, contrasts)) for _ in range(3))
    for end in np.unique(ends):
        running = np.flatnonzero(ends == end)
        earlier: tuple[tuple[int, float], ...] = ()
        for look in [*(n for n in planned if n < end), int(end)]:
            boundary = boundary_of(look, end if look == end else planned[-1], earlier)
            earlier = boundary.looks
            mean, error, statistic = statistics_of(drawn[running, :, :look])
            half, p = boundary.critical * error, boundary.p_values(statistic)
            stop = (half < precision).all(axis=1) | (settled & (p[:, 0] < ALPHA)) | (look == end)
            rows = running[stop]
            pairs[rows], means[rows] = look, mean[stop]
            halves[rows], p_values[rows] = half[stop], p[stop]
            running = running[~stop]
    return Ended(pairs, means, halves, p_values)
