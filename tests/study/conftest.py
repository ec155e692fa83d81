"""Synthetic results of studies, with known effects."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from playwright.sync_api import Browser

from study.gain_table import GainTable, gain_tables
from study.plan import Study
from study.report import write_report
from study.results import Collection, collect
from tasks.train import main as train_main
from tests.browser import chromium
from tests.loopback import Server, log_in, wandb_server, wandb_session

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
    """Create the content of a `metrics.json`; `hits` says which test predictions are correct."""
    labels = [index % 3 for index in range(len(hits))]
    predicted = [label if hit else (label + 1) % 3 for label, hit in zip(labels, hits, strict=True)]
    confusion = np.zeros((3, 3), dtype=int)
    for label, taken in zip(labels, predicted, strict=True):
        confusion[label, taken] += 1
    epochs = [
        {"epoch": index, "step": step, "val/acc": accuracy, "reg/gap_acc": 0.1}
        for index, (step, accuracy) in enumerate(history)
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
            "confidence": [0.5 + 0.4 * (index % 5) / 4 for index in range(len(hits))],
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
    """Create `count` hits of `total`, starting at an offset."""
    return [(index - offset) % total < count for index in range(total)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser that all tests share."""
    with chromium() as started:
        yield started


Planted = Callable[..., Study]


@pytest.fixture
def planted() -> Planted:
    """Write a study with given records by variant and seed."""

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
    """A study in which `both` gains 10, 12 and 14 points, and `dropout` 0 on average."""
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


def read_tables(study: Study) -> tuple[Collection, list[GainTable]]:
    """Read a study's runs and compare them."""
    collection = collect(study)
    return collection, gain_tables(collection)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Study:
    """A study of 3 variants x 3 seeds on the builtin data, really trained, with its report.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("studies")
    study = Study(
        "vision",
        "builtin",
        ["none", "both", "dropout-concrete"],
        [0, 1, 2],
        arguments=[
            *("--model.arch=mlp", "--model.width=8", "--model.depth=1", "--model.optim.lr=0.01"),
            *(f"--data.cache_dir={caches}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
            "--trainer.enable_progress_bar=False",
        ],
        root=root,
    )
    study.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        # The use of the processors is a difference between two samples.
        patch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
        # wandb reads the environment when its process starts.
        wandb.teardown()
        for job in study.jobs(threads=1):
            train_main(job.command[2:])
        # wandb's process writes the ends of the files after the runs are closed.
        wandb.teardown()
        collection, tables = read_tables(study)
        write_report(collection, tables, None, lambda line: None)
    return study


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A W&B server on this machine, to which W&B is logged in."""
    with wandb_server() as server:
        log_in(monkeypatch, server)
        monkeypatch.setenv("WANDB_MODE", "online")
        with wandb_session(monkeypatch, tmp_path):
            yield server
