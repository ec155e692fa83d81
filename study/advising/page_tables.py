"""The tables of an advice's page: cells as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from study.advising.charts import eligible_accuracies, repeated
from study.advising.expected_best import expected_best
from study.advising.records import Advice, ArmTuning, Contrast
from study.gain_table import GainTable, format_change
from study.results import Collection
from tasks.run.plain_text import without_folders

GAIN_COLUMNS = ["arm", "pairs", "gain", "95 % interval", "p (Holm)", "at chance"]
CHANGE_COLUMNS = ["arm", "last epoch", "NLL", "NLL, scaled"]
LEVEL_COLUMNS = ["arm", "test %", "NLL", "NLL, scaled", "gap", "ECE", "ECE, scaled"]
# By the name of the study.
PHASES = {"confirm": "confirmation", "parts": "parts", "half": "half of the data"}
COST_COLUMNS = ["phase and arm", "trainings", "optimizer steps", "minutes", "ms per step"]
TUNING_COLUMNS = ["arm", "trials", "best, %", "expected best of all", "of half as many"]
FINALIST_COLUMNS = ["finalist", "first seed, %", "further seeds, %", "change"]
PART_COLUMNS = ["compared with", "pairs", "gain", "95 % interval"]
TRIAL_COLUMNS = ["trial", "origin", "validation %", "further seeds"]


def points(value: float | None) -> str:
    """Format a fraction in points with its sign."""
    return "" if value is None else f"{100 * value:+.2f}"


def interval(one: Contrast) -> str:
    """Format an interval in points."""
    if one.low is None or one.high is None:
        return "none yet"
    return f"{points(one.low)} to {points(one.high)}"


def gain_rows(contrasts: Sequence[Contrast], primary: str) -> list[dict[str, Any]]:
    """List the contrasts of a look."""
    found = []
    for one in contrasts:
        p = "" if one.p_adjusted is None else f"{one.p_adjusted:.2g}"
        figures = [points(one.gain), interval(one), p, str(one.at_chance or "")]
        note = "primary contrast" if one.arm == primary else ""
        found.append({"cells": [one.arm, str(one.seeds), *figures], "note": note})
    return found


def change_rows(table: GainTable) -> list[list[str]]:
    """List the gain at the last epoch and the change of the likelihood of each arm."""
    return [
        [
            label,
            format_change(one.gain_last, False, 100, 2),
            format_change(one.loss, False),
            format_change(one.loss_calibrated, False),
        ]
        for label, one in list(zip(table.labels, table.comparisons, strict=True))[1:]
    ]


def part_rows(labels: Sequence[str], contrasts: Sequence[Contrast]) -> list[list[str]]:
    """List the contrasts of the recommendation with itself without a part."""
    return [
        [label, str(one.seeds), points(one.gain), interval(one)]
        for label, one in zip(labels, contrasts, strict=True)
    ]


def level_rows(table: GainTable) -> list[list[str]]:
    """List the mean accuracy, likelihood, gap and calibration of each arm."""
    found = []
    for label, results in zip(table.labels, table.results, strict=True):
        tests = [result.record["test"] for result in results.values()]
        found.append(
            [
                label,
                _mean([one["acc"] for one in tests], 100, 2),
                _mean([one["loss"] for one in tests], 1, 3),
                _mean([one.get("loss_calibrated") for one in tests], 1, 3),
                _mean([result.gap for result in results.values()], 100, 2),
                _mean([one["ece"] for one in tests], 100, 2),
                _mean([one.get("ece_calibrated") for one in tests], 100, 2),
            ]
        )
    return found


def _mean(values: Sequence[Any], scale: float, digits: int) -> str:
    # Older results lack some.
    if not values or None in values:
        return "-"
    return f"{scale * float(np.mean(values)):.{digits}f}"


def cost_rows(tuning: Sequence[ArmTuning], collections: Sequence[Collection]) -> list[list[str]]:
    """List trainings, steps and time by arm and phase.

    Args:
        tuning: The tuning of each arm.
        collections: The runs of the later phases.
    """
    found = []
    for index, arm in enumerate(tuning):
        # All arms share the trial without the regularizer; it is counted in the first one.
        own = [trial for trial in arm.trials if index == 0 or trial.origin != "without"]
        trainings = sum(len(trial.results) for trial in own)
        found.append(_cost(f"tuning: {arm.arm}", trainings, arm.steps, arm.seconds))
    for collection in collections:
        for one, results in collection.results.items():
            records = [result.record for result in results.values()]
            steps = sum(int(made["steps"]) for made in records)
            seconds = sum(float(made["seconds"]["all"]) for made in records)
            if records:
                phase = f"{PHASES[collection.study.name]}: {one.title}"
                found.append(_cost(phase, len(records), steps, seconds))
    return found


def _cost(phase: str, trainings: int, steps: int, seconds: float) -> list[str]:
    step = f"{1000 * seconds / steps:.1f}" if steps else ""
    return [phase, str(trainings), f"{steps:,}", f"{seconds / 60:.1f}", step]


def trial_tables(tuning: Sequence[ArmTuning]) -> list[dict[str, Any]]:
    """List all trials of each arm with their parameters, the highest accuracy first."""
    found = []
    for arm in tuning:
        keys = list(dict.fromkeys(key for trial in arm.trials for key in trial.parameters))
        rows = []
        for trial in sorted(arm.trials, key=lambda one: -_first(arm, one)):
            first = trial.results.get(arm.first_seed)
            accuracy = "failed" if trial.error else "running"
            if first is not None:
                accuracy = f"{100 * first.accuracy:.2f}" + ", at chance" * first.at_chance
            others = [r.accuracy for seed, r in sorted(trial.results.items()) if r is not first]
            mark = " (chosen)" if trial.number == arm.chosen else ""
            rows.append(
                [
                    f"{trial.number}{mark}",
                    trial.origin,
                    accuracy,
                    ", ".join(f"{100 * one:.2f}" for one in others),
                    *(value_text(trial.parameters.get(key, "")) for key in keys),
                ]
            )
        columns = [*TRIAL_COLUMNS, *(key.removeprefix("model.") for key in keys)]
        found.append({"arm": arm.arm, "columns": columns, "rows": rows})
    return found


def _first(arm: ArmTuning, trial: Any) -> float:
    first = trial.results.get(arm.first_seed)
    return -1.0 if first is None else first.accuracy


def value_text(value: Any) -> str:
    """Format the value of a parameter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tuning_rows(tuning: Sequence[ArmTuning]) -> list[list[str]]:
    """List for each arm its trials, the best so far and the expected best of fewer."""
    found = []
    for index, arm in enumerate(tuning):
        values = eligible_accuracies(arm, index)
        curve = expected_best(values)
        half = max(1, len(curve) // 2)
        texts = ["", "", ""]
        if curve:
            texts = [
                f"{100 * max(values):.2f}",
                f"{100 * curve[-1][0]:.2f} ± {100 * curve[-1][1]:.2f}",
                f"{100 * curve[half - 1][0]:.2f} ± {100 * curve[half - 1][1]:.2f}",
            ]
        found.append([arm.arm, str(len(values)), *texts])
    return found


def finalist_rows(tuning: Sequence[ArmTuning]) -> list[list[str]]:
    """List the finalists: accuracy with the first seed and with further seeds."""
    return [
        [
            f"{arm.arm} #{trial.number}{' (chosen)' if trial.number == arm.chosen else ''}",
            f"{100 * first:.2f}",
            f"{100 * mean:.2f}",
            points(mean - first),
        ]
        for arm in tuning
        for trial, first, mean in repeated(arm)
    ]


def regression(tuning: Sequence[ArmTuning]) -> float | None:
    """Return the mean change of the finalists from the first seed to further seeds."""
    changes = [mean - first for arm in tuning for _, first, mean in repeated(arm)]
    return float(np.mean(changes)) if changes else None


def failures(advice: Advice, errors: dict[str, str]) -> list[str]:
    """List the trainings that failed or stayed at chance.

    Args:
        advice: The advice.
        errors: Errors of the runs of the confirmation, by name.
    """
    found = []
    for arm in advice.tuning:
        found += [
            f"tuning of {arm.arm}, trial {trial.number}: {without_folders(trial.error)}"
            for trial in arm.trials
            if trial.error
        ]
        trained = [one for trial in arm.trials for one in trial.results.values()]
        collapsed = sum(one.at_chance for one in trained)
        if collapsed:
            found.append(
                f"tuning of {arm.arm}: {collapsed} of {len(trained)} trainings stayed at chance "
                "accuracy"
            )
    found += [f"confirmation, {name}: {without_folders(text)}" for name, text in errors.items()]
    return found
