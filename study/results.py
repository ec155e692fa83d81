"""What the runs of a study have left: their `metrics.json`, arranged by arm and seed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from study.launch import ERROR, RESULTS
from study.plan import Arm, Study
from tasks.errors import InputError


@dataclass(frozen=True)
class Result:
    """One complete run.

    Args:
        record: The content of its `metrics.json`.
    """

    record: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Test accuracy, a share."""
        return float(self.record["test"]["acc"])

    @property
    def calibration_error(self) -> float:
        """Expected calibration error on the test split, a share."""
        return float(self.record["test"]["ece"])

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the test labels, in nats."""
        return float(self.record["test"]["loss"])

    @property
    def last_accuracy(self) -> float | None:
        """Test accuracy of the last epoch's weights, a fraction; None in older results."""
        last = self.record.get("test_last")
        return float(last["acc"]) if last else None

    @property
    def at_chance(self) -> bool:
        """Whether training never left chance; older results do not say so."""
        return bool(self.record.get("at_chance", False))

    @property
    def gap(self) -> float:
        """Training less validation accuracy at the chosen epoch, a share."""
        return float(self.record["best"]["reg/gap_acc"])

    @property
    def step_seconds(self) -> float:
        """Seconds of a training step."""
        return float(self.record["seconds"]["train"]) / max(int(self.record["steps"]), 1)

    @property
    def memory(self) -> float:
        """Most memory held, in bytes."""
        return float(self.record["peak_memory_bytes"])

    @property
    def best_validation(self) -> float:
        """Highest validation accuracy of all epochs, a share."""
        return max(float(epoch["val/acc"]) for epoch in self.record["history"])

    def steps_to(self, accuracy: float) -> float | None:
        """Count the steps until an epoch's validation reached an accuracy; None if none did."""
        for epoch in self.record["history"]:
            if epoch["val/acc"] >= accuracy:
                return float(epoch["step"])
        return None

    @cached_property
    def hits(self) -> np.ndarray:
        """(examples,) whether each test prediction is right."""
        predictions = self.record["predictions"]
        hits: np.ndarray = np.equal(predictions["label"], predictions["predicted"])
        return hits

    @property
    def test_to_train(self) -> float:
        """Test examples for each training example, all those that `train_fraction` chose among."""
        sizes = self.record["examples"]
        fraction = float(self.record["config"]["data"].get("train_fraction", 1.0))
        return float(sizes["test"]) / (float(sizes["train"]) / fraction)

    @property
    def test_set(self) -> str:
        """What tells whether two runs had the same test examples."""
        return str(self.record["test_set"])


@dataclass(frozen=True)
class Collection:
    """All that is known of a study's runs.

    Args:
        study: What was to be run.
        results: Of each arm, by seed.
        errors: Last line of what went wrong, of each failed run by its name.
    """

    study: Study
    results: dict[Arm, dict[int, Result]]
    errors: dict[str, str]

    @property
    def done(self) -> int:
        """Number of complete runs."""
        return sum(len(seeds) for seeds in self.results.values())


def collect(study: Study, before: Collection | None = None) -> Collection:
    """Read all complete runs of a study, and the errors of the failed ones.

    Args:
        study: The study.
        before: What was read earlier; the results in it are not read again.

    Raises:
        InputError: A file of results is broken.
    """
    results: dict[Arm, dict[int, Result]] = {}
    errors: dict[str, str] = {}
    for arm in study.arms():
        results[arm] = {}
        for seed in study.seeds:
            folder = study.run_folder(arm, seed)
            if before is not None and seed in before.results.get(arm, {}):
                results[arm][seed] = before.results[arm][seed]
            elif (folder / RESULTS).exists():
                results[arm][seed] = Result(read(folder / RESULTS))
            elif (folder / ERROR).exists():
                lines = (folder / ERROR).read_text().strip().splitlines()
                errors[folder.name] = lines[-1] if lines else "no output"
    return Collection(study, results, errors)


def read(file: Path) -> dict[str, Any]:
    """Read one `metrics.json`.

    Raises:
        InputError: It is none.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        for key in ("test", "best", "history", "predictions", "seconds", "steps", "test_set"):
            record[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no result of this version ({error}); delete it, and the run is done again"
        ) from error
    return record


def same_everywhere(results: Iterable[Result]) -> bool:
    """Whether all runs had the same test examples."""
    return len({result.test_set for result in results}) < 2
