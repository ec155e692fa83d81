"""Results of a study's runs: each `metrics.json`, by arm and seed."""

import contextlib
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
from tasks.run.moved_keys import present_record

# The files of a study that its results depend on.
SOURCES = ("study.yaml", "*/metrics.json", "*/error.txt")


@dataclass(frozen=True)
class Result:
    """One complete run.

    Args:
        record: Content of its `metrics.json`.
    """

    record: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Test accuracy, a fraction."""
        return float(self.record["test"]["acc"])

    @property
    def calibration_error(self) -> float:
        """Expected calibration error on the test split, a fraction."""
        return float(self.record["test"]["ece"])

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the test labels, in nats."""
        return float(self.record["test"]["loss"])

    @property
    def loss_calibrated(self) -> float | None:
        """The same after temperature scaling; None in older results."""
        value = self.record["test"].get("loss_calibrated")
        return None if value is None else float(value)

    @property
    def last_accuracy(self) -> float | None:
        """Test accuracy of the last epoch's weights, a fraction; None in older results."""
        last = self.record.get("test_last")
        return float(last["acc"]) if last else None

    @property
    def at_chance(self) -> bool:
        """Whether training stayed at chance accuracy; False in older results."""
        return bool(self.record.get("at_chance", False))

    @property
    def gap(self) -> float:
        """Training minus validation accuracy at the chosen epoch, a fraction."""
        return float(self.record["best"]["reg/gap_acc"])

    @property
    def step_seconds(self) -> float:
        """Seconds per training step."""
        return float(self.record["seconds"]["train"]) / max(int(self.record["steps"]), 1)

    @property
    def memory(self) -> float:
        """Peak memory in bytes."""
        return float(self.record["peak_memory_bytes"])

    @property
    def best_validation(self) -> float:
        """Highest validation accuracy of all epochs, a fraction."""
        return max(float(epoch["val/acc"]) for epoch in self.record["history"])

    def steps_to(self, accuracy: float) -> float | None:
        """Return the step at which validation first reached an accuracy; None if it never did."""
        for epoch in self.record["history"]:
            if epoch["val/acc"] >= accuracy:
                return float(epoch["step"])
        return None

    @cached_property
    def hits(self) -> np.ndarray:
        """(examples,) whether each test prediction is correct."""
        predictions = self.record["predictions"]
        hits: np.ndarray = np.equal(predictions["label"], predictions["predicted"])
        return hits

    @property
    def test_to_train(self) -> float:
        """Ratio of test to training examples, before `train_fraction` reduced the latter."""
        sizes = self.record["examples"]
        fraction = float(self.record["config"]["data"].get("train_fraction", 1.0))
        return float(sizes["test"]) / (float(sizes["train"]) / fraction)

    @property
    def test_set(self) -> str:
        """Hash of the test examples: equal if two runs were tested on the same."""
        return str(self.record["test_set"])


@dataclass(frozen=True)
class Collection:
    """Results and errors of a study's runs.

    Args:
        study: The study.
        results: For each arm, its results by seed.
        errors: Last line of the error, by the name of the failed run.
        files: Size and modification time of the files, as of before they were read.
    """

    study: Study
    results: dict[Arm, dict[int, Result]]
    errors: dict[str, str]
    files: dict[str, list[int]]

    @property
    def done(self) -> int:
        """Number of complete runs."""
        return sum(len(seeds) for seeds in self.results.values())


def source_files(folder: Path) -> dict[str, list[int]]:
    """Return size and modification time of each file that a study's results depend on."""
    found = {}
    for pattern in SOURCES:
        for file in folder.glob(pattern):
            # A file may vanish at any moment, or be a broken link.
            with contextlib.suppress(OSError):
                facts = file.stat()
                found[str(file.relative_to(folder))] = [facts.st_size, facts.st_mtime_ns]
    return found


def collect(study: Study, before: Collection | None = None) -> Collection:
    """Read all complete runs of a study, and the errors of the failed ones.

    Args:
        study: The study.
        before: An earlier collection; results in it are not read again.

    Raises:
        InputError: A `metrics.json` is invalid.
    """
    # Before anything is read: a file that changes meanwhile makes a stored state outdated.
    files = source_files(study.folder)
    results: dict[Arm, dict[int, Result]] = {}
    errors: dict[str, str] = {}
    for arm in study.arms():
        results[arm] = {}
        for seed in study.seeds:
            folder = study.run_folder(arm, seed)
            if before is not None and seed in before.results.get(arm, {}):
                results[arm][seed] = before.results[arm][seed]
            elif (folder / RESULTS).exists():
                results[arm][seed] = Result(read_result(folder / RESULTS))
            elif (folder / ERROR).exists():
                lines = (folder / ERROR).read_text().strip().splitlines()
                errors[folder.name] = lines[-1] if lines else "no output"
    return Collection(study, results, errors, files)


def read_result(file: Path) -> dict[str, Any]:
    """Read one `metrics.json`.

    Raises:
        InputError: It is not valid.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        for key in ("test", "best", "history", "predictions", "seconds", "steps", "test_set"):
            record[key]
        return present_record(record)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a valid result ({error}); delete it, then start the study again"
        ) from error


def same_test_examples(results: Iterable[Result]) -> bool:
    """Whether all runs have the same test examples."""
    return len({result.test_set for result in results}) < 2
