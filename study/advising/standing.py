"""How the arms stand after the tuning."""

from statistics import fmean

from study.advising.records import Advice, ArmTuning, Trial, Validated


def chosen_trial(arm: ArmTuning) -> Trial | None:
    """Return the chosen trial; None if there is none."""
    return next((one for one in arm.trials if one.number == arm.chosen), None)


def chosen_results(arm: ArmTuning) -> dict[int, Validated]:
    """Return the results of the chosen trial by seed; empty if there is none."""
    trial = chosen_trial(arm)
    return trial.results if trial else {}


def has_trained(arm: ArmTuning) -> bool:
    """Whether the chosen trial left chance accuracy with any seed."""
    return any(not one.at_chance for one in chosen_results(arm).values())


def validation_accuracy(arm: ArmTuning) -> float:
    """Return the mean validation accuracy of the chosen trial.

    The seed that all trials share counts only if there is no other: it chose the finalists, so that
    its accuracy is too high.
    """
    results = chosen_results(arm)
    further = [one.accuracy for seed, one in results.items() if seed != arm.first_seed]
    return fmean(further or [one.accuracy for one in results.values()])


def seconds_of_run(arm: ArmTuning) -> float:
    """Return the mean duration of a run of the chosen trial."""
    return fmean(one.seconds for one in chosen_results(arm).values())


def tuned(advice: Advice, arm: str) -> ArmTuning:
    """Return the tuning of an arm."""
    return next(one for one in advice.tuning if one.arm == arm)


def trained_arms(advice: Advice) -> list[ArmTuning]:
    """Return the arms that can be confirmed, the baseline first."""
    return [arm for arm in advice.tuning if has_trained(arm)]


def never_trained(advice: Advice) -> list[str]:
    """Return the arms whose training stayed at chance accuracy in all trials."""
    return [one.arm for one in advice.tuning if not has_trained(one)]
