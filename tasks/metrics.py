"""Metrics of predictions, for validation and test."""

import torch
import torch.distributed
from scipy.special import bdtrc
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

# Significance level of the binomial test in `at_chance`.
CHANCE_LEVEL = 0.01


class Predictions:
    """Collects the logits of an evaluation from all ranks, and counts each example once."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the logits (batch, classes) and labels (batch,) of the examples at `index`."""
        self._parts.append((index.cpu(), logits.detach().float().cpu(), labels.cpu()))

    def collect(self) -> tuple[Tensor, Tensor]:
        """Return all logits (examples, classes) and labels in the order of the split, and clear.

        All ranks must call it.
        """
        parts, self._parts = self._parts, []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[list[tuple[Tensor, Tensor, Tensor]] | None]
            gathered = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for rank in gathered if rank is not None for part in rank]
        index, logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        examples = torch.unique(index)
        rows = torch.empty(int(examples.max()) + 1, dtype=torch.int64)
        rows[index] = torch.arange(len(index))
        return logits[rows[examples]], labels[rows[examples]]


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute accuracy, cross-entropy and expected calibration error (Guo et al. 2017, 15 bins).

    The loss is in nats; the others are fractions in [0, 1].

    Shape:
        logits: (examples, classes). labels: (examples,).

    Example:
        >>> classification_metrics(torch.eye(3) * 100, torch.arange(3))["acc"]
        1.0
    """
    classes = logits.shape[1]
    return {
        "acc": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "loss": float(F.cross_entropy(logits, labels)),
        "ece": float(multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15)),
    }


def at_chance(logits: Tensor, labels: Tensor) -> bool:
    """Whether predictions are no better than the most frequent class or a random class.

    This is a one-sided binomial test of the number of correct predictions, at a significance level
    of 1 %. It returns False if there are so few examples that even an accuracy of 1 would not be
    significant.

    Shape:
        logits: (examples, classes). labels: (examples,).

    Example:
        >>> labels = torch.arange(30).repeat(2)
        >>> at_chance(torch.zeros(60, 30), labels), at_chance(torch.eye(30).repeat(2, 1), labels)
        (True, False)
    """
    examples, classes = logits.shape
    chance = max(int(labels.bincount().max()) / examples, 1 / classes)
    hits = int((logits.argmax(1) == labels).sum())
    return chance**examples < CHANCE_LEVEL <= float(bdtrc(hits - 1, examples, chance))
