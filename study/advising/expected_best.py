"""Expected best of n trials: what a tuning budget buys (Dodge et al. 2019, "Show Your Work")."""

from collections.abc import Sequence

import numpy as np


def expected_best(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return mean and standard deviation of the highest of n values, for n from 1 to all.

    The n values are drawn with replacement from those observed, so that the distribution function
    of their maximum is that of one value to the power n.

    Args:
        values: Validation accuracy of each trial.

    Example:
        >>> [(round(mean, 3), round(deviation, 3)) for mean, deviation in expected_best([0.5, 0.7])]
        [(0.6, 0.1), (0.65, 0.087)]
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    below = np.arange(len(ordered) + 1) / max(len(ordered), 1)
    found = []
    for number in range(1, len(ordered) + 1):
        mass = np.diff(below**number)
        mean = float(mass @ ordered)
        found.append((mean, float(np.sqrt(mass @ (ordered - mean) ** 2))))
    return found
