"""How validation accuracy answers to the parameters of a search, with its uncertainty.

A Gaussian process (Rasmussen & Williams 2006) smooths over what seeds and small validation sets do
to single trials: the highest trial of many is high by luck as well.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from plotly.subplots import make_subplots
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from study.space import Space

# Points of a drawn curve; standard deviations of a 95 % interval.
POINTS = 61
WIDTH = 1.96


@dataclass(frozen=True)
class Response:
    """What a search has found.

    Args:
        best: Value of each parameter, of the trial whose smoothed accuracy is highest.
        expected: That accuracy, and half of the width of its 95 % interval; shares.
        curves: For each numeric parameter, with all others at their best: its values, the expected
            accuracy and half of the width of its 95 % interval, three arrays.
        importance: Share of the variance of the accuracy that each parameter explains.
    """

    best: dict[str, Any]
    expected: tuple[float, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    importance: dict[str, float]


def encode(space: Space, rows: list[dict[str, Any]]) -> np.ndarray:
    """Lay parameters out in [0, 1], logarithms of logarithmic ones, one column a category."""
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
            # What is rounded to zero is as far down as can be drawn.
            low, high, array = np.log(low), np.log(high), np.log(array.clip(min=low))
        columns.append(((array - low) / max(high - low, 1e-12)).tolist())
    return np.array(columns, dtype=float).T


def fit_response(study: optuna.Study, space: Space) -> Response:
    """Smooth the accuracies of the complete trials and choose by what is left.

    Trials that earlier versions cut short are left out: their accuracy is of an earlier epoch.
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
        # A parameter that does not matter has the longest of all lengths, and that is an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, (y - y.mean()) / scale)
    # What is asked for is the accuracy without the noise of a single trial.
    process.kernel_ = process.kernel_.k1

    def smooth(points: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = process.predict(encode(space, points), return_std=True)
        return y.mean() + scale * mean, WIDTH * scale * deviation

    means, halves = smooth(rows)
    top = int(means.argmax())
    best = rows[top]
    curves = {}
    for key, kind in space.parameters.items():
        if isinstance(kind, (FloatDistribution, IntDistribution)):
            ends = (float(kind.low), float(kind.high))
            values = np.geomspace(*ends, POINTS) if kind.log else np.linspace(*ends, POINTS)
            points = [best | space.values({key: float(value)}) for value in values]
            curves[key] = (values, *smooth(points))
    importance = {}
    if len(rows) > 1 and y.std() > 0:
        importance = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Response(best, (float(means[top]), float(halves[top])), curves, importance)


def write_page(
    file: Path, name: str, study: optuna.Study, space: Space, response: Response
) -> None:
    """Draw importances and response curves into one page that opens from disk."""
    titles = ["importance", *response.curves]
    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.08)
    ranked = sorted(response.importance.items(), key=lambda item: item[1])
    figure.add_trace(
        go.Bar(
            x=[share for _, share in ranked],
            y=[key for key, _ in ranked],
            orientation="h",
            marker_color="#2f6f9f",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for row, (key, (values, mean, half)) in enumerate(response.curves.items(), start=2):
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_trace(go.Scatter(x=values, y=100 * (mean - half), **band), row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=values,
                y=100 * (mean + half),
                fill="tonexty",
                fillcolor="rgba(47,111,159,0.2)",
                **band,
            ),
            row=row,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=values,
                y=100 * mean,
                line_color="#2f6f9f",
                name="smoothed, others at their best",
                showlegend=row == 2,
            ),
            row=row,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=[trial.params[key] for trial in trials],
                y=[100 * (trial.value or 0.0) for trial in trials],
                mode="markers",
                marker_color="#d9822b",
                name="trials",
                showlegend=row == 2,
                text=[f"trial {trial.number}" for trial in trials],
            ),
            row=row,
            col=1,
        )
        kind = space.parameters[key]
        if getattr(kind, "log", False):
            figure.update_xaxes(type="log", row=row, col=1)
        if key in space.steps:
            zero = f"drawn; what is below {space.steps[key] / 2:g} is trained as 0"
            figure.update_xaxes(title_text=zero, row=row, col=1)
        figure.update_yaxes(title_text="validation %", row=row, col=1)
    figure.update_layout(title=name, height=300 * len(titles), template="plotly_white")
    figure.write_html(file, include_plotlyjs=True)
