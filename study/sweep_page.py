"""`sweep.html`: the page of a search, self-contained, opens from disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState

from study.chart_style import PERCENT, chart_names, colour, transparent, with_layout
from study.page import script_safe, templates, write_file
from study.response import Response
from study.search_space import Space
from study.trial_results import accuracies
from tasks.run.plain_text import without_folders

# Of more decades, an axis has one tick each.
MOST_DECADES = 4
# Of a study with the best values: the searches use small numbers.
FRESH_SEEDS = "10,11,12,13,14"


def importance_chart(response: Response) -> go.Figure:
    """Draw the fraction of the variance that each parameter explains."""
    ranked = sorted(response.importance.items(), key=lambda item: item[1])
    figure = go.Figure(
        go.Bar(
            x=[100 * value for _, value in ranked],
            y=chart_names([key.rsplit(".", 1)[-1] for key, _ in ranked]),
            orientation="h",
            marker_color=colour(1),
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="variance of the accuracy explained, %", range=[0, 100])
    figure.update_yaxes(type="category")
    return with_layout(figure, height=90 + 34 * len(ranked))


def curve_chart(key: str, study: optuna.Study, space: Space, response: Response) -> go.Figure:
    """Draw validation accuracy against a parameter: the smoothed curve and the trials."""
    values, mean, half = response.curves[key]
    low, high = (np.clip(100 * end, 0, 100) for end in (mean - half, mean + half))
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[*values, *reversed(values)],
            y=[*high, *reversed(low)],
            mode="lines",
            fill="toself",
            fillcolor=transparent(1),
            line_width=0,
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=values,
            y=100 * mean,
            mode="lines",
            line={"color": colour(1), "width": 2},
            hovertemplate="%{x:.3g}: %{y:.2f} %<extra>smoothed</extra>",
            cliponaxis=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[trial.params[key] for trial in trials],
            y=[100 * (trial.value or 0.0) for trial in trials],
            mode="markers",
            marker={"color": colour(2), "size": 8},
            text=[f"trial {trial.number}" for trial in trials],
            hovertemplate="%{text}: %{y:.2f} % at %{x:.3g}<extra></extra>",
            cliponaxis=False,
        )
    )
    title = key
    if key in space.steps:
        title = f"drawn value; below {space.steps[key] / 2:g} it is trained as 0"
    figure.update_xaxes(title_text=title)
    if getattr(space.parameters[key], "log", False):
        ticks = log_ticks(values[0], values[-1])
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title_text="validation accuracy, %", **PERCENT)
    return with_layout(figure, height=340)


def log_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis: 1 and 3 of each decade, of many decades only 1.

    Example:
        >>> log_ticks(0.002, 0.5)
        [0.003, 0.01, 0.03, 0.1, 0.3]
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    leading = (1, 3) if last - first <= MOST_DECADES else (1,)
    ticks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in leading]
    return [tick for tick in ticks if low <= tick <= high]


def write_page(
    file: Path,
    name: str,
    study: optuna.Study,
    space: Space,
    response: Response,
) -> None:
    """Write a page with the best values, importances and response curves.

    Args:
        file: Where to write it.
        name: Name of the search.
        study: Its trials.
        space: Its parameters.
        response: Its result.
    """
    figures = {"importance": importance_chart(response)} if response.importance else {}
    curves = {f"curve-{i}": key for i, key in enumerate(response.curves)}
    figures |= {i: curve_chart(key, study, space, response) for i, key in curves.items()}
    mean, half = response.expected
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(complete, key=lambda trial: -(trial.value or 0.0))
    content: dict[str, Any] = {
        "name": f"search {name}",
        "trials": len(complete),
        "best": {key: _text(value) for key, value in response.best.items()},
        "expected": f"{100 * mean:.2f} ± {100 * half:.2f} %",
        "examples": response.examples,
        "sources": response.sources,
        "command": _study_command(study, file.parent / "best.yaml"),
        "curves": curves,
        "keys": list(space.parameters),
        "ranked": [
            {
                "number": trial.number,
                "accuracy": f"{100 * (trial.value or 0.0):.2f}",
                "seeds": _seeds(trial),
                "values": [_text(space.values(trial.params).get(key)) for key in space.parameters],
            }
            for trial in ranked
        ],
        "figures": {
            key: {"content": script_safe(figure), "height": figure.layout.height}
            for key, figure in figures.items()
        },
    }
    write_file(file, templates().get_template("sweep.html").render(content))


def _study_command(study: optuna.Study, preset: Path) -> str:
    given = study.user_attrs.get("given", {})
    task, data = (given.get(key, key.upper()) for key in ("task", "data"))
    command = f'make study TASK={task} DATA={data} VARIANTS="none {preset}" SEEDS={FRESH_SEEDS}'
    return without_folders(command)


def _seeds(trial: optuna.trial.FrozenTrial) -> str:
    """Return the accuracies of the seeds; empty with one seed."""
    found = accuracies(trial)
    return ", ".join(f"{100 * found[seed]:.2f}" for seed in sorted(found) if len(found) > 1)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
