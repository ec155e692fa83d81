"""Confirmation: the tuned arms with fresh paired seeds, until the intervals are narrow enough.

The primary contrast is fixed before the first run: the arm with the highest validation accuracy
against the baseline. Pairs are added in rounds. Each round ends with a look whose intervals are
valid however many looks there are (`study.sequential`). How many pairs a round adds depends on the
time left, never on the gains seen so far.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from study.advising.contributions import contributions
from study.advising.pace import Pace, Run, run_groups
from study.advising.records import Advice, Confirmation, Contrast, Look
from study.advising.standing import seconds_of_run, trained_arms, validation_accuracy
from study.advising.work import Work
from study.gain_table import check_pairs
from study.plan import Study
from study.results import Collection, collect
from study.sequential import Boundary, adjust, next_boundary
from study.statistics import FEWEST_SEEDS
from tasks.errors import InputError

FOLDER = "confirm"
FIRST_SEED = 100
# Numbers of paired seeds after which there is a look, as far as the budget allows.
LOOKS = (5, 8, 12, 18, 27, 40, 60, 100)
# With fewer pairs, all time is for pairs.
ENOUGH_PAIRS = 5
# Fraction of the time for the parts of the recommendation and for half of the data.
FURTHER_QUESTIONS = 0.25
# Seconds of the budget for the page and the report: 10 with both cores in use, on 2 CPU cores.
CLOSING = 20.0


def confirm(advice: Advice, folder: Path, work: Work) -> Iterator[Advice]:
    """Run the tuned arms with fresh seeds; yield the advice after each run and each look.

    Runs and looks that exist are kept. With fewer than two arms that trained, nothing is compared.

    Args:
        advice: The advice after tuning.
        folder: Its folder.
        work: Starts the runs.

    Raises:
        InputError: All pairs of a round failed.
    """
    arms = trained_arms(advice)
    if len(arms) < 2:
        return
    if advice.confirmation is None:
        primary = max(arms[1:], key=validation_accuracy)
        begun = Confirmation(primary.arm, baseline=arms[0].arm, planned=[])
        advice = replace(advice, confirmation=begun)
    pace = Pace({arm.arm: seconds_of_run(arm) for arm in arms}, work.at_a_time)
    rounds = Rounds(advice, folder, work, pace)
    while (planned := rounds.plan(advice)) is not None:
        # What belongs to the looks so far is made anew after the next one.
        advice = _changed(advice, planned=planned, stopped="", parts=[], half_data=None)
        yield advice
        looks = len(_confirmation(advice).looks)
        study = rounds.study(planned[looks])
        study.save()
        for _ in run_groups(rounds.groups[: planned[looks]], work, pace, rounds.keep):
            yield advice
        advice = look(advice, collect(study))
        if len(_confirmation(advice).looks) == looks:
            break
        yield advice
    if not _confirmation(advice).stopped:
        advice = _changed(advice, stopped=_why_stopped(advice))
        yield advice
    yield from contributions(advice, folder, work, pace, CLOSING)


class Rounds:
    """Plans the rounds of the confirmation by the time left.

    Args:
        advice: The advice at the start of the confirmation.
        folder: Its folder.
        work: Starts the runs.
        pace: Estimates their time.
    """

    def __init__(self, advice: Advice, folder: Path, work: Work, pace: Pace) -> None:
        self.question = advice.question
        self.folder = folder
        self.work = work
        self.pace = pace
        left = work.left - CLOSING
        confirmation = _confirmation(advice)
        first = [confirmation.baseline, confirmation.primary]
        self.arms = [*first, *(one.arm for one in trained_arms(advice) if one.arm not in first)]
        self.groups = self._groups()
        if pace.affordable(self.groups[:FEWEST_SEEDS], left) < FEWEST_SEEDS:
            # An interval of the primary contrast is worth more than two pairs of all arms.
            self.arms = first
            self.groups = self._groups()
        share = FURTHER_QUESTIONS * left
        enough = pace.affordable(self.groups[:ENOUGH_PAIRS], left - share) == ENOUGH_PAIRS
        self.keep = CLOSING + (share if enough else 0.0)

    def plan(self, advice: Advice) -> list[int] | None:
        """Return the number of pairs at each look, made or to come; None if no further one is due.

        Only the time left decides, and whether the precision is reached.
        """
        confirmation = _confirmation(advice)
        made = confirmation.planned[: len(confirmation.looks)]
        tried = made[-1] if made else 0
        if is_precise(advice):
            return None
        most = self.pace.affordable(self.groups, self.work.left - self.keep)
        # Fewer further pairs would hardly change the interval.
        if most - tried < max(1, ceil(tried / 5)):
            return None
        ahead = [number for number in LOOKS if tried < number <= most]
        if not ahead or most >= 1.5 * ahead[-1]:
            ahead.append(most)
        return [*made, *ahead[:-1], most]

    def study(self, pairs: int) -> Study:
        """Return the study of the tuned arms with fresh seeds, the baseline first."""
        return Study(
            self.question.task,
            self.question.data,
            [str(self.folder / "tuned" / f"{arm}.yaml") for arm in self.arms],
            list(range(FIRST_SEED, FIRST_SEED + pairs)),
            arguments=self.question.arguments,
            name=FOLDER,
            root=self.folder,
            group=self.question.name,
        )

    def _groups(self) -> list[list[Run]]:
        """Return the runs of all pairs, one group per seed."""
        study, threads = self.study(LOOKS[-1]), self.work.threads
        return [
            [Run(arm.title, study.job(arm, seed, threads, gpus=0)) for arm in study.arms()]
            for seed in study.seeds
        ]


def look(advice: Advice, collection: Collection) -> Advice:
    """Add a look at the complete pairs; the advice is unchanged if there are no new ones.

    If the time has run out before the planned number of pairs, this is the last look. Its results
    have not been seen before.

    Raises:
        InputError: New runs failed, so that there is no new pair.
    """
    confirmation, study = _confirmation(advice), collection.study
    results = {arm.title: found for arm, found in collection.results.items()}
    pairs = [seed for seed in study.seeds if all(seed in found for found in results.values())]
    earlier = confirmation.looks[-1].seeds if confirmation.looks else 0
    if len(pairs) <= earlier:
        if collection.errors:
            name, error = next(iter(collection.errors.items()))
            raise InputError(
                f"no new pair of the confirmation is complete; {study.folder / name}: {error}"
            )
        return advice
    check_pairs(study, list(collection.results), list(collection.results.values()))
    failed = sum(
        any(f"{arm.name}-s{seed}" in collection.errors for arm in study.arms())
        for seed in study.seeds
    )
    number = len(confirmation.looks)
    tried, planned = len(pairs) + failed, confirmation.planned
    if tried < planned[number]:
        planned = [*planned[:number], tried]
    most = len(pairs) + planned[-1] - tried
    boundary = None
    if len(pairs) >= FEWEST_SEEDS:
        spent = [(one.seeds, one.alpha_spent) for one in confirmation.looks if one.alpha_spent]
        boundary = next_boundary(len(pairs), most, spent)
    order = [confirmation.primary, *(a for a in results if a not in _first(confirmation))]
    contrasts = []
    for arm in order:
        sides = [results[arm], results[confirmation.baseline]]
        differences = [sides[0][seed].accuracy - sides[1][seed].accuracy for seed in pairs]
        at_chance = sum(side[seed].at_chance for side in sides for seed in pairs)
        contrasts.append(_contrast(arm, confirmation.baseline, differences, at_chance, boundary))
    corrected = adjust(contrasts[0].p, [one.p for one in contrasts[1:]])
    made = Look(
        len(pairs),
        boundary.alpha_spent if boundary else 0.0,
        boundary.critical if boundary else 0.0,
        [replace(one, p_adjusted=p) for one, p in zip(contrasts, corrected, strict=True)],
    )
    return _changed(advice, planned=planned, looks=[*confirmation.looks, made])


def _contrast(
    arm: str,
    against: str,
    differences: Sequence[float],
    at_chance: int,
    boundary: Boundary | None,
) -> Contrast:
    if boundary is None:
        mean = sum(differences) / len(differences)
        return Contrast(arm, against, len(differences), mean, at_chance=at_chance)
    estimate = boundary.estimate(differences)
    return Contrast(
        arm,
        against,
        len(differences),
        estimate.mean,
        estimate.low,
        estimate.high,
        boundary.p_value(differences),
        at_chance=at_chance,
    )


def is_precise(advice: Advice) -> bool:
    """Whether the last look has all intervals, each narrower than the precision each way."""
    looks = _confirmation(advice).looks
    widest = advice.question.precision / 100
    return bool(looks) and all(
        one.low is not None and one.high is not None and (one.high - one.low) / 2 <= widest
        for one in looks[-1].contrasts
    )


def _why_stopped(advice: Advice) -> str:
    if is_precise(advice):
        return "precision"
    planned = _confirmation(advice).planned
    return "planned" if planned and planned[-1] >= LOOKS[-1] else "budget"


def _first(confirmation: Confirmation) -> list[str]:
    return [confirmation.baseline, confirmation.primary]


def _confirmation(advice: Advice) -> Confirmation:
    assert advice.confirmation is not None
    return advice.confirmation


def _changed(advice: Advice, **changes: Any) -> Advice:
    return replace(advice, confirmation=replace(_confirmation(advice), **changes))
