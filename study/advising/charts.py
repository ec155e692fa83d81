"""Plotly charts of an advice; `meta` of a trace is its arm, so that the page can hide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from study.advising.expected_best import expected_best
from study.advising.records import ArmTuning, Contrast, Look, Trial
from study.chart_style import (
    NEUTRAL,
    PERCENT,
    band,
    chart_names,
    colour,
    dash,
    transparent,
    with_layout,
    with_rows,
)

# Height of what is around the rows of a forest plot, in pixels.
AROUND = 84
# The axis is logarithmic if the highest value is at least this many times the lowest.
LOG_RATIO = 5.0


@dataclass(frozen=True)
class ForestRow:
    """One row of a forest plot.

    Args:
        label: Name of the row.
        arm: The arm whose button hides the row.
        index: Index of the arm, for its colour.
        contrast: The gain and its interval.
        pairs: Gain of each paired seed.
        collapsed: Seeds of which a run stayed at chance.
        primary: Whether it is the primary contrast, whose name is bold.
    """

    label: str
    arm: str
    index: int
    contrast: Contrast
    pairs: Mapping[int, float] = field(default_factory=dict)
    collapsed: Sequence[int] = ()
    primary: bool = False


def forest(rows: Sequence[ForestRow], title: str) -> go.Figure:
    """Draw gains with their intervals and the gain of each pair."""
    figure = go.Figure()
    names = chart_names([row.label for row in rows])
    ticks = []
    for height, (name, row) in enumerate(reversed(list(zip(names, rows, strict=True)))):
        one, shade = row.contrast, colour(row.index)
        star = " *" if one.significant else ""
        ticks.append(f"{f'<b>{name}</b>' if row.primary else name}<br>{100 * one.gain:+.2f}{star}")
        if one.low is not None and one.high is not None:
            figure.add_trace(
                go.Scatter(
                    x=[100 * one.low, 100 * one.high],
                    y=[height, height],
                    mode="lines",
                    line={"color": shade, "width": 6},
                    hovertemplate="95 % interval: %{x:+.2f}<extra></extra>",
                    meta=row.arm,
                )
            )
        seeds = list(row.pairs)
        symbols = ["x" if seed in row.collapsed else "circle-open" for seed in seeds]
        notes = [f"seed {s}{', at chance' * (s in row.collapsed)}" for s in seeds]
        figure.add_trace(
            go.Scatter(
                x=[100 * row.pairs[seed] for seed in seeds],
                # Below the interval, which would hide them.
                y=[height - 0.27] * len(seeds),
                mode="markers",
                marker={"color": shade, "size": 7, "symbol": symbols},
                text=notes,
                hovertemplate="%{text}: %{x:+.2f} points<extra></extra>",
                meta=row.arm,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[100 * one.gain],
                y=[height],
                mode="markers",
                marker={"color": shade, "size": 13, "symbol": "diamond"},
                hovertemplate=f"{name}: %{{x:+.2f}} points<extra></extra>",
                meta=row.arm,
            )
        )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color=NEUTRAL)
    figure.update_xaxes(title_text=title, autorangeoptions={"include": 0})
    return with_rows(figure, ticks, AROUND)


def narrowing(looks: Sequence[Look], arms: Sequence[str], precision: float) -> go.Figure:
    """Draw the half width of each arm's interval against the number of pairs.

    Args:
        looks: The looks.
        arms: Names of all arms, in the order of their colours.
        precision: Half width at which the confirmation stops, in points.
    """
    figure = go.Figure()
    for index, arm in enumerate(arms):
        found = [
            (look.seeds, 50 * (one.high - one.low))
            for look in looks
            for one in look.contrasts
            if one.arm == arm and one.low is not None and one.high is not None
        ]
        if found:
            figure.add_trace(
                go.Scatter(
                    x=[seeds for seeds, _ in found],
                    y=[half for _, half in found],
                    mode="lines+markers",
                    line={"color": colour(index), "width": 2, "dash": dash(index)},
                    marker={"size": 8},
                    hovertemplate=f"{chart_names([arm])[0]}, %{{x}} pairs: ± %{{y:.2f}} points"
                    "<extra></extra>",
                    cliponaxis=False,
                    meta=arm,
                )
            )
    figure.add_hline(y=precision, line_width=1, line_dash="dot", line_color=NEUTRAL)
    figure.update_xaxes(title_text="paired seeds", tickvals=[look.seeds for look in looks])
    figure.update_yaxes(
        title_text="half width, points", rangemode="tozero", autorangeoptions={"include": precision}
    )
    return with_layout(figure, height=300)


def parameters_of(tuning: Sequence[ArmTuning]) -> list[str]:
    """List the parameters that take more than one value in some arm, in their order."""
    found: dict[str, None] = {}
    for arm in tuning:
        # The first trial is the baseline's, without the arm's own parameters.
        values: dict[str, set[str]] = {}
        for trial in arm.trials:
            for key, value in trial.parameters.items():
                values.setdefault(key, set()).add(str(value))
        found |= dict.fromkeys(key for key, taken in values.items() if len(taken) > 1)
    return list(found)


def _placed(values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return where values stand on an axis, and the axis: logarithmic, linear or categories."""
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
        return [str(one) for one in values], {"type": "category"}
    positive = sorted({float(one) for one in values if one > 0})
    if not positive or min(values) < 0 or positive[-1] < LOG_RATIO * positive[0]:
        return list(values), {}
    ticks = _log_ticks(positive[0], positive[-1])
    texts = [f"{tick:g}" for tick in ticks]
    zero = positive[0] / 2
    if 0 in values:
        # A logarithmic axis has no zero: it stands left of the lowest value.
        ticks, texts = [zero, *ticks], ["0", *texts]
    axis = {"type": "log", "tickvals": ticks, "ticktext": texts}
    return [one if one > 0 else zero for one in values], axis


def _log_ticks(low: float, high: float) -> list[float]:
    """Return at most six ticks: the two ends, or round values between them."""
    round_values = [float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5)]
    inside = [tick for tick in round_values if low <= tick <= high]
    if len(inside) > 6:
        inside = [tick for tick in inside if f"{tick:e}"[0] == "1"] or inside[::2]
    return inside or [low, high]


def response(key: str, tuning: Sequence[ArmTuning]) -> go.Figure:
    """Draw the validation accuracy of all trials against a parameter, by arm."""
    shown = [
        (index, arm, trial)
        for index, arm in enumerate(tuning)
        for trial in arm.trials
        if key in trial.parameters and arm.first_seed in trial.results
    ]
    places, axis = _placed([trial.parameters[key] for _, _, trial in shown])
    figure = go.Figure()
    for index, arm in enumerate(tuning):
        points = [
            (place, trial) for place, (i, _, trial) in zip(places, shown, strict=True) if i == index
        ]
        if not points:
            continue
        figure.add_trace(
            go.Scatter(
                x=[place for place, _ in points],
                y=[100 * trial.results[arm.first_seed].accuracy for _, trial in points],
                mode="markers",
                marker={
                    "color": colour(index),
                    "symbol": [_symbol(arm, trial) for _, trial in points],
                    "size": [13 if t.number in arm.finalists else 8 for _, t in points],
                    # Plotly gives markers of several sizes a white line and makes them transparent.
                    "opacity": 1,
                    "line": {"width": 0},
                },
                text=[
                    f"{chart_names([arm.arm])[0]}, trial {trial.number}: "
                    f"{_text(trial.parameters[key])}"
                    for _, trial in points
                ],
                hovertemplate="%{text}, %{y:.2f} %<extra></extra>",
                cliponaxis=False,
                meta=arm.arm,
            )
        )
    figure.update_xaxes(title_text=key.removeprefix("model."), **axis)
    figure.update_yaxes(title_text="validation accuracy, %", **PERCENT)
    return with_layout(figure, height=320)


def _symbol(arm: ArmTuning, trial: Trial) -> str:
    if trial.results[arm.first_seed].at_chance:
        return "x"
    if trial.number == arm.chosen:
        return "star"
    return "diamond" if trial.number in arm.finalists else "circle"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def eligible_accuracies(arm: ArmTuning, index: int) -> list[float]:
    """List the validation accuracy of each trial that can be chosen, with the first seed.

    All arms share the trial without the regularizer, which only the first arm can choose.
    """
    return [
        trial.results[arm.first_seed].accuracy
        for trial in arm.trials
        if arm.first_seed in trial.results and (index == 0 or trial.origin != "without")
    ]


def budget(tuning: Sequence[ArmTuning]) -> go.Figure:
    """Draw the expected best validation accuracy of n trials, by arm."""
    figure = go.Figure()
    most = 1
    for index, arm in enumerate(tuning):
        found = expected_best(eligible_accuracies(arm, index))
        if not found:
            continue
        most = max(most, len(found))
        numbers = list(range(1, len(found) + 1))
        mean = [100 * one for one, _ in found]
        spread = [100 * one for _, one in found]
        if len(found) > 1:
            upper = [min(m + s, 100.0) for m, s in zip(mean, spread, strict=True)]
            lower = [max(m - s, 0.0) for m, s in zip(mean, spread, strict=True)]
            figure.add_trace(band(numbers, lower, upper, index, arm.arm))
        figure.add_trace(
            go.Scatter(
                x=numbers,
                y=mean,
                mode="lines+markers",
                line={"color": colour(index), "width": 2, "dash": dash(index)},
                marker={"size": 5},
                customdata=spread,
                hovertemplate=f"{chart_names([arm.arm])[0]}, best of %{{x}}: %{{y:.2f}} ± "
                "%{customdata:.2f} %<extra></extra>",
                cliponaxis=False,
                meta=arm.arm,
            )
        )
    figure.update_xaxes(title_text="trials", dtick=max(1, most // 8))
    figure.update_yaxes(title_text="expected best validation, %", **PERCENT)
    return with_layout(figure, height=340)


def finalists(tuning: Sequence[ArmTuning]) -> go.Figure:
    """Draw the finalists' validation accuracy with the first seed and with further seeds."""
    figure = go.Figure()
    rows = [(index, arm, found) for index, arm in enumerate(tuning) for found in repeated(arm)]
    names = chart_names([arm.arm for arm in tuning])
    ticks = []
    for height, (index, arm, (trial, first, mean)) in enumerate(reversed(rows)):
        ticks.append(f"{names[index]} #{trial.number}")
        figure.add_trace(
            go.Scatter(
                x=[100 * first, 100 * mean],
                y=[height, height],
                mode="lines+markers",
                line={"color": colour(index), "width": 2},
                marker={"size": 11, "symbol": ["circle-open", "diamond"]},
                text=["first seed", "mean of further seeds"],
                hovertemplate="%{text}: %{x:.2f} %<extra></extra>",
                cliponaxis=False,
                meta=arm.arm,
            )
        )
    figure.update_xaxes(title_text="validation accuracy, %", **PERCENT)
    figure.update_yaxes(
        range=[-0.6, len(rows) - 0.4], tickvals=list(range(len(rows))), ticktext=ticks
    )
    return with_layout(figure, height=AROUND + 30 * max(1, len(rows)), dragmode=False)


def repeated(arm: ArmTuning) -> list[tuple[Trial, float, float]]:
    """List the trials with further seeds: accuracy with the first seed, mean of the others."""
    found = []
    for trial in arm.trials:
        others = [one.accuracy for seed, one in trial.results.items() if seed != arm.first_seed]
        if others and arm.first_seed in trial.results:
            first = trial.results[arm.first_seed].accuracy
            found.append((trial, first, sum(others) / len(others)))
    return found


def recoloured(figure: go.Figure, arms: Sequence[str]) -> go.Figure:
    """Give each line of a study's chart the colour of its arm: some arms may have no runs."""
    for trace in figure.data:
        if trace.meta in arms:
            index = arms.index(trace.meta)
            if trace.fill:
                trace.fillcolor = transparent(index)
            else:
                trace.line = {"color": colour(index), "dash": dash(index), "width": 2}
    return figure
