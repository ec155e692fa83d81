"""The pictures of a study, drawn with Plotly from its results.

Every trace bears the name of its variant in `meta`, so that a page can show and hide a variant in
all pictures at once.
"""

import html
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.calibration import calibration_curve

from study.results import Result
from study.statistics import Estimate, paired
from study.tables import Table

# Told apart by people of all kinds of colour vision (Okabe & Ito 2008); the baseline is grey.
COLOURS = ["#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#b8a800"]
BINS = 15
# Letters of a name in a picture.
LONGEST = 24
PREFIXES = {"reg/variance_shift/": "variance shift", "reg/dead_units/": "dead units"}


def picture_names(texts: Sequence[str]) -> list[str]:
    """Write names from outside for a picture: cut, each one another, and without Plotly's HTML.

    Example:
        >>> picture_names(["<b>cat</b>", "x" * 300, "x" * 299])
        ['&lt;b&gt;cat&lt;/b&gt;', 'xxxxxxxxxxxxxxxxxxxxxxx…', 'xxxxxxxxxxxxxxxxxxxxxxx… (2)']
    """
    cut = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]
    seen: Counter[str] = Counter()
    names = []
    for text in cut:
        seen[text] += 1
        number = f" ({seen[text]})" if seen[text] > 1 else ""
        names.append(html.escape(text, quote=False) + number)
    return names


def colour(place: int) -> str:
    """Give the arm at a place its colour."""
    return COLOURS[place % len(COLOURS)]


def faded(place: int) -> str:
    """Give the arm at a place the colour of its interval."""
    code = colour(place).lstrip("#")
    return f"rgba({int(code[:2], 16)},{int(code[2:4], 16)},{int(code[4:], 16)},0.18)"


def laid_out(figure: go.Figure, **options: Any) -> go.Figure:
    """Leave colours of text and background to the page, which has a dark mode."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 12, "t": 30, "b": 48},
        hovermode="closest",
        showlegend=False,
        **options,
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def _bars(estimate: Estimate, scale: float = 100.0) -> dict[str, Any] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (estimate.high - estimate.mean)],
        "arrayminus": [scale * (estimate.mean - estimate.low)],
        "thickness": 2,
    }


def gains(table: Table) -> go.Figure:
    """Draw the gain of each arm with its interval; faint, the one over test examples too."""
    figure = go.Figure()
    for place in reversed(range(1, len(table.arms))):
        one, label = table.comparisons[place], table.labels[place]
        if one.gain is None:
            continue
        each = [
            100 * (table.results[place][s].accuracy - table.results[0][s].accuracy)
            for s in one.seeds
        ]
        figure.add_trace(
            go.Scatter(
                x=each,
                y=[label] * len(each),
                mode="markers",
                marker={"color": faded(place), "size": 8},
                text=[f"seed {seed}" for seed in one.seeds],
                hovertemplate="%{text}: %{x:+.2f} points<extra></extra>",
                meta=label,
            )
        )
        for estimate, width, name in (
            (one.gain_examples, 2, "over seeds and examples"),
            (one.gain, 5, "over seeds"),
        ):
            if estimate is None or estimate.low is None or estimate.high is None:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[100 * estimate.low, 100 * estimate.high],
                    y=[label, label],
                    mode="lines",
                    line={"color": colour(place), "width": width},
                    hovertemplate=f"95 % {name}: %{{x:+.2f}}<extra></extra>",
                    meta=label,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[100 * one.gain.mean],
                y=[label],
                mode="markers",
                marker={"color": colour(place), "size": 13, "symbol": "diamond"},
                hovertemplate=f"{label}: %{{x:+.2f}} points<extra></extra>",
                meta=label,
            )
        )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color="#888888")
    figure.update_xaxes(title_text=f"gain in test accuracy over {table.labels[0]}, points")
    return laid_out(figure, height=90 + 44 * max(1, len(table.arms) - 1))


def bands(
    figure: go.Figure,
    x: Sequence[float],
    columns: Sequence[Sequence[float]],
    place: int,
    label: str,
    **where: int,
) -> None:
    """Draw the mean of several seeds as a line, with its 95 % interval as a band."""
    estimates = [paired(column) for column in columns]
    mean = [estimate.mean for estimate in estimates]
    low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
    if None not in low:
        figure.add_trace(
            go.Scatter(
                x=[*x, *reversed(x)],
                y=[*high, *reversed(low)],
                mode="lines",
                fill="toself",
                fillcolor=faded(place),
                line_width=0,
                hoverinfo="skip",
                meta=label,
            ),
            **where,
        )
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=mean,
            mode="lines",
            line={"color": colour(place), "width": 2},
            name=label,
            hovertemplate=f"{label}: %{{y:.2f}}, step %{{x}}<extra></extra>",
            meta=label,
        ),
        **where,
    )


def over_steps(table: Table, key: str, scale: float = 100.0) -> go.Figure:
    """Draw a metric of the validations over the steps, for each arm."""
    figure = go.Figure()
    for place, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        histories = [result.record["history"] for result in results.values()]
        # Early stopping ends runs at different epochs: the mean is over those that all have.
        length = min(len(history) for history in histories)
        steps = [epoch["step"] for epoch in histories[0][:length]]
        columns = [[scale * h[row][key] for h in histories] for row in range(length)]
        bands(figure, steps, columns, place, label)
    return figure


def learning_curves(table: Table) -> go.Figure:
    """Draw validation accuracy over steps."""
    figure = over_steps(table, "val/acc")
    figure.update_xaxes(title_text="optimizer steps")
    figure.update_yaxes(title_text="validation accuracy, %")
    return laid_out(figure, height=420)


def gaps(table: Table) -> go.Figure:
    """Draw the generalization gap over steps."""
    figure = over_steps(table, "reg/gap_acc")
    figure.update_xaxes(title_text="optimizer steps")
    figure.update_yaxes(title_text="training less validation accuracy, points")
    return laid_out(figure, height=360)


def reliability(table: Table) -> go.Figure:
    """Draw how often predictions of a confidence are right, over all seeds (Guo et al. 2017)."""
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": "#888888", "dash": "dot", "width": 1},
            hoverinfo="skip",
        )
    )
    for place, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        confidence = np.concatenate(
            [result.record["predictions"]["confidence"] for result in results.values()]
        )
        hits = np.concatenate([result.hits for result in results.values()])
        right, sure = calibration_curve(hits, confidence, n_bins=BINS)
        counts = np.histogram(confidence, np.linspace(0, 1, BINS + 1))[0]
        share = counts[counts > 0] / len(confidence)
        figure.add_trace(
            go.Scatter(
                x=100 * sure,
                y=100 * right,
                mode="lines+markers",
                line={"color": colour(place), "width": 2},
                marker={"size": 4 + 12 * np.sqrt(share)},
                customdata=100 * share,
                hovertemplate=f"{label}: %{{y:.1f}} % right at %{{x:.1f}} % confidence, "
                "%{customdata:.1f} % of predictions<extra></extra>",
                meta=label,
            )
        )
    figure.update_xaxes(title_text="confidence, %", range=[0, 102])
    figure.update_yaxes(title_text="right, %", range=[0, 102])
    return laid_out(figure, height=420)


def layers(table: Table) -> go.Figure | None:
    """Draw variance shift and dead units of each layer at the last epoch; None if none was seen."""
    found: dict[str, list[tuple[int, str, str, Estimate]]] = {}
    for place, (label, results) in enumerate(zip(table.labels, table.results, strict=True)):
        last = [result.record["history"][-1] for result in results.values()]
        for key in last[0]:
            for prefix, title in PREFIXES.items():
                if key.startswith(prefix):
                    estimate = paired([float(epoch[key]) for epoch in last if key in epoch])
                    found.setdefault(title, []).append(
                        (place, label, key.removeprefix(prefix), estimate)
                    )
    if not found:
        return None
    figure = make_subplots(
        rows=len(found), cols=1, subplot_titles=list(found), vertical_spacing=0.25 / len(found)
    )
    for row, (title, entries) in enumerate(found.items(), start=1):
        share = 100.0 if title == "dead units" else 1.0
        for place, label, layer, estimate in entries:
            figure.add_trace(
                go.Scatter(
                    x=[layer],
                    y=[share * estimate.mean],
                    error_y=_bars(estimate, share),
                    mode="markers",
                    marker={"color": colour(place), "size": 9},
                    hovertemplate=f"{label}, {layer}: %{{y:.3g}}<extra></extra>",
                    meta=label,
                ),
                row=row,
                col=1,
            )
        if title == "variance shift":
            # Where training and evaluation agree.
            figure.add_hline(y=1, line_width=1, line_dash="dot", line_color="#888888", row=row)
        # Layers bear numbers as their names.
        figure.update_xaxes(type="category", row=row, col=1)
        unit = "evaluation by running variance" if share == 1.0 else "units that never act, %"
        figure.update_yaxes(title_text=unit, row=row, col=1)
    return laid_out(figure, height=320 * len(found))


def confusion(results: Sequence[Result], title: str) -> go.Figure:
    """Draw the confusion matrix of all seeds together: of each class, what it was taken for."""
    record = results[0].record
    counts = np.sum([result.record["confusion"] for result in results], axis=0).astype(float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    names = picture_names(record["classes"])
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=names,
            y=names,
            zmin=0,
            zmax=100,
            colorscale="Blues",
            showscale=False,
            customdata=counts,
            hovertemplate="%{y} taken for %{x}: %{z:.1f} % (%{customdata:.0f})<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="predicted", type="category")
    figure.update_yaxes(title_text="label", autorange="reversed", type="category")
    return laid_out(figure, height=460, title={"text": title, "x": 0.5})


def over_axis(
    found: Sequence[Table], key: str, figure_of: Callable[[Table, int], Estimate | None]
) -> go.Figure:
    """Draw a figure of each variant over the values of an axis, a table each value.

    Args:
        found: Tables in the order of the axis.
        key: The axis.
        figure_of: Gives the figure of the variant at a place of a table, in points.
    """
    figure = go.Figure()
    labels = found[0].labels
    for place, label in enumerate(labels):
        xs: list[str] = []
        estimates: list[Estimate] = []
        for table in found:
            if label in table.labels:
                estimate = figure_of(table, table.labels.index(label))
                if estimate is not None:
                    xs.append(dict(table.arms[0].point)[key])
                    estimates.append(estimate)
        if not estimates:
            continue
        known = [e for e in estimates if e.low is not None and e.high is not None]
        bars = None
        if len(known) == len(estimates):
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [(e.high or 0.0) - e.mean for e in estimates],
                "arrayminus": [e.mean - (e.low or 0.0) for e in estimates],
            }
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=[estimate.mean for estimate in estimates],
                error_y=bars,
                mode="lines+markers",
                line={"color": colour(place), "width": 2},
                name=label,
                hovertemplate=f"{label} at %{{x}}: %{{y:.2f}}<extra></extra>",
                meta=label,
            )
        )
    figure.update_xaxes(title_text=key, type="category")
    return laid_out(figure, height=380)
