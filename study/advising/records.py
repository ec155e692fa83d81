"""What `make advise` has found so far: plain data, written to `advice.json`.

Each phase fills one part: tuning the trials of each arm, confirmation the looks and the contrasts,
and the recommendation the sentence. The page and W&B are made from this file and from the runs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ADVICES = Path("runs") / "advice"
ADVICE = "advice.json"


@dataclass(frozen=True)
class Question:
    """What was asked; it is the same each time the advice is resumed.

    Args:
        name: Name of the advice.
        task: vision, speech, nlp, or the import path of a task.
        data: builtin, a name, a path or a hub id.
        arms: Names of arms in `configs/advise`, presets in `configs/reg`, or files; the first one
            is the baseline.
        budget: Seconds for everything.
        precision: Half width of the interval of each arm at which the confirmation stops, in
            percentage points.
        arguments: Training arguments of every run.
        design: Design that the arms are made by, as in `study.designs`; empty for none.
        recipe: The preset that the arms of a design are made from.
    """

    name: str
    task: str
    data: str
    arms: list[str]
    budget: float
    precision: float
    arguments: list[str] = field(default_factory=list)
    design: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Validated:
    """One training of a trial with one seed, on validation data.

    Args:
        accuracy: Validation accuracy of the best epoch, a fraction.
        last_accuracy: Validation accuracy of the last epoch, a fraction.
        loss: Negative log-likelihood of the validation labels at the best epoch, in nats.
        gap: Training minus validation accuracy at the best epoch, a fraction.
        at_chance: Whether the training stayed at chance accuracy.
        steps: Optimizer steps of the whole training.
        best_step: Step of the best epoch.
        seconds: Duration of the run.
        examples: Number of validation examples.
    """

    accuracy: float
    last_accuracy: float
    loss: float
    gap: float
    at_chance: bool
    steps: int
    best_step: int
    seconds: float
    examples: int


@dataclass(frozen=True)
class Trial:
    """One choice of parameters in one arm.

    Args:
        number: Number in its arm, from 0.
        origin: `without`, the baseline's defaults, without the regularizer; `default`, those of the
            preset; `literature`, values from the literature; `sampled`, drawn by Optuna.
        parameters: Configuration keys and their values.
        results: Result of each seed that is complete.
        error: Error of a training that failed.
    """

    number: int
    origin: Literal["without", "default", "literature", "sampled"]
    parameters: dict[str, Any]
    results: dict[int, Validated] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class ArmTuning:
    """The tuning of one arm.

    Args:
        arm: Short name of the arm.
        trials: All trials, with the first seed; finalists have further seeds.
        first_seed: The seed of every trial.
        finalists: Numbers of the trials that were repeated with further seeds, best first.
        chosen: Number of the trial with the highest mean over the further seeds; None while open.
        preset: File with the chosen parameters, in the form of those in `configs/reg`.
        steps: Optimizer steps spent on all trainings of this arm.
        seconds: Time spent on them.
    """

    arm: str
    trials: list[Trial]
    first_seed: int = 0
    finalists: list[int] = field(default_factory=list)
    chosen: int | None = None
    preset: str = ""
    steps: int = 0
    seconds: float = 0.0

    @property
    def never_trained(self) -> bool:
        """Whether there are results, and all stayed at chance accuracy.

        The first trial is that of the baseline, and counts for other arms only if it is their own.
        """
        own = [trial for trial in self.trials if trial.origin != "without"] or self.trials
        results = [one for trial in own for one in trial.results.values()]
        return bool(results) and all(one.at_chance for one in results)


@dataclass(frozen=True)
class Contrast:
    """A gain in test accuracy between two arms on fresh paired seeds, in fractions.

    Args:
        arm: The arm.
        against: The arm that it is compared with.
        seeds: Number of paired seeds.
        gain: Mean paired difference of the test accuracy.
        low: Lower end of the interval; None if there is none yet.
        high: Upper end of the interval.
        p: p-value that remains valid at every look.
        p_adjusted: The same, adjusted for the number of contrasts.
        at_chance: Number of collapsed runs of either arm.
    """

    arm: str
    against: str
    seeds: int
    gain: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    at_chance: int = 0

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05


@dataclass(frozen=True)
class Look:
    """The analysis after one round of the confirmation.

    Args:
        seeds: Number of paired seeds so far.
        alpha_spent: Error probability spent up to this look.
        critical: Critical value of the t statistic at this look.
        contrasts: The primary contrast, then the others.
    """

    seeds: int
    alpha_spent: float
    critical: float
    contrasts: list[Contrast]


@dataclass(frozen=True)
class Confirmation:
    """The confirmation on fresh seeds.

    Args:
        primary: The arm of the primary contrast, fixed before the first run.
        baseline: The arm that all arms are compared with.
        planned: Numbers of paired seeds of the planned looks.
        looks: The looks so far.
        stopped: Why no further pairs were added: `precision`, `budget` or `planned`; empty while
            the confirmation is running.
        parts: What each part of the recommendation contributes: the recommendation against itself
            without this part; the last one of several, without all of them.
        half_data: The recommendation against itself with half of the training examples.
    """

    primary: str
    baseline: str
    planned: list[int]
    looks: list[Look] = field(default_factory=list)
    stopped: str = ""
    parts: list[Contrast] = field(default_factory=list)
    half_data: Contrast | None = None


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Args:
        arm: The recommended arm.
        sentence: One sentence to act on.
        notes: Further sentences: limits of the evidence, collapsed runs, how to continue.
        file: `recommended.yaml`.
        command: Command that trains with it.
    """

    arm: str
    sentence: str
    notes: list[str]
    file: str
    command: str


@dataclass(frozen=True)
class Advice:
    """Everything that is known.

    Args:
        question: What was asked.
        tuning: One entry per arm, the baseline first.
        confirmation: The confirmation, once it has begun.
        recommendation: The recommendation, once there is one.
        seconds: Time spent so far, over all starts.
    """

    question: Question
    tuning: list[ArmTuning] = field(default_factory=list)
    confirmation: Confirmation | None = None
    recommendation: Recommendation | None = None
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write `advice.json` atomically."""
        partial = folder / f"{ADVICE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / ADVICE)


def load_advice(folder: Path) -> Advice:
    """Read `advice.json` in a folder."""
    content = json.loads((folder / ADVICE).read_text())
    confirmation, recommendation = content["confirmation"], content["recommendation"]
    return Advice(
        Question(**content["question"]),
        [_arm(one) for one in content["tuning"]],
        None if confirmation is None else _confirmation(confirmation),
        None if recommendation is None else Recommendation(**recommendation),
        content["seconds"],
    )


def _arm(content: dict[str, Any]) -> ArmTuning:
    return ArmTuning(**content | {"trials": [_trial(one) for one in content["trials"]]})


def _trial(content: dict[str, Any]) -> Trial:
    # JSON has strings as keys.
    results = {int(seed): Validated(**one) for seed, one in content["results"].items()}
    return Trial(**content | {"results": results})


def _confirmation(content: dict[str, Any]) -> Confirmation:
    half = content["half_data"]
    looks = [Look(**one | {"contrasts": _contrasts(one["contrasts"])}) for one in content["looks"]]
    return Confirmation(
        **content
        | {
            "looks": looks,
            "parts": _contrasts(content["parts"]),
            "half_data": None if half is None else Contrast(**half),
        }
    )


def _contrasts(content: Sequence[dict[str, Any]]) -> list[Contrast]:
    return [Contrast(**one) for one in content]
