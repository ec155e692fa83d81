"""Plotly charts of a study's results.

`meta` of every trace is the name of its variant, so that the page can hide a variant in all charts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from study.chart_style import (
    HEAT,
    NEUTRAL,
    PERCENT,
    band,
    chart_names,
    colour,
    dash,
    with_layout,
    with_rows,
)
from study.gain_table import GainTable
from study.results import Result
from study.statistics import FEWEST_SEEDS, Estimate, paired_estimate

# Predictions per dot of the reliability diagram, and the most dots.
FEWEST_PER_BIN = 25
BINS = 10
# Height of what is around the rows of the forest plot, in pixels.
AROUND = 76
LAYER_CHARTS = {
    "reg/variance_shift/": ("variance-shift", "evaluation / running variance", 1.0),
    "reg/dead_units/": ("dead-units", "inactive units, %", 100.0),
}


def error_bars(estimates: Sequence[Estimate], low: float, high: float) -> dict[str, Any]:
    """Return error bars cut off at two bounds; without an interval they have no length."""
    upper, lower = (
        [
            0.0 if end is None else abs(float(np.clip(end, low, high)) - e.mean)
            for e, end in zip(estimates, ends, strict=True)
        ]
        for ends in ([e.high for e in estimates], [e.low for e in estimates])
    )
    return {"type": "data", "symmetric": False, "array": upper, "arrayminus": lower, "width": 3}


def gains(table: GainTable) -> go.Figure:
    """Draw the gain of each arm with both 95 % intervals, as a forest plot."""
    figure = go.Figure()
    names = chart_names(table.subjects)
    shown = [i for i in range(1, len(table.arms)) if table.comparisons[i].gain is not None]
    ticks = []
    for height, index in enumerate(reversed(shown)):
        one, label = table.comparisons[index], table.labels[index]
        assert one.gain is not None
        star = " *" if one.significant else ""
        ticks.append(f"{names[index]}<br>{100 * one.gain.mean:+.2f}{star}")
        for estimate, width, name in (
            (one.gain_examples, 2, "over seeds and examples"),
            (one.gain, 6, "over seeds"),
        ):
            if estimate is None or estimate.low is None or estimate.high is None:
                continue
            # Ends of the thin interval are marked: it may be as long as the thick one.
            figure.add_trace(
                go.Scatter(
                    x=[100 * estimate.low, 100 * estimate.high],
                    y=[height, height],
                    mode="lines+markers" if width == 2 else "lines",
                    line={"color": colour(index), "width": width},
                    marker={"symbol": "line-ns", "size": 12, "opacity": 1}
                    | {"line": {"color": colour(index), "width": 2}},
                    hovertemplate=f"95 % {name}: %{{x:+.2f}}<extra></extra>",
                    meta=label,
                )
            )
        each = [100 * gain for gain in table.gains(index).values()]
        # Below the intervals, which would hide them.
        figure.add_trace(
            go.Scatter(
                x=each,
                y=[height - 0.27] * len(each),
                mode="markers",
                marker={"color": colour(index), "size": 7, "symbol": "circle-open"},
                text=[f"seed {seed}" for seed in one.seeds],
                hovertemplate="%{text}: %{x:+.2f} points<extra></extra>",
                meta=label,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[100 * one.gain.mean],
                y=[height],
                mode="markers",
                marker={"color": colour(index), "size": 13, "symbol": "diamond"},
                hovertemplate=f"{names[index]}: %{{x:+.2f}} points<extra></extra>",
                meta=label,
            )
        )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color=NEUTRAL)
    ends = [float(x) for trace in figure.data for x in trace.x]
    if table.effect:
        # The zone of practical equality.
        zone = 100 * table.effect
        figure.add_vrect(-zone, zone, fillcolor=NEUTRAL, opacity=0.16, line_width=0, layer="below")
        ends += [-zone, zone]
    # A long name would not fit on a phone; the page's caption has it.
    title = f"gain over {names[0]}, points" if len(names[0]) <= 12 else "gain, points"
    figure.update_xaxes(
        title_text="contribution, points" if table.ablation else title,
        range=_range(0.0, ends, 100.0),
    )
    return with_rows(figure, ticks, AROUND)


def _range(reference: float, values: Sequence[float], most: float) -> list[float]:
    """Return the range of a reference and all values, with margins, within +/- `most`."""
    low, high = min([reference, *values]), max([reference, *values])
    margin = 0.05 * (high - low) or 1.0
    return [max(low - margin, -most), min(high + margin, most)]


def draw_mean(
    figure: go.Figure,
    x: Sequence[float],
    columns: Sequence[Sequence[float]],
    index: int,
    label: str,
    bounds: tuple[float, float],
) -> None:
    """Draw the mean over seeds as a line and its 95 % interval as a band, cut off at the bounds."""
    estimates = [paired_estimate(column) for column in columns]
    mean = [estimate.mean for estimate in estimates]
    if len(columns[0]) >= FEWEST_SEEDS:
        # Where all seeds agree, there is no interval: the band is as narrow as the line.
        low, high = (
            [
                float(np.clip(e.mean if end is None else end, *bounds))
                for e, end in zip(estimates, ends, strict=True)
            ]
            for ends in ([e.low for e in estimates], [e.high for e in estimates])
        )
        figure.add_trace(band(x, low, high, index, label))
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=mean,
            # A single point has no line.
            mode="lines" if len(mean) > 1 else "markers",
            line={"color": colour(index), "width": 2, "dash": dash(index)},
            name=label,
            hovertemplate=f"{chart_names([label])[0]}: %{{y:.2f}}, step %{{x}}<extra></extra>",
            cliponaxis=False,
            meta=label,
        )
    )


def over_steps(table: GainTable, key: str, bounds: tuple[float, float]) -> go.Figure:
    """Draw a validation metric over the steps in %, for each arm; bands end at the bounds."""
    figure = go.Figure()
    for index, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        histories = [result.record["history"] for result in results.values()]
        # After early stopping runs differ in length: only epochs that all have are averaged.
        length = min(len(history) for history in histories)
        steps = [epoch["step"] for epoch in histories[0][:length]]
        columns = [[100 * h[row][key] for h in histories] for row in range(length)]
        draw_mean(figure, steps, columns, index, label, bounds)
    figure.update_xaxes(title_text="optimizer steps")
    return figure


def learning_curves(table: GainTable) -> go.Figure:
    """Draw validation accuracy over steps."""
    figure = over_steps(table, "val/acc", (0, 100))
    figure.update_yaxes(title_text="validation accuracy, %", **PERCENT)
    return with_layout(figure, height=400)


def gaps(table: GainTable) -> go.Figure:
    """Draw the generalization gap over the steps."""
    figure = over_steps(table, "reg/gap_acc", (-100, 100))
    figure.update_yaxes(title_text="gap in accuracy, points")
    return with_layout(figure, height=340)


def reliability(table: GainTable) -> go.Figure:
    """Draw accuracy against confidence, over all seeds, in bins of equal size.

    Bins of equal width (Guo et al. 2017) can hold a few predictions each, and their accuracies are
    then mostly noise.
    """
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": NEUTRAL, "dash": "dot", "width": 1},
            hoverinfo="skip",
        )
    )
    lowest, fewest = 100.0, np.inf
    for index, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        confidence = np.concatenate(
            [result.record["predictions"]["confidence"] for result in results.values()]
        )
        hits = np.concatenate([result.hits for result in results.values()])
        order = np.argsort(confidence, kind="stable")
        number = int(np.clip(len(hits) // FEWEST_PER_BIN, 1, BINS))
        bins = np.array_split(order, number)
        x = [100 * float(confidence[members].mean()) for members in bins]
        y = [100 * float(hits[members].mean()) for members in bins]
        lowest = min(lowest, *x, *y)
        fewest = min(fewest, len(bins[-1]))
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                line={"color": colour(index), "width": 2, "dash": dash(index)},
                marker={"size": 8},
                customdata=[[int(hits[members].sum()), len(members)] for members in bins],
                hovertemplate=f"{chart_names([label])[0]}: %{{y:.1f}} % correct "
                "(%{customdata[0]} of %{customdata[1]}) at %{x:.1f} % confidence<extra></extra>",
                cliponaxis=False,
                meta=label,
            )
        )
    start = max(0.0, 10 * np.floor(lowest / 10 - 0.5))
    figure.update_xaxes(title_text="confidence, %", range=[start, 100])
    figure.update_yaxes(title_text="accuracy, %", range=[start, 100])
    # For the caption.
    return with_layout(figure, height=400, meta={"predictions_per_dot": int(fewest)})


def layers(table: GainTable) -> dict[str, go.Figure]:
    """Draw variance shift and dead units per layer at the last epoch, as far as recorded."""
    figures: dict[str, go.Figure] = {}
    rows: dict[str, int] = {}
    for index, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        last = [result.record["history"][-1] for result in results.values()]
        for prefix, (name, unit, scale) in LAYER_CHARTS.items():
            keys = [key for key in last[0] if key.startswith(prefix)]
            if not keys:
                continue
            figure = figures.setdefault(name, go.Figure())
            figure.update_xaxes(title_text=unit)
            rows[name] = max(rows.get(name, 0), len(keys))
            estimates = [
                paired_estimate([scale * float(epoch[key]) for epoch in last if key in epoch])
                for key in keys
            ]
            figure.add_trace(
                go.Scatter(
                    x=[estimate.mean for estimate in estimates],
                    y=chart_names([key.removeprefix(prefix) for key in keys]),
                    error_x=error_bars(estimates, 0.0, 100.0 if scale == 100 else np.inf),
                    mode="markers",
                    marker={"color": colour(index), "size": 7},
                    # Variants of one layer stand below each other.
                    orientation="h",
                    offsetgroup=str(index),
                    cliponaxis=False,
                    hovertemplate=f"{chart_names([label])[0]}, %{{y}}: %{{x:.3g}}<extra></extra>",
                    meta=label,
                )
            )
    for name, figure in figures.items():
        # Some layer names are numbers.
        figure.update_yaxes(type="category", autorange="reversed", dtick=1)
        height = 70 + rows[name] * max(24, 9 * len(table.arms))
        with_layout(figure, height=height, scattermode="group", scattergap=0.3)
    if "dead-units" in figures:
        figures["dead-units"].update_xaxes(rangemode="tozero", **PERCENT)
    if "variance-shift" in figures:
        # No shift.
        figure = figures["variance-shift"]
        figure.add_vline(x=1, line_width=1, line_dash="dot", line_color=NEUTRAL)
        ends = [
            float(end)
            for trace in figure.data
            for x, up, down in zip(
                trace.x, trace.error_x.array, trace.error_x.arrayminus, strict=True
            )
            for end in (x + up, x - down)
        ]
        figure.update_xaxes(range=_range(1.0, ends, np.inf))
    return figures


def confusion(results: Sequence[Result]) -> go.Figure:
    """Draw the confusion matrix over all seeds, in % of each label."""
    record = results[0].record
    counts = np.sum([result.record["confusion"] for result in results], axis=0).astype(float)
    percentages = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    names = chart_names(record["classes"])
    figure = go.Figure(
        go.Heatmap(
            z=percentages,
            x=names,
            y=names,
            zmin=0,
            zmax=100,
            colorscale=[[0, HEAT[0]], [1, HEAT[1]]],
            showscale=False,
            customdata=counts,
            hovertemplate="%{y} predicted as %{x}: %{z:.1f} % (%{customdata:.0f})<extra></extra>",
        )
    )
    figure.update_xaxes(
        title_text="predicted", type="category", showgrid=False, autotickangles=[0, 90]
    )
    figure.update_yaxes(title_text="label", autorange="reversed", type="category", showgrid=False)
    return with_layout(figure, height=460)


def over_axis(
    tables: Sequence[GainTable],
    estimate_of: Callable[[GainTable, int], Estimate | None],
    bounds: tuple[float, float],
    names: Sequence[str],
) -> go.Figure:
    """Draw a quantity of each variant against the axes of a study.

    Args:
        tables: One table per point of the axes, in order.
        estimate_of: Returns the quantity, in points, for a table and the index of a variant.
        bounds: Error bars are cut off there.
        names: What each variant is called.
    """
    figure = go.Figure()
    ends: list[float] = []
    for index, (label, name) in enumerate(zip(tables[0].labels, chart_names(names), strict=True)):
        found = [
            (", ".join(value for _, value in table.arms[0].point), estimate)
            for table in tables
            if label in table.labels
            and (estimate := estimate_of(table, table.labels.index(label))) is not None
        ]
        if not found:
            continue
        estimates = [estimate for _, estimate in found]
        ends += [e.mean if end is None else end for e in estimates for end in (e.low, e.high)]
        figure.add_trace(
            go.Scatter(
                x=[point for point, _ in found],
                y=[estimate.mean for estimate in estimates],
                error_y=error_bars(estimates, *bounds),
                mode="lines+markers",
                line={"color": colour(index), "width": 2, "dash": dash(index)},
                offsetgroup=str(index),
                name=name,
                hovertemplate=f"{name} at %{{x}}: %{{y:.2f}}<extra></extra>",
                cliponaxis=False,
                meta=label,
            )
        )
    keys = ", ".join(key for key, _ in tables[0].arms[0].point)
    figure.update_xaxes(title_text=keys, type="category", autotickangles=[0, 90])
    # Explicit: Plotly's own range of grouped traces begins at zero.
    low, high = _range(ends[0], ends, np.inf)
    figure.update_yaxes(range=[max(low, bounds[0]), min(high, bounds[1])])
    return with_layout(figure, height=360, scattermode="group", scattergap=0.8)
