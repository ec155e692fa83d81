"""Validation accuracy as a function of the parameters of a search, with uncertainty.

A Gaussian process (Rasmussen & Williams 2006) smooths the noise of seeds and small validation sets:
the highest of many single trials is biased upwards.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from study.search_space import Space
from study.trial_results import (
    INTERVAL_WIDTH,
    sampling_half_width,
    seed_spread,
    validation_examples,
)

# Points per curve.
CURVE_POINTS = 61


@dataclass(frozen=True)
class Response:
    """The result of a search.

    Args:
        best: Parameters of the trial with the highest smoothed accuracy.
        expected: That accuracy and the half width of its 95 % interval; fractions. The interval has
            the uncertainty of the smoothed curve, and that of the choice of validation examples or
            that of the seeds by Student's t, whichever is larger.
        curves: For each numeric parameter, with the others at their best values: arrays of its
            values, the expected accuracy and the half width of its 95 % interval.
        importance: Fraction of the variance of the accuracy that each parameter explains.
        smoothing: Half width of the 95 % interval of the smoothed accuracy on these examples.
        sampling: Half width of the 95 % binomial interval over the choice of validation examples.
        examples: Number of validation examples; None, like `sampling`, if it is not known.
        spread: Standard deviation over the seeds of a trial; None with one seed per trial. It has
            variation of the training, and of the validation split where each seed has its own.
    """

    best: dict[str, Any]
    expected: tuple[float, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    importance: dict[str, float]
    smoothing: float
    sampling: float | None = None
    examples: int | None = None
    spread: float | None = None

    @property
    def sources(self) -> str:
        """Where the uncertainty of the expected accuracy is from, in percentage points."""
        text = f"± {100 * self.smoothing:.2f} from the trials"
        if self.sampling is not None:
            text += (
                f", ± {100 * self.sampling:.2f} from the choice of {self.examples} "
                "validation examples"
            )
        if self.spread is None:
            return f"{text}; one seed per trial: the variation between seeds is not measured"
        return f"{text}; seeds of a trial have a standard deviation of {100 * self.spread:.2f}"

    def __str__(self) -> str:
        """Return the expected accuracy and where its uncertainty is from."""
        mean, half = self.expected
        return f"{100 * mean:.2f} ± {100 * half:.2f} % ({self.sources})"


def encode(space: Space, rows: list[dict[str, Any]]) -> np.ndarray:
    """Encode parameters in [0, 1]: logarithmic ones by logarithm, categories one-hot."""
    columns = []
    for key, kind in space.parameters.items():
        values = [row[key] for row in rows]
        if isinstance(kind, CategoricalDistribution):
            columns += [[float(v == choice) for v in values] for choice in kind.choices]
            continue
        assert isinstance(kind, (FloatDistribution, IntDistribution))
        low, high = float(kind.low), float(kind.high)
        array = np.asarray(values, dtype=float)
        if kind.log:
            # Values rounded to zero are at the lower end.
            low, high, array = np.log(low), np.log(high), np.log(array.clip(min=low))
        columns.append(((array - low) / max(high - low, 1e-12)).tolist())
    return np.array(columns, dtype=float).T


def fit_response(study: optuna.Study, space: Space) -> Response:
    """Fit a Gaussian process to the complete trials and find the best parameters.

    Trials pruned by earlier versions are excluded: their accuracy is from an earlier epoch.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = [space.values(trial.params) for trial in trials]
    x, y = encode(space, rows), np.array([trial.value for trial in trials], dtype=float)
    scale = max(float(y.std()), 1e-6)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
        np.full(x.shape[1], 0.5), (0.1, 10.0), nu=2.5
    ) + WhiteKernel(0.3, (1e-2, 1e1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=4, random_state=0)
    with warnings.catch_warnings():
        # The length scale of an irrelevant parameter is at its bound, as expected.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, (y - y.mean()) / scale)
    # Predict the accuracy without the noise of a single trial.
    process.kernel_ = process.kernel_.k1

    def smooth(points: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = process.predict(encode(space, points), return_std=True)
        return y.mean() + scale * mean, INTERVAL_WIDTH * scale * deviation

    means, halves = smooth(rows)
    top = int(means.argmax())
    best = rows[top]
    curves = {}
    for key, kind in space.parameters.items():
        if isinstance(kind, (FloatDistribution, IntDistribution)):
            ends = (float(kind.low), float(kind.high))
            values = (
                np.geomspace(*ends, CURVE_POINTS) if kind.log else np.linspace(*ends, CURVE_POINTS)
            )
            points = [best | space.values({key: float(value)}) for value in values]
            curves[key] = (values, *smooth(points))
    importance = {}
    if len(rows) > 1 and y.std() > 0:
        importance = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    mean, smoothing = float(means[top]), float(halves[top])
    examples = validation_examples(trials)
    # The smoothed accuracy may be slightly above 1.
    sampling = sampling_half_width(min(mean, 1.0), examples) if examples else None
    spread, among_seeds = seed_spread(trials) or (None, 0.0)
    return Response(
        best,
        (mean, float(np.hypot(smoothing, max(sampling or 0.0, among_seeds)))),
        curves,
        importance,
        smoothing,
        sampling,
        examples,
        spread,
    )
