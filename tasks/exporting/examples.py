"""Inputs for the check of an export: given ones, validation examples, or random ones."""

import inspect
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tasks.data import Batch, ClassificationData
from tasks.errors import InputError
from tasks.exporting.model_card import data_label
from tasks.inference.inputs import Inputs
from tasks.inference.predictor import Predictor
from tasks.run.moved_keys import with_moved_keys
from tasks.run.safe_loading import constructor_arguments

log = logging.getLogger(__name__)

COUNT = 32
# Steps of random inputs, of data of any length.
LONGEST = 64
# They are in memory at once.
MOST_GIVEN = 256


def checked_examples(predictor: Predictor, given: Sequence[str]) -> tuple[Batch, str]:
    """Return the inputs of the check, and what they are.

    Args:
        predictor: The predictor of the checkpoint.
        given: Files, folders or patterns, as in `Inputs`; the validation examples of the run's data
            if there are none.

    Raises:
        InputError: An input cannot be read, or there is none.
    """
    if given:
        raw = list(islice(Inputs(given, predictor.kind), MOST_GIVEN))
        if not raw:
            raise InputError(f"INPUT={' '.join(given)}: there is no input in it")
        if bad := next((one for one in raw if one.error), None):
            raise InputError(f"input {bad.name}: {bad.error}")
        return predictor.encode([one.value for one in raw]), f"{len(raw)} given inputs"
    try:
        data = data_label(str(predictor.facts["data"]))
        return run_examples(predictor), f"validation examples of {data}"
    except (InputError, OSError, LookupError, TypeError, ValueError) as error:
        log.warning(
            f"the data of the run cannot be read ({error}); the export is checked on random "
            "inputs; give real ones with --input"
        )
    return random_inputs(predictor), "random inputs"


def run_examples(predictor: Predictor) -> Batch:
    """Return validation examples of the run's data, of all lengths, the shortest first.

    Raises:
        InputError: The data cannot be read, or their shape has changed since the training.
    """
    kind = type(predictor.data)
    options = with_moved_keys(predictor.facts["config"])[0]["data"]
    shared = inspect.signature(ClassificationData).parameters
    of_source = {name: value for name, value in options.items() if name in shared}
    data = kind(**(of_source | constructor_arguments(kind, options)))
    data.setup()
    split = data.splits["validation"]
    lengths = split.lengths()
    order = torch.arange(len(split)) if lengths is None else lengths.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(COUNT, len(order))).long()]
    if predictor.kind == "text":
        # By the tokenizer of the checkpoint: the data may have changed since.
        return predictor.encode([data.media("validation", int(index)) for index in chosen])
    shape = tuple(split.values.shape[1:])
    if split.offsets is None and predictor.data.shape not in (None, shape):
        raise InputError(f"the shape of an example is {shape}, not {predictor.data.shape}")
    return split.gather(chosen)


def random_inputs(predictor: Predictor) -> Batch:
    """Return random inputs of the form that the model takes.

    Raises:
        InputError: The form is not known.
    """
    generator = torch.Generator().manual_seed(0)
    spec: Any = predictor.task.hparams["spec"]
    data: ClassificationData = predictor.data
    lengths = None
    if predictor.kind == "image":
        inputs = torch.randint(0, 256, (COUNT, *spec.shape), generator=generator)
        return _batch(inputs.to(torch.uint8), None)
    if predictor.kind in ("audio", "text"):
        longest = spec.sample_rate if predictor.kind == "audio" else min(LONGEST, spec.max_tokens)
        lengths = torch.linspace(max(1, longest // 8), longest, COUNT).long()
        if predictor.kind == "audio":
            inputs = (3000 * torch.randn(COUNT, longest, generator=generator)).to(torch.int16)
        else:
            inputs = torch.randint(0, spec.vocabulary, (COUNT, longest), generator=generator).int()
            inputs[inputs == data.padding] = spec.unknown
        padded = torch.arange(longest) >= lengths.unsqueeze(1)
        return _batch(inputs.masked_fill(padded, data.padding), lengths)
    if data.shape and 0 not in data.shape[1:]:
        longest, *rest = data.shape
        if not longest:
            longest = LONGEST
            lengths = torch.linspace(1, longest, COUNT).long()
        inputs = torch.randn(COUNT, longest, *rest, generator=generator).to(data.dtype)
        for row, length in enumerate([] if lengths is None else lengths.tolist()):
            inputs[row, length:] = data.padding
        return _batch(inputs, lengths)
    raise InputError(
        f"the data of the run cannot be read, and random inputs of kind {predictor.kind} "
        "are not known; give files with --input"
    )


def _batch(inputs: Tensor, lengths: Tensor | None) -> Batch:
    zeros = torch.zeros(len(inputs), dtype=torch.int64)
    return Batch(inputs, zeros, zeros, lengths)
