"""The recommendation: its preset, its sentence, and notes on the limits of the evidence."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import yaml

from study.advising.arms import LENGTH, RATE
from study.advising.budget import load_plan
from study.advising.choice import (
    confirmed_results,
    is_confirmed,
    last_contrasts,
    preset_of,
    recommended_arm,
)
from study.advising.commands import advise_command, train_command
from study.advising.confirming import LOOKS
from study.advising.contributions import HALF, PARTS
from study.advising.display import short_values
from study.advising.pace import MARGIN
from study.advising.records import Advice, Recommendation
from study.advising.sentence import Speaker, interval, pairs_for_precision, points, sentence
from study.advising.standing import (
    chosen_trial,
    never_trained,
    seconds_of_run,
    trained_arms,
    tuned,
)
from study.advising.words import part_in_words
from study.designs import LACKING
from study.gain_table import ALL_PARTS, join
from study.launch import ERROR
from study.preset_text import section_text
from study.results import Result
from study.statistics import FEWEST_SEEDS
from tasks.run.presets import config_stack

FILE = "recommended.yaml"
# Part of a larger budget that goes to the pairs.
FOR_PAIRS = 0.7


def recommend(advice: Advice, folder: Path, at_a_time: int) -> Advice:
    """Choose the arm, write `recommended.yaml`, and return the advice with its recommendation.

    Args:
        advice: The advice after the confirmation.
        folder: Its folder.
        at_a_time: Number of parallel runs.
    """
    arm = recommended_arm(advice, folder)
    said = sentence(advice, folder, arm)
    file = folder / FILE
    command = train_command(advice.question, file)
    if tuned(advice, arm).preset:
        config = preset_of(folder, arm)
    else:
        # Nothing trained: the defaults of the baseline.
        question = advice.question
        config = yaml.safe_load(config_stack(question.task, question.arms[0], question.data)[-1])
    partial = file.with_suffix(".partial")
    partial.write_text(section_text(advice.question.task, config, [command, said]))
    partial.replace(file)
    known = notes(advice, folder, arm, at_a_time)
    made = Recommendation(arm, said, known, str(file), command)
    return replace(advice, recommendation=made)


def notes(advice: Advice, folder: Path, arm: str, at_a_time: int) -> list[str]:
    """Return what the sentence leaves out: limits of the evidence, and how to continue."""
    speaker = Speaker(advice, folder)
    trained = {one.arm for one in trained_arms(advice)}
    found = [
        f"{name}: the training never left chance accuracy in the tuning, so that nothing is known "
        "about its effect; a lower learning rate or more steps may help."
        for name in never_trained(advice)
        if trained
    ]
    if is_confirmed(advice):
        pairs = last_contrasts(advice)[0].seeds
        found.append(
            f"Confirmed with {pairs} pairs of fresh seeds; each run read the test split once."
        )
    found += _short_trainings(advice, folder, at_a_time)
    found += _larger_gains(advice, speaker, arm)
    found += _not_run(advice)
    found += _collapsed(advice, folder)
    found += _likelihood(advice, folder, arm)
    found += _parts(advice, speaker)
    found += _half_of_data(advice, folder)
    found += _how_to_continue(advice, at_a_time)
    return found


def _short_trainings(advice: Advice, folder: Path, at_a_time: int) -> list[str]:
    """Warn if the budget sufficed only for shorter trainings than those of the preset."""
    plan = load_plan(folder)
    if plan is None or plan.steps >= plan.preset_steps:
        return []
    budget = f"{plan.comfortable_minutes(len(advice.tuning), at_a_time)}m"
    return [
        f"The trainings had about {plan.steps} optimizer steps, those of the preset have "
        f"{plan.preset_steps}. Shorter trainings favour what learns fast: with BUDGET={budget} and "
        "another NAME they are as long."
    ]


def _larger_gains(advice: Advice, speaker: Speaker, arm: str) -> list[str]:
    """Name arms that look better than the recommended one."""
    if not is_confirmed(advice):
        return []
    contrasts = last_contrasts(advice)
    own = next((one.gain for one in contrasts if one.arm == arm), 0.0)
    why = "the difference is not significant"
    if arm == contrasts[0].against:
        why = "no gain is claimed: the primary contrast, which is tested first, shows none"
    smallest = advice.question.precision / 100
    return [
        f"{speaker.subject(one.arm, 'gets')} {points(one.gain - own)} points more on the test "
        f"split, but {why}."
        for one in contrasts
        if one.arm != arm and one.gain - own > smallest and (one.low or 0.0) > 0
    ]


def _not_run(advice: Advice) -> list[str]:
    contrasts = last_contrasts(advice)
    compared = {name for one in contrasts for name in (one.arm, one.against)}
    left_out = [one.arm for one in trained_arms(advice) if one.arm not in compared]
    if not contrasts or not left_out:
        return []
    return [f"{join(left_out)}: not confirmed; the budget sufficed for the primary contrast only."]


def _collapsed(advice: Advice, folder: Path) -> list[str]:
    """Count the collapsed runs, and give the gain without them.

    They count in the gain: who uses the arm gets such runs as well.
    """
    confirmation = advice.confirmation
    if confirmation is None or not any(one.at_chance for one in last_contrasts(advice)):
        return []
    results = confirmed_results(folder)
    seeds = sorted(set.intersection(*(set(runs) for runs in results.values())))
    baseline = results[confirmation.baseline]
    said = []
    for arm, runs in results.items():
        stuck = [seed for seed in seeds if runs[seed].at_chance]
        if stuck:
            said.append(
                f"{len(stuck)} of {len(seeds)} runs of {arm} stayed at chance accuracy (seeds "
                f"{', '.join(map(str, stuck))}) and count in its accuracy."
            )
    for one in last_contrasts(advice):
        rest = [s for s in seeds if not runs_at_chance(results[one.arm], baseline, s)]
        if one.at_chance and rest:
            gain = fmean(results[one.arm][s].accuracy - baseline[s].accuracy for s in rest)
            said.append(
                f"Without the pairs with such runs, {one.arm} differs by {points(gain)} points "
                f"({len(rest)} pairs)."
            )
    return said


def runs_at_chance(first: Mapping[int, Result], second: Mapping[int, Result], seed: int) -> bool:
    """Whether a run of a pair stayed at chance accuracy."""
    return first[seed].at_chance or second[seed].at_chance


def _likelihood(advice: Advice, folder: Path, arm: str) -> list[str]:
    """Warn if probabilities get worse while accuracy gets better."""
    one = next((one for one in last_contrasts(advice) if one.arm == arm), None)
    if one is None or one.gain <= 0 or not is_confirmed(advice):
        return []
    results = confirmed_results(folder)
    own, baseline = results[arm], results[one.against]
    seeds = sorted(set(own) & set(baseline))
    pairs = [(own[seed].loss_calibrated, baseline[seed].loss_calibrated) for seed in seeds]
    changes = [new - old for new, old in pairs if new is not None and old is not None]
    if len(changes) < len(seeds) or fmean(changes) <= 0:
        return []
    return [
        f"Its probabilities are worse: the negative log-likelihood after temperature scaling is "
        f"{fmean(changes):.3f} nats higher than that of the baseline."
    ]


def _parts(advice: Advice, speaker: Speaker) -> list[str]:
    """Say what each part contributes, and whether that explains the gain."""
    contrasts = advice.confirmation.parts if advice.confirmation else []
    if not contrasts:
        return []
    arm = contrasts[0].arm
    config = speaker.config(arm)
    words = {part.name: part_in_words(part, config) for part in speaker.parts(arm)}
    words |= {ALL_PARTS: f"all {len(words)} together"}
    said = [
        f"{words[one.against.removeprefix(f'{arm} without ')]} {points(one.gain)} points "
        f"({interval(one)})"
        for one in contrasts
    ]
    found = [
        f"What each part contributes, without new tuning ({contrasts[0].seeds} pairs): "
        f"{'; '.join(said)}."
    ]
    baseline = advice.tuning[0].arm
    if arm != baseline and not any(one.significant and one.gain > 0 for one in contrasts):
        own, other = (_rate_and_length(advice, one) for one in (arm, baseline))
        why = f": the gain may come from {own} instead of {other}" if own != other else ""
        found.append(f"None of these contributions is significant{why}.")
    return found


def _rate_and_length(advice: Advice, arm: str) -> str:
    trial = chosen_trial(tuned(advice, arm))
    assert trial is not None
    return short_values(
        {key: value for key, value in trial.parameters.items() if key in (RATE, LENGTH)}
    )


def _half_of_data(advice: Advice, folder: Path) -> list[str]:
    confirmation = advice.confirmation
    half = confirmation.half_data if confirmation else None
    failed = sorted(file for name in (PARTS, HALF) for file in folder.glob(f"{name}/*/{ERROR}"))
    if half is not None:
        said = [
            f"The second half of the training examples contributes {points(half.gain)} points "
            f"({interval(half)}; {half.seeds} pairs)."
        ]
    elif confirmation is not None and is_confirmed(advice) and not failed:
        missing = "half of the data"
        if not confirmation.parts and advice.question.design not in LACKING:
            missing = f"the parts of the recommendation, or for {missing}"
        said = [f"No time was left for {missing}."]
    else:
        said = []
    return said + [f"A further run failed: see {file}" for file in failed[:1]]


def _how_to_continue(advice: Advice, at_a_time: int) -> list[str]:
    """Say which budget would give narrower intervals."""
    confirmation = advice.confirmation
    if confirmation is None or confirmation.stopped == "precision":
        return []
    contrasts = last_contrasts(advice)
    pairs = contrasts[0].seeds if contrasts else 0
    arms = trained_arms(advice)
    of_pair = MARGIN * sum(seconds_of_run(arm) for arm in arms) / at_a_time
    enough = pairs_for_precision(advice)
    precision = f"{advice.question.precision:g}"
    if pairs < FEWEST_SEEDS:
        wanted = LOOKS[0]
        why = f"{wanted} pairs give intervals"
    elif enough is None:
        return []
    elif enough > LOOKS[-1]:
        return [
            f"Intervals of {precision} points each way need about {enough} pairs, more than the "
            f"{LOOKS[-1]} that are run: a larger PRECISION ends earlier."
        ]
    elif enough <= pairs:
        return []
    else:
        wanted = enough
        why = f"about {enough - pairs} more pairs narrow all intervals to {precision} points"
    budget = advice.seconds + of_pair * (wanted - pairs) / FOR_PAIRS
    command = advise_command(replace(advice.question, budget=budget))
    return [f"To continue: {why}: {command}"]
