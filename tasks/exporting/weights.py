"""Weights as safetensors with a JSON file beside them, which `tasks.load` opens again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import InputError, first_line

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Parts of a checkpoint that only training needs.
TRAINING_ONLY = (
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "random", "sums"),
    *("results", "MixedPrecision", "epoch", "global_step", "hparams_name"),
)


def write_weights(
    checkpoint: Mapping[str, Any], validation: Any, metadata: Mapping[str, Any], folder: Path
) -> None:
    """Write the weights as trained, without folding, and all that a prediction needs.

    Args:
        checkpoint: Content of the checkpoint.
        validation: Metrics of the last validation.
        metadata: Plain data for other programs.
        folder: The folder.

    Raises:
        InputError: The checkpoint holds something that JSON cannot.
    """
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory.
    weights = {name: one.clone().contiguous() for name, one in checkpoint["state_dict"].items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", "library": "regain"})
    kept = {name: part for name, part in checkpoint.items() if name not in TRAINING_ONLY}
    kept["results"] = {"history": [validation] if validation else []}
    config = {"library_name": "regain", **metadata, "checkpoint": kept}
    try:
        written = json.dumps(config, ensure_ascii=False, indent=1)
    except TypeError as error:
        raise InputError(
            f"the checkpoint cannot be written as JSON ({first_line(error)}); use FORMAT=pt2"
        ) from error
    (folder / CONFIG).write_text(written + "\n", encoding="utf-8")


def is_weights_folder(folder: str | Path) -> bool:
    """Whether a folder holds what `write_weights` has written."""
    return all((Path(folder) / name).is_file() for name in (WEIGHTS, CONFIG))


def read_weights_folder(folder: Path) -> dict[str, Any]:
    """Read what `write_weights` has written, as the content of a checkpoint.

    Raises:
        InputError: It is damaged, or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{folder} is incomplete ({first_line(error)})") from error
    checkpoint = config.get("checkpoint") if isinstance(config, dict) else None
    if not isinstance(checkpoint, dict):
        raise InputError(
            f"{folder} is not an export of FORMAT=safetensors or hf: {CONFIG} has no checkpoint"
        )
    return {**checkpoint, "state_dict": weights}
