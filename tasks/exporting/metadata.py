"""Metadata of an exported model: inputs, classes, preprocessing and origin."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tasks.data import ClassificationData
from tasks.exporting.deployable import ModelInput
from tasks.inference.predictor import Predictor

TOKENIZER = "tokenizer.json"
FORMAT_VERSION = "1"


def preprocessing(predictor: Predictor) -> dict[str, Any]:
    """Return how a raw input becomes an input of the model, as plain data."""
    spec: Any = predictor.task.hparams["spec"]
    data: Any = predictor.data
    if predictor.kind == "image":
        channels, height, width = spec.shape
        return {
            "height": height,
            "width": width,
            "color": "L" if channels == 1 else "RGB",
            "channels": channels,
            "resize": "bicubic, by Pillow, to this size",
            "mean": spec.mean,
            "std": spec.std,
            "normalization": "in the model: pixels - mean, divided by std",
        }
    if predictor.kind == "audio":
        return {
            "sample_rate": spec.sample_rate,
            "channels": 1,
            "max_seconds": data.max_seconds,
            "normalization": "in the model, as the spectrogram",
        }
    if predictor.kind == "text":
        return {
            "tokenizer": TOKENIZER,
            "padding": data.padding,
            "unknown": data.unknown,
            "max_tokens": spec.max_tokens,
        }
    return {"data_module": f"{type(data).__module__}:{type(data).__qualname__}"}


def tokenizer_text(data: ClassificationData) -> str | None:
    """Return the tokenizer as JSON; None if the data have none."""
    tokenizer = getattr(data, "tokenizer", None)
    return None if tokenizer is None else str(tokenizer.to_str(pretty=True))


def metadata(
    predictor: Predictor,
    inputs: Sequence[ModelInput],
    unfolded: Mapping[str, str],
    fewest_steps: int,
) -> dict[str, Any]:
    """Return the metadata of an exported model, as plain data.

    Args:
        predictor: The predictor of the checkpoint.
        inputs: Inputs of the exported model.
        unfolded: Batch norms that are not folded, with the reasons.
        fewest_steps: Smallest number of steps of an input; shorter ones are padded to it.
    """
    facts = predictor.facts
    steps = {"fewest_steps": fewest_steps} if any(len(one.dynamic) > 1 for one in inputs) else {}
    return {
        "regain_format": FORMAT_VERSION,
        "kind": predictor.kind,
        "classes": predictor.classes,
        "inputs": [asdict(one) for one in inputs],
        "outputs": {
            "logits": "scores of the classes",
            "probabilities": "softmax(logits / temperature)",
        },
        **steps,
        "temperature": predictor.temperature,
        # JSON has no infinity.
        "threshold": predictor.threshold if math.isfinite(predictor.threshold) else None,
        "preprocessing": preprocessing(predictor),
        "batch_norms_not_folded": dict(unfolded),
        "task": facts["task"],
        "data": facts["data"],
        "reg": facts["reg"],
        "seed": facts["seed"],
        "run": facts["name"],
        "validation": facts["validation"],
        "versions": facts["versions"],
        "git_commit": facts["git_commit"],
    }
