"""How much is tuned within a budget: planned from the measured time of one epoch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from study.terminal import duration
from tasks.errors import InputError

PLAN = "plan.json"
# Fraction of the budget for tuning; the rest is for the confirmation.
TUNING = 0.5
# Trainings in parallel, and with a regularizer, take longer than the measured one.
MARGIN = 1.3
FEWEST_TRIALS, GOOD_TRIALS, MOST_TRIALS = 3, 6, 30
# With at least as many trials, three finalists instead of two.
MANY_TRIALS = 12
FURTHER_SEEDS = (1, 2)
# A shorter training than this fraction of the preset's is a last resort.
SHORTEST = 0.5
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Plan:
    """What is tuned.

    Args:
        budget: The budget that it was made for, in seconds.
        trials: Number of trials of each arm, including the shared first one.
        finalists: Number of trials of each arm that are repeated with further seeds.
        seeds: The further seeds.
        steps: Reference length of a training, in optimizer steps.
        preset_steps: Length of the preset on these data.
        steps_per_epoch: Optimizer steps of an epoch.
        start_seconds: Time of a training besides its steps: start, data, end.
        step_seconds: Time of an optimizer step, with its share of the validations.
        until: Second of the budget at which tuning ends.
    """

    budget: float
    trials: int
    finalists: int
    seeds: list[int]
    steps: int
    preset_steps: int
    steps_per_epoch: int
    start_seconds: float
    step_seconds: float
    until: float

    def seconds(self, steps: float) -> float:
        """Estimate the time of a training."""
        return self.start_seconds + steps * self.step_seconds

    def comfortable_minutes(self, arms: int, at_a_time: int) -> int:
        """Estimate the budget, in minutes, of which all trainings can have the preset's length."""
        runs = 1 + (GOOD_TRIALS - 1 + 2 * len(FURTHER_SEEDS)) * arms
        seconds = runs * self.seconds(self.preset_steps) / at_a_time / TUNING
        return round(seconds / 60 + 1)

    def save(self, folder: Path) -> None:
        """Write `plan.json` atomically."""
        partial = folder / f"{PLAN}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / PLAN)


def load_plan(folder: Path) -> Plan | None:
    """Read `plan.json` in a folder; None if there is none."""
    file = folder / PLAN
    return Plan(**json.loads(file.read_text())) if file.exists() else None


@dataclass(frozen=True)
class Measured:
    """A short training of the baseline, measured.

    Args:
        steps_per_epoch: Optimizer steps of an epoch.
        start_seconds: Time of the training besides its steps.
        step_seconds: Time of an optimizer step.
    """

    steps_per_epoch: int
    start_seconds: float
    step_seconds: float


def make_plan(
    budget: float,
    spent: float,
    arms: int,
    at_a_time: int,
    preset_steps: int,
    measured: Measured,
    shortest: int,
) -> Plan:
    """Plan the tuning.

    With less time, first there are fewer trials, then shorter trainings, then still fewer trials,
    and only then trainings that are shorter than half of the preset's.

    Args:
        budget: Seconds for everything.
        spent: Seconds that are spent already.
        arms: Number of arms, including the baseline.
        at_a_time: Number of parallel trainings.
        preset_steps: Length of the preset on these data, in optimizer steps.
        measured: Times of a short training.
        shortest: Fewest optimizer steps; those of the preset if the length is fixed.

    Raises:
        InputError: The budget is too small for three trials of each arm.
    """
    until = TUNING * budget
    per_step = MARGIN * measured.step_seconds
    work = at_a_time * max(0.0, until - spent)

    def cost(steps: float) -> float:
        return measured.start_seconds + steps * per_step

    def trials_of(steps: float, finalists: int) -> int:
        """Return the number of trials of each arm; all arms share the first one."""
        runs = work / cost(steps) - finalists * len(FURTHER_SEEDS) * arms
        return int((runs - 1) // arms) + 1

    def longest(trials: int, finalists: int) -> int:
        """Return the longest trainings of which so many trials fit."""
        runs = 1 + (trials - 1 + finalists * len(FURTHER_SEEDS)) * arms
        return int((work / runs - measured.start_seconds) / per_step)

    steps, finalists = preset_steps, 2
    trials = trials_of(steps, finalists)
    if trials < GOOD_TRIALS:
        steps = max(longest(GOOD_TRIALS, finalists), round(SHORTEST * preset_steps), shortest)
        steps = min(steps, preset_steps)
        trials = trials_of(steps, finalists)
    if trials < FEWEST_TRIALS:
        finalists = 1
        trials = FEWEST_TRIALS
        steps = max(shortest, min(steps, longest(trials, finalists)))
        if trials_of(steps, finalists) < trials:
            runs = 1 + (trials - 1 + finalists * len(FURTHER_SEEDS)) * arms
            needed = (spent + runs * cost(shortest) / at_a_time) / TUNING
            raise InputError(
                f"BUDGET={duration(budget)} is too short: {FEWEST_TRIALS} trials of {arms} arms "
                f"with {shortest} optimizer steps each need about BUDGET={round(needed / 60 + 1)}m"
            )
    if trials_of(steps, 3) >= MANY_TRIALS:
        finalists, trials = 3, trials_of(steps, 3)
    return Plan(
        budget=budget,
        trials=min(trials, MOST_TRIALS),
        finalists=finalists,
        seeds=list(FURTHER_SEEDS),
        steps=steps,
        preset_steps=preset_steps,
        steps_per_epoch=measured.steps_per_epoch,
        start_seconds=measured.start_seconds,
        step_seconds=per_step,
        until=until,
    )


def seconds_of(budget: str) -> float:
    """Convert a budget to seconds.

    Raises:
        InputError: It has another form.

    Example:
        >>> seconds_of("90s"), seconds_of("30m"), seconds_of("1.5h")
        (90.0, 1800.0, 5400.0)
    """
    number, unit = budget[:-1], budget[-1:]
    try:
        seconds = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    # Neither NaN nor infinity.
    if not 0 < seconds < 1e9:
        raise InputError(f"BUDGET={budget} must be a time such as 90s, 30m or 2h")
    return seconds
