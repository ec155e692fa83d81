"""A tuned advice, and trainings that write planted results instead of training."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import study.sequential
from study.advising.confirming import confirm
from study.advising.records import Advice, ArmTuning, Question, Trial, Validated
from study.advising.work import Work
from study.launch import Job
from tests.study.conftest import record, right

TEST_EXAMPLES = 1000
# Hits of the baseline by seed; those of other arms are planted as differences.
BASELINE_HITS = (600, 612, 607, 603, 615, 609, 601, 611, 604, 608)
# Differences between pairs, in test examples; their mean is 0.
SPREAD = (3, -2, 1, -4, 2)
REG: dict[str, dict[str, Any]] = {
    "none": {},
    "dropout": {"head_dropout": 0.3},
    "batchnorm": {"normalization": "batch"},
    "both": {"normalization": "batch", "head_dropout": 0.3},
}


def tuned_advice(
    folder: Path,
    validation: Mapping[str, float],
    budget: float = 10_000.0,
    precision: float = 0.01,
    never_trained: Sequence[str] = (),
    seconds: float = 10.0,
    rates: Mapping[str, float] | None = None,
) -> Advice:
    """Write the tuned presets of arms, and return an advice whose tuning is complete.

    Args:
        folder: Its folder.
        validation: Validation accuracy of each arm, the baseline first.
        budget: Seconds for everything.
        precision: Half width of the intervals at which the confirmation stops, in points.
        never_trained: Arms at chance accuracy.
        seconds: Duration of a run.
        rates: Learning rates other than 0.01.
    """
    (folder / "tuned").mkdir(parents=True)
    tuning = []
    for arm, accuracy in validation.items():
        preset = folder / "tuned" / f"{arm}.yaml"
        rate = (rates or {}).get(arm, 0.01)
        config = {"model": {"reg": REG[arm], "optim": {"lr": rate}}}
        preset.write_text(yaml.safe_dump({"vision": config}))
        one = Validated(
            accuracy=accuracy,
            last_accuracy=accuracy,
            loss=0.5,
            gap=0.1,
            at_chance=arm in never_trained,
            steps=100,
            best_step=80,
            seconds=seconds,
            examples=300,
        )
        trial = Trial(1, "default", {"model.optim.lr": rate}, dict.fromkeys(range(3), one))
        tuning.append(ArmTuning(arm, [trial], 0, [1], 1, str(preset)))
    question = Question("mine", "vision", "builtin", list(validation), budget, precision)
    return Advice(question, tuning)


def gaining(**gains: float) -> Callable[[str, int], dict[str, Any]]:
    """Plant the gain of each arm over `none`, in points; others are equal to it.

    The arms without a part of the recommendation, and with half of the data, are named with
    underscores.
    """

    def planted(name: str, seed: int) -> dict[str, Any]:
        index = seed - 100
        hits = BASELINE_HITS[index % len(BASELINE_HITS)]
        if name != "none":
            gain = gains.get(name.replace("-", "_"), 0.0)
            hits += (
                round(10 * gain) + SPREAD[(index * (1 + len(name) % 3) + len(name)) % len(SPREAD)]
            )
        return record(seed, right(hits, TEST_EXAMPLES), name)

    return planted


@dataclass(frozen=True)
class PlantedWork(Work):
    """Writes planted results, on a clock of its own.

    Args:
        planted: Record of a run, given the name of its arm and its seed.
        each: Seconds of a run.
        die_after: Number of runs after which the process is killed.
        failing: Names of runs that fail.
        done: Names of the runs so far.
        commands: Their commands.
        clock: Seconds of this start.
    """

    planted: Callable[[str, int], dict[str, Any]] = field(default_factory=gaining)
    each: float = 10.0
    die_after: int | None = None
    failing: Sequence[str] = ()
    done: list[str] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    clock: list[float] = field(default_factory=lambda: [0.0])

    @property
    def seconds(self) -> float:
        """Seconds of this clock."""
        return self.before + self.clock[0]

    def run(self, next_job: Callable[[], Job | None]) -> Iterator[tuple[Job, bool]]:
        """Write the planted results when the runs end."""
        running: list[tuple[float, Job]] = []
        while True:
            while len(running) < self.at_a_time and (job := next_job()) is not None:
                if len(self.done) == self.die_after:
                    raise KeyboardInterrupt
                # The first runs of several do not end together.
                running.append((self.seconds + self.each * (1 + 0.1 * len(running)), job))
            if not running:
                return
            end, job = running.pop(0)
            self.clock[0] = max(self.clock[0], end - self.before)
            self.done.append(job.name)
            self.commands.append(job.command)
            job.folder.mkdir(parents=True, exist_ok=True)
            if job.name in self.failing:
                (job.folder / "error.txt").write_text("exit code 1\nthe loss is NaN\n")
                yield job, False
                continue
            arm, _, seed = job.name.rpartition("-s")
            made = self.planted(arm, int(seed))
            (job.folder / "metrics.json").write_text(json.dumps(made))
            yield job, True


@pytest.fixture
def few_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate fewer studies for the critical values, to save time."""
    monkeypatch.setattr(study.sequential, "PATHS", 20_000)
    study.sequential._simulate.cache_clear()
    yield
    study.sequential._simulate.cache_clear()


def confirmed(advice: Advice, folder: Path, work: Work) -> Advice:
    """Confirm an advice, saved at each step as the command does, and return its end."""
    for state in confirm(advice, folder, work):
        state.save(folder)
        advice = state
    return advice


def planted_work(advice: Advice, **options: Any) -> PlantedWork:
    """Return work within the advice's budget, on one run at a time unless more are given."""
    return PlantedWork(advice.question.budget, **{"at_a_time": 1, "threads": 1} | options)
