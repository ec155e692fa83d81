"""Settings in words: `head_dropout: 0.3` is "dropout 0.3 before the head"."""

from collections.abc import Sequence
from typing import Any

from study.gain_table import join
from study.parts import Part, parts_of

# What the option of a part does; {} is its value.
OPTIONS = {
    "head_dropout": "dropout {} before the head",
    "input_dropout": "dropout {} of the input",
    "embedding_dropout": "dropout {} of whole words",
    "weight_drop": "dropout {} of weights",
    "drop_path": "stochastic depth {}",
    "layer_drop": "skipping of layers at rate {}",
    "token_dropout": "dropout {} of tokens",
    "attention_dropout": "dropout {} of attention probabilities",
    "attention_head_dropout": "dropout {} of attention heads",
    "weight_standardization": "weight standardization",
    "weight_decay": "weight decay {}",
    "l1": "an L1 penalty of {}",
    "l2": "an L2 penalty of {}",
    "max_norm": "max-norm {}",
    "adaptive_clip": "adaptive gradient clipping {}",
    "r_drop": "R-Drop {}",
    "sam": "SAM {}",
    "label_smoothing": "label smoothing {}",
    "early_stopping": "early stopping after {} epochs",
    "crop": "random crops {}",
    "flip": "random flips {}",
    "cutout": "cutout {}",
    "mixup": "mixup {}",
    "cutmix": "CutMix {}",
    "time_shift": "time shifts {}",
    "noise": "noise {}",
    "frequency_mask": "frequency masks of up to {} bands",
    "time_mask": "time masks of up to {} frames",
    "word_dropout": "word dropout {}",
    "word_swap": "word swaps {}",
}
KINDS = {"unit": "dropout", "channel": "channel dropout", "block": "DropBlock"}
NORMS = {"batch": "batch norm", "layer": "layer norm", "group": "group norm", "rms": "RMS norm"}


def part_in_words(part: Part, config: dict[str, Any]) -> str:
    """Describe a part of a preset with its value; an unknown one by its key.

    Example:
        >>> config = {"model": {"reg": {"dropout": 0.1, "dropout_kind": "channel"}}}
        >>> part_in_words(parts_of(config, "vision")[0], config)
        'channel dropout 0.1 in the hidden layers'
    """
    value = _value(config, part.keys[0])
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    name = part.keys[0].rpartition(".")[2]
    if name == "normalization":
        return NORMS.get(shown, f"{shown} norm")
    if name == "dropout" and part.keys[0] == "model.reg.dropout":
        kind = _value(config, "model.reg.dropout_kind") or "unit"
        return f"{KINDS.get(kind, f'{kind} dropout')} {shown} in the hidden layers"
    return OPTIONS.get(name, f"{part.keys[0]}={{}}").format(shown)


def in_words(parts: Sequence[Part], config: dict[str, Any]) -> str:
    """List parts of a preset in words."""
    return join([part_in_words(part, config) for part in parts])


def preset_in_words(config: dict[str, Any], task: str) -> str:
    """Describe what a preset turns on; empty if nothing."""
    return in_words(parts_of(config, task), config)


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
