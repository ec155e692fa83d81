"""Two further questions about the recommendation, with the fresh seeds of the confirmation.

What does each part of it contribute? It is compared with itself without that part, and without all
of them; nothing is tuned again, so that learning rate and length are the same on both sides. And
what do more data contribute? It is compared with itself with half of the training
examples and as many optimizer steps.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from study.advising.choice import confirmed_results, preset_of, recommended_arm
from study.advising.pace import Pace, Run, run_groups
from study.advising.records import Advice, Contrast
from study.advising.work import Work
from study.designs import LACKING
from study.gain_table import ALL_PARTS
from study.parts import Part, parts_of, without
from study.plan import Study
from study.preset_text import section_text
from study.results import Result, collect
from study.statistics import FEWEST_SEEDS, holm, p_value, paired_estimate
from tasks.run.given import given_value

PARTS, HALF = "parts", "half"
FRACTION = "data.train_fraction"
# In W&B, for panels that show the confirmation alone.
JOB_TYPE = "contribution"


def contributions(
    advice: Advice, folder: Path, work: Work, pace: Pace, keep: float
) -> Iterator[Advice]:
    """Answer both questions if the time suffices for three seeds; yield the advice after each run.

    Args:
        advice: The advice after the confirmation.
        folder: Its folder.
        work: Starts the runs.
        pace: Estimates their time.
        keep: Seconds of the budget to be left at the end.
    """
    confirmation = advice.confirmation
    if confirmation is None or not confirmation.looks:
        return
    arm = recommended_arm(advice, folder)
    whole = confirmed_results(folder)[arm]
    seeds = sorted(whole)[: confirmation.looks[-1].seeds]
    if len(seeds) < FEWEST_SEEDS:
        return
    removed = {}
    # Arms that lack a part each have answered the first question, tuned.
    if advice.question.design not in LACKING:
        removed = _removals(parts_of(preset_of(folder, arm), advice.question.task))
    # What was begun is continued, if the time suffices for what is missing.
    begun = {name for name in (PARTS, HALF) if any((folder / name).glob(f"{arm}-*"))}
    begun |= _affordable(pace, arm, len(removed), work.left - keep)
    parts = _without_parts(advice, folder, arm, removed, seeds) if PARTS in begun else None
    half = _half_of_data(advice, folder, arm, seeds) if HALF in begun else None
    for study in (parts, half):
        pace.expected |= {one.title: pace.seconds(arm) for one in study.arms()} if study else {}
    for studies in ([parts, half], [parts], [half]):
        asked = [study for study in studies if study is not None]
        groups = [
            [
                Run(one.title, study.job(one, seed, work.threads, gpus=0))
                for study in asked
                for one in study.arms()
            ]
            for seed in seeds
        ]
        affordable = pace.affordable(groups, work.left - keep)
        if asked and affordable >= FEWEST_SEEDS:
            for _ in run_groups(groups[:affordable], work, pace, keep):
                yield advice
            break
    found = []
    if parts is not None:
        for name, runs in zip(removed, collect(parts).results.values(), strict=True):
            found.append(_contrast(arm, f"{arm} without {name}", whole, runs))
    found = [one for one in found if one.seeds >= FEWEST_SEEDS]
    corrected = holm([one.p for one in found])
    found = [replace(one, p_adjusted=p) for one, p in zip(found, corrected, strict=True)]
    halved = None
    for runs in collect(half).results.values() if half else ():
        halved = _contrast(arm, f"{arm} with half of the data", whole, runs)
        halved = replace(halved, p_adjusted=halved.p) if halved.seeds >= FEWEST_SEEDS else None
    yield replace(advice, confirmation=replace(confirmation, parts=found, half_data=halved))


def _removals(parts: list[Part]) -> dict[str, list[Part]]:
    """Return what is removed from the recommendation: each part, and all of several parts."""
    found = {part.name: [part] for part in parts}
    return found | {ALL_PARTS: parts} if len(parts) > 1 else found


def _affordable(pace: Pace, arm: str, parts: int, seconds: float) -> set[str]:
    """Return the questions that can be answered within a time, both if possible."""
    possible = [{PARTS: parts, HALF: 1}, {PARTS: parts}] if parts else []
    for asked in (*possible, {HALF: 1}):
        if pace.together([arm] * sum(asked.values()) * FEWEST_SEEDS) <= seconds:
            return {*asked}
    return set()


def _without_parts(
    advice: Advice, folder: Path, arm: str, removed: Mapping[str, list[Part]], seeds: list[int]
) -> Study:
    """Return the study of the recommendation without each part, and without all of them."""
    presets = [
        _preset(
            folder / PARTS / f"{arm}-without-{name.replace(' ', '-')}.yaml",
            f"The recommended preset without {name}; nothing is tuned again.",
            advice.question.task,
            functools.reduce(without, parts, preset_of(folder, arm)),
        )
        for name, parts in removed.items()
    ]
    return _study(advice, folder, PARTS, presets, seeds, [])


def _half_of_data(advice: Advice, folder: Path, arm: str, seeds: list[int]) -> Study:
    fraction = float(given_value(advice.question.arguments, FRACTION) or 1.0)
    # A preset of its own, so that the runs have other names than those of the confirmation.
    preset = _preset(
        folder / HALF / f"{arm}-half-data.yaml",
        "The recommended preset; the runs train with half of the examples.",
        advice.question.task,
        preset_of(folder, arm),
    )
    return _study(advice, folder, HALF, [preset], seeds, [f"--{FRACTION}={fraction / 2:g}"])


def _preset(file: Path, comment: str, task: str, config: dict[str, Any]) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text(section_text(task, config, [comment]))
    return str(file)


def _study(
    advice: Advice,
    folder: Path,
    name: str,
    presets: list[str],
    seeds: list[int],
    further: list[str],
) -> Study:
    question = advice.question
    further = [f"--trainer.logger.init_args.job_type={JOB_TYPE}", *further]
    return Study(
        question.task,
        question.data,
        presets,
        seeds,
        arguments=[*question.arguments, *further],
        name=name,
        root=folder,
        group=question.name,
    )


def _contrast(
    arm: str, against: str, whole: Mapping[int, Result], other: Mapping[int, Result]
) -> Contrast:
    """Compare the recommendation with a change of it, on their common seeds."""
    seeds = sorted(set(whole) & set(other))
    differences = [whole[seed].accuracy - other[seed].accuracy for seed in seeds]
    if not differences:
        return Contrast(arm, against, 0, 0.0)
    estimate = paired_estimate(differences)
    return Contrast(
        arm,
        against,
        len(seeds),
        fmean(differences),
        estimate.low,
        estimate.high,
        p_value(differences),
        at_chance=_at_chance(seeds, [whole, other]),
    )


def _at_chance(seeds: Sequence[int], sides: Sequence[Mapping[int, Result]]) -> int:
    return sum(side[seed].at_chance for side in sides for seed in seeds)
