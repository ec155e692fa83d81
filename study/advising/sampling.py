"""The parameters of the trials: the preset's, the literature's, then those that Optuna draws."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from scipy.stats import qmc

from study.advising.arms import LENGTH, RATE, Arm, Ranges, raw_values
from study.advising.budget import Plan
from study.advising.records import Trial
from study.search_space import Space

# The first trials that are drawn have the same learning rates and lengths in each arm.
DRAWN_ALIKE = 4
# Weight of the loss in the objective: it decides between equal accuracies only.
LOSS_WEIGHT = 1e-6
# Significant digits of a learning rate.
RATE_DIGITS = 3


class Sampler:
    """Chooses the parameters of the trials of one arm.

    It holds no state but the trials that it is given, so that an interrupted search goes on.

    Args:
        arm: The arm.
        ranges: The ranges that all arms share.
        plan: The plan, with the reference length of a training.
        baseline: Whether the arm is the baseline.
        seed: Seed of the arm.
    """

    def __init__(self, arm: Arm, ranges: Ranges, plan: Plan, baseline: bool, seed: int) -> None:
        self.arm = arm
        self.space: Space = ranges.space(arm, plan.steps)
        self.plan = plan
        self.baseline = baseline
        self.seed = seed

    def next(self, trials: Sequence[Trial], longest: int) -> Trial:
        """Make the next trial.

        Args:
            trials: All trials so far, with or without a result; the first one is that of the
                baseline's defaults.
            longest: Largest number of optimizer steps that it may take.
        """
        # The first one has the parameters of another arm.
        own = trials if self.baseline else trials[1:]
        origin: Literal["without", "default", "literature", "sampled"]
        if not own:
            origin, parameters = "without" if self.baseline else "default", self._fixed({})
        elif (untried := self._literature(own)) is not None:
            origin, parameters = "literature", untried
        else:
            origin, parameters = "sampled", self._drawn(own)
        if LENGTH in parameters:
            # Whole epochs, which a training is rounded to.
            epoch = self.plan.steps_per_epoch
            epochs = min(round(parameters[LENGTH] / epoch), longest // epoch)
            parameters[LENGTH] = max(1, epochs) * epoch
        return Trial(len(trials), origin, parameters)

    def _literature(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Return the first values from the literature that no trial has; the preset has some."""
        tried = [_without_length(trial.parameters) for trial in trials]
        entries = map(self._fixed, self.arm.literature)
        return next((one for one in entries if _without_length(one) not in tried), None)

    def _fixed(self, changed: dict[str, Any]) -> dict[str, Any]:
        """Return the values of the preset, with changes of the arm's own ones."""
        start = {RATE: self.arm.rate, LENGTH: self.plan.steps}
        start = {key: value for key, value in start.items() if key in self.space.parameters}
        return start | self.arm.own_values(changed)

    def _drawn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # `multivariate` and `constant_liar` are experimental since Optuna 2.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=DRAWN_ALIKE,
                multivariate=True,
                constant_liar=True,
                # Another seed for each trial: the sampler is made anew each time.
                seed=10_000 * self.seed + trials[-1].number + 1,
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials:
            study.add_trial(self._known(trial))
        drawn = sum(trial.origin == "sampled" for trial in trials)
        if drawn < DRAWN_ALIKE:
            study.enqueue_trial(self._alike(drawn))
        values = self.space.suggest(study.ask())
        if RATE in values:
            values[RATE] = float(f"{values[RATE]:.{RATE_DIGITS}g}")
        return values

    def _known(self, trial: Trial) -> optuna.trial.FrozenTrial:
        raw = raw_values(self.space, self.space.fixed | trial.parameters)
        states = optuna.trial.TrialState
        state, value = states.RUNNING, None
        if trial.error is not None:
            state = states.FAIL
        elif trial.results:
            first = trial.results[min(trial.results)]
            state, value = states.COMPLETE, first.accuracy - LOSS_WEIGHT * first.loss
        return optuna.trial.create_trial(
            state=state, value=value, params=raw, distributions=self.space.parameters
        )

    def _alike(self, index: int) -> dict[str, Any]:
        """Return a point of a quasi-random sequence, which is the same for all arms."""
        with warnings.catch_warnings():
            # Its balance is not needed.
            warnings.simplefilter("ignore", UserWarning)
            points = qmc.Sobol(2, rng=0).random(DRAWN_ALIKE)
        values = {}
        for key, fraction in zip((RATE, LENGTH), points[index], strict=True):
            kind = self.space.parameters.get(key)
            if isinstance(kind, FloatDistribution):
                values[key] = kind.low * (kind.high / kind.low) ** float(fraction)
        return values


def _without_length(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key != LENGTH}
