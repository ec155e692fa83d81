"""What the database of a search has about each seed of a trial, and how certain it is."""

import math
from collections.abc import Sequence
from statistics import variance

import optuna
from scipy import stats

# Attributes of a trial in the database: its folder, the result of each seed, and the seed that
# failed, with its error.
FOLDER, RESULTS, FAILED = "folder", "results", "failed"
# Half width of a 95 % interval in standard deviations.
INTERVAL_WIDTH = 1.96
LEVEL = 0.95

AnyTrial = optuna.Trial | optuna.trial.FrozenTrial


def save_result(
    trial: optuna.Trial, seed: int, accuracy: float, examples: int, validation_set: str
) -> None:
    """Save the result of a seed.

    Args:
        trial: The trial.
        seed: The seed.
        accuracy: Highest validation accuracy, a fraction.
        examples: Number of validation examples.
        validation_set: Hash of the indices of these examples.
    """
    result = {"accuracy": accuracy, "examples": examples, "validation_set": validation_set}
    trial.set_user_attr(RESULTS, {**trial.user_attrs.get(RESULTS, {}), str(seed): result})


def accuracies(trial: AnyTrial) -> dict[int, float]:
    """Return the accuracies of the complete seeds."""
    results = trial.user_attrs.get(RESULTS, {})
    return {int(seed): result["accuracy"] for seed, result in results.items()}


def validation_examples(trials: Sequence[AnyTrial]) -> int | None:
    """Return the number of validation examples of a search; None if its trials are older.

    If each seed holds out examples of its own, it is the sum over the seeds.
    """
    sizes: dict[str, int] = {}
    for trial in trials:
        for result in trial.user_attrs.get(RESULTS, {}).values():
            sizes[result["validation_set"]] = result["examples"]
    return sum(sizes.values()) or None


def seed_spread(trials: Sequence[AnyTrial]) -> tuple[float, float] | None:
    """Estimate the variation between the seeds of a trial, pooled over the trials.

    Returns:
        The standard deviation over the seeds of a trial, and the half width of the 95 % interval of
        a trial's mean over its seeds, by Student's t; None if the trials have one seed each.
    """
    found = [list(one.values()) for one in map(accuracies, trials) if len(one) > 1]
    if not found:
        return None
    # Each trial adds its number of seeds minus one.
    freedom = sum(len(values) - 1 for values in found)
    deviation = math.sqrt(sum((len(values) - 1) * variance(values) for values in found) / freedom)
    quantile = float(stats.t.isf((1 - LEVEL) / 2, freedom))
    return deviation, quantile * deviation / math.sqrt(max(map(len, found)))


def sampling_half_width(accuracy: float, examples: int) -> float:
    """Return the half width of the 95 % binomial interval of an accuracy.

    Example:
        >>> round(sampling_half_width(0.96, 339), 4)
        0.0209
    """
    return INTERVAL_WIDTH * math.sqrt(accuracy * (1 - accuracy) / examples)
