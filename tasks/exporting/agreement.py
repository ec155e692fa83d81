"""The check that an exported model gives the logits of the trained one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.data import Batch
from tasks.errors import InputError
from tasks.exporting.deployable import Deployable, steps_name
from tasks.inference.predictor import Predictor

# Largest difference of logits, relative to the largest logit, or to 1 if that is smaller.
TOLERANCE = 1e-4


@dataclass
class Agreement:
    """Result of the check.

    Args:
        examples: What the inputs were, such as `validation examples of builtin`.
        count: Number of inputs.
        batch_sizes: Sizes of the batches.
        lengths: Lengths of the batches, if inputs differ in length.
        difference: Largest difference of logits, relative to the largest logit or to 1.
        same_classes: Number of inputs with the same most probable class.
    """

    examples: str
    count: int
    batch_sizes: list[int]
    lengths: list[int]
    difference: float
    same_classes: int

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"tolerance": TOLERANCE}


def batches_of(batch: Batch) -> Iterator[Batch]:
    """Divide a batch into batches of several sizes, each padded to its own longest input.

    The first and the last input are alone, then there are three, then all others.
    """
    last = len(batch.inputs) - 1
    for part in (range(1), range(max(1, last), last + 1), range(1, min(4, last)), range(4, last)):
        if part:
            rows = torch.tensor(part)
            lengths = None if batch.lengths is None else batch.lengths[rows]
            inputs = batch.inputs[rows]
            if lengths is not None:
                inputs = inputs[:, : int(lengths.max())]
                lengths = None if bool((lengths == inputs.shape[1]).all()) else lengths
            yield Batch(inputs, batch.labels[rows], batch.indices[rows], lengths)


@torch.no_grad()
def check_agreement(
    predictor: Predictor,
    model: Deployable,
    exported: Callable[..., Tensor],
    batches: Iterable[Batch],
    examples: str,
) -> Agreement:
    """Compare an exported model with the trained one.

    Args:
        predictor: The predictor of the checkpoint.
        model: What was exported, for the form of its arguments.
        exported: The exported model, which returns logits.
        batches: The inputs.
        examples: What the inputs are.

    Raises:
        InputError: The logits differ.
    """
    found = Agreement(examples, 0, [], [], 0.0, 0)
    for batch in batches:
        wanted = predictor.task.evaluate(batch).float()
        logits = exported(*model.arguments(batch))
        scale = max(1.0, float(wanted.abs().max()))
        difference = float((logits - wanted).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise InputError(
                f"the exported model differs from the checkpoint: logits by {difference:.1e} of "
                f"their scale, more than {TOLERANCE:g}, on {examples}, a batch of "
                f"{tuple(batch.inputs.shape)}; nothing is written"
            )
        found.count += len(batch.inputs)
        found.batch_sizes.append(len(batch.inputs))
        if steps_name(predictor):
            found.lengths.append(batch.inputs.shape[1])
        found.difference = max(found.difference, difference)
        found.same_classes += int((logits.argmax(1) == wanted.argmax(1)).sum())
    return found
