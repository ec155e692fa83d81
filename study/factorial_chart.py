"""The interaction plot of a factorial study."""

import plotly.graph_objects as go

from study.chart_style import colour, with_layout
from study.charts import error_bars
from study.designs import BOTH, DROPOUT, NONE, NORMALIZATION
from study.factorial import factorial_results
from study.gain_table import GainTable
from study.statistics import Estimate, paired_estimate

# Lines: name, and the variants without and with a norm.
LINES = (("without dropout", NONE, NORMALIZATION), ("with dropout", DROPOUT, BOTH))
# Distance of a line's points from the tick, so that intervals do not hide each other.
OFFSET = 0.015


def interaction(table: GainTable) -> go.Figure:
    """Draw the test accuracy without and with a norm, one line per level of dropout.

    Args:
        table: Gain table with results of all four variants.
    """
    results = factorial_results(table)
    figure = go.Figure()
    lines = [
        (name, [_percent([one.accuracy for one in results[arm].values()]) for arm in arms])
        for name, *arms in LINES
    ]
    above = int(lines[1][1][1].mean >= lines[0][1][1].mean)
    for index, (name, estimates) in enumerate(lines):
        shift = OFFSET * (2 * index - 1)
        figure.add_trace(
            go.Scatter(
                x=[shift, 1 + shift],
                y=[estimate.mean for estimate in estimates],
                error_y=error_bars(estimates, 0.0, 100.0),
                mode="lines+markers",
                name=name,
                line={"color": colour(index), "width": 2},
                marker={"size": 8},
                hovertemplate=f"{name}: %{{y:.2f}} %<extra></extra>",
                cliponaxis=False,
            )
        )
        # Beside the end of the line, away from the other one, whose end may be close.
        figure.add_annotation(
            text=name,
            x=1,
            y=estimates[1].mean,
            xanchor="left",
            xshift=20,
            yshift=8 if index == above else -8,
            showarrow=False,
        )
    figure.update_xaxes(
        range=[-0.25, 1.6], tickvals=[0, 1], ticktext=["without norm", "with norm"], showgrid=False
    )
    figure.update_yaxes(title_text="test accuracy, %")
    return with_layout(figure, height=320, dragmode=False)


def _percent(accuracies: list[float]) -> Estimate:
    return paired_estimate([100 * accuracy for accuracy in accuracies])
