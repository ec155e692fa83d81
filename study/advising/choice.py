"""Which arm is recommended."""

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from study.advising.records import Advice, Contrast
from study.advising.standing import (
    seconds_of_run,
    trained_arms,
    tuned,
    validation_accuracy,
)
from study.parts import parts_of
from study.plan import load_study
from study.results import Result, collect
from study.statistics import FEWEST_SEEDS, ROUNDING
from tasks.run.yaml_files import read_yaml_file

# An arm whose runs take at most this fraction of the time is cheaper.
CHEAPER = 0.9


def preset_of(folder: Path, arm: str) -> dict[str, Any]:
    """Return the configuration in the tuned preset of an arm."""
    content = read_yaml_file(folder / "tuned" / f"{arm}.yaml")
    assert isinstance(content, dict)
    config: dict[str, Any] = next(iter(content.values())) or {}
    return config


def last_contrasts(advice: Advice) -> list[Contrast]:
    """Return the contrasts of the last look, the primary one first; empty before it."""
    looks = advice.confirmation.looks if advice.confirmation else []
    return looks[-1].contrasts if looks else []


def is_confirmed(advice: Advice) -> bool:
    """Whether there are enough pairs for intervals."""
    contrasts = last_contrasts(advice)
    return bool(contrasts) and contrasts[0].seeds >= FEWEST_SEEDS


def recommended_arm(advice: Advice, folder: Path) -> str:
    """Return the arm to use.

    With a significant gain of the primary contrast, that is its arm. Another arm with a significant
    gain takes its place if it is significantly better, or if it gains as much (less by at most the
    precision) with fewer parts or shorter trainings. Without a gain, it is the baseline: what shows
    no gain is not worth its complexity. With too few pairs for an interval, the validation accuracy
    decides.
    """
    trained = trained_arms(advice)
    if not trained:
        return advice.tuning[0].arm
    if not is_confirmed(advice):
        # The first one, if several are equal.
        return max(trained, key=validation_accuracy).arm
    primary, *others = last_contrasts(advice)
    if not (primary.significant and primary.gain > 0):
        return primary.against
    better = [
        one
        for one in others
        if one.significant and _is_better(advice, folder, one.arm, primary.arm)
    ]
    if better:
        return max(better, key=lambda one: one.gain).arm
    enough = primary.gain - advice.question.precision / 100
    rivals = [one for one in others if one.significant and one.gain >= max(enough, 0.0)]
    simpler = [one for one in rivals if _is_simpler(advice, folder, one.arm, primary.arm)]
    return max(simpler, key=lambda one: one.gain).arm if simpler else primary.arm


def _is_better(advice: Advice, folder: Path, arm: str, than: str) -> bool:
    """Whether the repeated interval of the difference between two arms is above 0."""
    assert advice.confirmation is not None
    results = confirmed_results(folder)
    critical = advice.confirmation.looks[-1].critical
    seeds = sorted(set.intersection(*(set(runs) for runs in results.values())))
    gains = [results[arm][seed].accuracy - results[than][seed].accuracy for seed in seeds]
    spread = stdev(gains)
    # Equal differences give no interval.
    return spread > ROUNDING and fmean(gains) > critical * spread / math.sqrt(len(gains))


def confirmed_results(folder: Path) -> dict[str, dict[int, Result]]:
    """Return the results of the confirmation by arm and seed."""
    collection = collect(load_study(folder / "confirm"))
    return {arm.title: runs for arm, runs in collection.results.items()}


def _is_simpler(advice: Advice, folder: Path, arm: str, than: str) -> bool:
    task = advice.question.task
    parts, others = (len(parts_of(preset_of(folder, one), task)) for one in (arm, than))
    ratio = seconds_of_run(tuned(advice, arm)) / seconds_of_run(tuned(advice, than))
    return (parts < others and ratio * CHEAPER <= 1) or (parts == others and ratio <= CHEAPER)
