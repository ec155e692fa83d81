"""Colours, names and layout of the charts, in light and in dark.

Charts are drawn in the colours for a white background; a page in the dark replaces each of them by
its partner. All have a contrast of at least 3 with their background (WCAG 2.2, 1.4.11).
"""

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

# Each with its partner in the dark. The baseline is grey; the others are distinct with
# colour-vision deficiency too (after Okabe & Ito 2008).
PARTNERS = {
    "#6b7280": "#a3adb8",
    "#0072b2": "#56b4e9",
    "#d55e00": "#ff9147",
    "#008f68": "#2fc79c",
    "#b8518a": "#f0a3cc",
    "#7a6f00": "#d8c940",
    "#5b3f9e": "#b7a2e8",
    "#8a4b2a": "#d9a679",
}
COLOURS = list(PARTNERS)
# Height of one row of a forest plot, in pixels.
ROW = 46
# Zero line, diagonal.
NEUTRAL = "#767676"
# Lowest and highest value of a heat map.
HEAT = ("#f3f7fb", "#08427a")
# Longer names are truncated in the middle: variants often differ at the end.
MOST_CHARACTERS = 24


def dark_partners() -> dict[str, str]:
    """Return the replacement of each colour in the dark, as text in a chart's JSON."""
    pairs = PARTNERS | {NEUTRAL: "#8b949e", HEAT[0]: "#1d2329", HEAT[1]: "#8ecbf5"}
    return pairs | {_components(light): _components(dark) for light, dark in PARTNERS.items()}


def chart_names(texts: Sequence[str]) -> list[str]:
    """Make untrusted names safe for a chart: truncated, unique, HTML escaped.

    Example:
        >>> chart_names(["<b>cat</b>", "x" * 300, "x" * 299])
        ['&lt;b&gt;cat&lt;/b&gt;', 'xxxxxxxxxxx…xxxxxxxxxxxx', 'xxxxxxxxxxx…xxxxxxxxxxxx (2)']
    """
    half = MOST_CHARACTERS // 2
    cut = [
        text if len(text) <= MOST_CHARACTERS else f"{text[: half - 1]}…{text[-half:]}"
        for text in texts
    ]
    seen: Counter[str] = Counter()
    names = []
    for text in cut:
        seen[text] += 1
        number = f" ({seen[text]})" if seen[text] > 1 else ""
        names.append(html.escape(text, quote=False) + number)
    return names


def colour(index: int) -> str:
    """Return the colour of an arm; only the baseline is grey."""
    return COLOURS[0] if index == 0 else COLOURS[1 + (index - 1) % (len(COLOURS) - 1)]


def dash(index: int) -> str:
    """Return the line style of an arm: solid, until the colours repeat."""
    return ("solid", "dash", "dot")[(max(index - 1, 0) // (len(COLOURS) - 1)) % 3]


def transparent(index: int) -> str:
    """Return the colour of an arm's band."""
    return f"rgba({_components(colour(index))},0.18)"


def with_rows(figure: go.Figure, ticks: Sequence[str], around: int) -> go.Figure:
    """Set the layout of a forest plot with these rows, from below; `around` is in pixels."""
    figure.update_yaxes(
        range=[-0.6, len(ticks) - 0.4],
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        showgrid=False,
    )
    return with_layout(figure, height=around + ROW * max(1, len(ticks)), dragmode=False)


def band(
    x: Sequence[Any], low: Sequence[float], high: Sequence[float], index: int, arm: str
) -> go.Scatter:
    """Return the trace of the band of an arm between two lines; `meta` is the arm."""
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        mode="lines",
        fill="toself",
        fillcolor=transparent(index),
        line_width=0,
        hoverinfo="skip",
        meta=arm,
    )


def _components(code: str) -> str:
    return ",".join(str(int(code[start : start + 2], 16)) for start in (1, 3, 5))


def with_layout(figure: go.Figure, **options: Any) -> go.Figure:
    """Set the layout; text and grid lines follow the page, which has a dark mode."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 48, "r": 16, "t": 16, "b": 40},
        hovermode="closest",
        hoverlabel={"bgcolor": "#1c2126", "bordercolor": "#1c2126", "font": {"color": "#ffffff"}},
        showlegend=False,
        **options,
    )
    # The transparent ticks keep the labels of both axes apart where they meet.
    ticks = {"ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)"}
    figure.update_xaxes(automargin=True, zeroline=False, title_standoff=8, **ticks)
    figure.update_yaxes(automargin=True, zeroline=False, title_standoff=8, **ticks)
    return figure


# Options of an axis of percentages: the data decide, but nothing beyond what is possible.
PERCENT = {"autorangeoptions": {"clipmin": 0, "clipmax": 100}}
