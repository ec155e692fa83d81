"""Trials in the folder of an advice: their parameters, trainings and results."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study.advising.arms import EXACT_LENGTHS, LENGTH, MOST_EPOCHS, Arm
from study.advising.budget import Measured
from study.advising.records import Question, Trial, Validated
from study.launch import ERROR, LOG, Job
from study.plan import SMALL_LOGS
from study.warm import can_fork
from tasks.errors import InputError
from tasks.run.given import given_value

TRIAL, VALIDATION = "trial.json", "validation.json"
# Optimizer steps of the measuring run, rounded up to whole epochs. The first ones are slow.
PROBE_STEPS = 50
# Seconds to fork a run, and to end it.
FORK_SECONDS = 1.0


@dataclass(frozen=True)
class Folders:
    """Where the trials are.

    Args:
        question: What was asked.
        root: Folder of the advice.
        threads: CPU threads of a training.
    """

    question: Question
    root: Path
    threads: int

    def trial(self, arm: Arm, number: int) -> Path:
        """Return the folder of a trial."""
        return self.root / "tune" / arm.name / f"trial-{number}"

    def run(self, arm: Arm, number: int, seed: int) -> Path:
        """Return the folder of one training of a trial."""
        return self.trial(arm, number) / f"seed-{seed}"

    def probe(self, arm: Arm) -> Job:
        """Make a short training, to measure the time of a step."""
        folder = self.root / "tune" / "probe"
        length = arm.settings({LENGTH: PROBE_STEPS})
        if any(given_value(self.question.arguments, key) is not None for key in EXACT_LENGTHS):
            length = {MOST_EPOCHS: 1}
        further = ["--logger", "csv", *_texts(length)]
        return self._job(arm, f"{self.question.name}-probe", folder, 0, further)

    def job(self, arm: Arm, trial: Trial, seed: int) -> Job:
        """Make one training of a trial."""
        folder = self.run(arm, trial.number, seed)
        name = f"{self.question.name}-{arm.name}-trial-{trial.number}-s{seed}"
        return self._job(arm, name, folder, seed, _texts(arm.settings(trial.parameters)))

    def _job(self, arm: Arm, name: str, folder: Path, seed: int, further: list[str]) -> Job:
        asked = self.question
        command = [
            *("-m", "tasks.train", "--task", asked.task, "--reg", arm.preset),
            *("--data", asked.data, "--seed", str(seed), "--run_dir", str(folder)),
            *("--no_test", "--resume=auto"),
            f"--trainer.logger.init_args.group={asked.name}",
            f"--trainer.logger.init_args.name={name}",
            "--trainer.logger.init_args.job_type=tune",
            f"--trainer.logger.init_args.tags={json.dumps([arm.name[:64]])}",
            *SMALL_LOGS,
            *asked.arguments,
            *further,
        ]
        return Job(name, folder, command, self.threads, results=VALIDATION)

    def save(self, arm: Arm, trial: Trial) -> None:
        """Write what a trial uses, atomically, before its first training."""
        folder = self.trial(arm, trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        content = {key: getattr(trial, key) for key in ("number", "origin", "parameters")}
        partial = folder / f"{TRIAL}.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(folder / TRIAL)

    def read(self, arm: Arm, seeds: Sequence[int]) -> list[Trial]:
        """Read all trials of an arm, and those results that are there.

        Args:
            arm: The arm.
            seeds: Seeds of their trainings.
        """
        trials = []
        for file in (self.root / "tune" / arm.name).glob(f"trial-*/{TRIAL}"):
            trial = Trial(**json.loads(file.read_text()))
            for seed in seeds:
                trial = self.with_result(arm, trial, seed)
            trials.append(trial)
        return sorted(trials, key=lambda trial: trial.number)

    def with_result(self, arm: Arm, trial: Trial, seed: int) -> Trial:
        """Return a trial with the result or the error of one training, if there is one."""
        folder = self.run(arm, trial.number, seed)
        result = read_validated(folder)
        if result is not None:
            return replace(trial, results=trial.results | {seed: result}, error=None)
        return replace(trial, error=error_of(folder) or trial.error)


def read_validated(folder: Path) -> Validated | None:
    """Read the result of a training on validation data; None if it is not complete.

    Raises:
        InputError: It is not valid.
    """
    file = folder / VALIDATION
    if not file.exists():
        return None
    content = json.loads(file.read_text())
    try:
        best, last = content["best"], content["last"]
        return Validated(
            accuracy=best["val/acc"],
            last_accuracy=last["val/acc"],
            loss=best["val/loss"],
            gap=best["reg/gap_acc"],
            at_chance=content["at_chance"],
            steps=content["steps"],
            best_step=best["step"],
            seconds=content["seconds"]["all"],
            examples=content["examples"]["validation"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a valid result ({error}); delete {folder}, then start again"
        ) from error


def read_probe(probe: Job, passed: float) -> Measured:
    """Read the times of the measuring run.

    Args:
        probe: The run.
        passed: Seconds from its start to its end; 0 if it was complete before.
    """
    content = json.loads((probe.folder / VALIDATION).read_text())
    first, seconds = content["history"][0], content["seconds"]
    start = seconds["all"] - seconds["train"]
    # Once a template has the imports, the start of a run is fast.
    start += FORK_SECONDS if can_fork(probe.command) else max(0.0, passed - seconds["all"])
    epoch = round(first["step"] / (first["epoch"] + 1))
    return Measured(epoch, start, seconds["train"] / content["steps"])


def _texts(values: dict[str, Any]) -> list[str]:
    """Return values as arguments."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }
    return [f"--{key}={text}" for key, text in texts.items()]


def error_of(folder: Path) -> str | None:
    """Return the last line of the error of a failed training; None if it did not fail."""
    if not (folder / ERROR).exists():
        return None
    lines = [one for one in (folder / ERROR).read_text().splitlines() if one.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"no output in {folder / LOG}"
