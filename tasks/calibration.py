"""Calibration on validation data: a temperature, and a threshold above which nothing is sure."""

import math
from typing import Any, NamedTuple, Self

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

# Temperatures that are tried, and the accuracy of the logarithm of the best one.
COLDEST, HOTTEST, ACCURACY = 0.02, 100.0, 0.01


class Calibration(NamedTuple):
    """Temperature and threshold of the predictions of a model.

    Args:
        temperature: Divisor of the logits, above 0. Above 1, the model was too confident.
        threshold: Entropy in nats, above which a prediction is not sure.
    """

    temperature: float = 1.0
    threshold: float = math.inf

    @classmethod
    def of(cls, saved: Any) -> Self:
        """Return the calibration that a checkpoint contains; none if `saved` is empty.

        Raises:
            ValueError: It is not a calibration.
        """
        names = [name for name in cls._fields if name in saved] if isinstance(saved, dict) else None
        values = [saved[name] for name in names or ()]
        if names is None or not all(isinstance(value, float) for value in values):
            raise ValueError(f"calibration={saved!r:.60} is not a temperature and a threshold")
        found = cls(**dict(zip(names, values, strict=True)))
        if not 0 < found.temperature < math.inf or math.isnan(found.threshold):
            raise ValueError(f"calibration={saved!r:.60} has a temperature above 0 and a threshold")
        return found


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit the temperature, then choose the threshold at this temperature.

    Shape:
        logits: (examples, classes), or (passes, examples, classes) of Monte Carlo dropout. labels:
        (examples,).
    """
    passes = logits.float().view(-1, *logits.shape[-2:])
    if not bool(torch.isfinite(passes).all()):
        return Calibration()
    temperature = fit_temperature(passes, labels)
    mean = (passes / temperature).softmax(2).mean(0)
    right = mean.argmax(1) == labels
    return Calibration(temperature, not_sure_above(torch.special.entr(mean).sum(1), right))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the smallest cross-entropy (Guo et al. 2017).

    Of several passes it is the cross-entropy of their mean probabilities. Labels are smoothed as if
    one further example were wrong (Platt 1999): without a mistake, the best temperature would be 0.

    Shape:
        logits: (examples, classes) or (passes, examples, classes). labels: (examples,).

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> round(fit_temperature(10 * logits, labels) / fit_temperature(logits, labels), 1)
        10.0
    """
    passes = logits.float().view(-1, *logits.shape[-2:])
    examples, classes = passes.shape[1:]
    smoothing = 1 / (examples + 2)
    # Unlike in `F.cross_entropy`, only the other classes get the smoothing.
    other = smoothing / max(1, classes - 1)
    rows = torch.arange(examples)

    def cross_entropy(log_temperature: float) -> float:
        log_p = (passes * math.exp(-log_temperature)).log_softmax(2)
        log_mean = log_p[0] if len(log_p) == 1 else log_p.logsumexp(0) - math.log(len(log_p))
        true = log_mean[rows, labels].mean()
        return float(-(1 - smoothing - other) * true - other * log_mean.sum(1).mean())

    limits = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(
        cross_entropy, bounds=limits, method="bounded", options={"xatol": ACCURACY}
    )
    return math.exp(float(found.x))


def not_sure_above(entropy: Tensor, right: Tensor) -> float:
    """Return the threshold above which there are as many predictions as there are wrong ones.

    As a detector of wrong predictions, it has equal precision and recall (the break-even point,
    Lewis 1992). If none is wrong, it is the largest entropy; if all are, it is below the smallest.

    Shape:
        entropy: (examples,), in nats. right: (examples,), whether a prediction is right.

    Example:
        >>> entropy = torch.tensor([0.1, 0.5, 0.9])
        >>> round(not_sure_above(entropy, torch.tensor([True, True, False])), 2)
        0.5
    """
    ordered = entropy.sort(descending=True).values.tolist()
    mistakes = len(ordered) - int(right.sum())
    return float([*ordered, -1.0][mistakes])
