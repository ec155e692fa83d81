"""Results of studies that were never run: their figures are planted, and so the answers known."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.plan import Study

VERSIONS = "python torch lightning torchvision torchaudio transformers wandb".split()
CLASSES = ["red", "green", "blue"]


def record(
    seed: int,
    hits: Sequence[bool],
    variant: str = "none",
    test_set: str = "all",
    history: Sequence[tuple[int, float]] = ((10, 0.5), (20, 0.6)),
    **changes: Any,
) -> dict[str, Any]:
    """Make the content of a `metrics.json` whose test predictions are right where `hits` says."""
    labels = [place % 3 for place in range(len(hits))]
    predicted = [label if hit else (label + 1) % 3 for label, hit in zip(labels, hits, strict=True)]
    confusion = np.zeros((3, 3), dtype=int)
    for label, taken in zip(labels, predicted, strict=True):
        confusion[label, taken] += 1
    epochs = [
        {"epoch": place, "step": step, "val/acc": accuracy, "reg/gap_acc": 0.1}
        for place, (step, accuracy) in enumerate(history)
    ]
    made: dict[str, Any] = {
        "task": "vision",
        "data": "builtin",
        "reg": variant,
        "name": f"vision-builtin-{variant}-s{seed}",
        "seed": seed,
        "classes": CLASSES,
        "examples": {"train": 90, "validation": 30, "test": len(hits)},
        "parameters": 100,
        "test": {"acc": float(np.mean(hits)), "loss": 0.5, "ece": 0.05},
        "best": max(epochs, key=lambda epoch: epoch["val/acc"]),
        "seconds": {"train": 2.0, "all": 3.0},
        "steps": 20,
        "peak_memory_bytes": 1_000_000,
        "test_set": test_set,
        "history": epochs,
        "confusion": confusion.tolist(),
        "predictions": {
            "label": labels,
            "predicted": predicted,
            "confidence": [0.5 + 0.4 * (place % 5) / 4 for place in range(len(hits))],
        },
        "config": {
            "model": {"reg": {"dropout": 0.0 if variant == "none" else 0.2}},
            "data": {"cache_dir": "cache"},
        },
        "versions": dict.fromkeys(VERSIONS, "1"),
        "git_commit": "0" * 40,
        "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "gpu": None},
    }
    return made | changes


def right(count: int, total: int, offset: int = 0) -> list[bool]:
    """Make `count` hits of `total`, beginning at an offset."""
    return [(place - offset) % total < count for place in range(total)]


Planted = Callable[..., Study]


@pytest.fixture
def planted() -> Planted:
    """Write a study of which each variant's records are given by seed."""

    def write(arms: Mapping[str, Sequence[dict[str, Any]]], **options: Any) -> Study:
        seeds = max(len(records) for records in arms.values())
        study = Study("vision", "builtin", list(arms), list(range(seeds)), **options)
        study.save()
        for arm in study.arms():
            for seed, content in enumerate(arms[arm.variant]):
                folder = study.run_folder(arm, seed)
                folder.mkdir(parents=True)
                (folder / "metrics.json").write_text(json.dumps(content))
        return study

    return write


@pytest.fixture
def gaining(planted: Planted) -> Study:
    """A study in which `both` gains 10, 12 and 14 points, and `dropout` nothing in the mean."""
    return planted(
        {
            "none": [record(s, right(50 + s, 100)) for s in range(3)],
            "dropout": [
                record(s, right(50 + s + change, 100), "dropout")
                for s, change in enumerate((1, -1, 0))
            ],
            "both": [record(s, right(60 + 3 * s, 100), "both") for s in range(3)],
        }
    )


def files_in(folder: Path) -> set[str]:
    """List what lies in a folder."""
    return {file.name for file in folder.iterdir()}
