"""The gains of a study with their intervals, as a Vega-Lite chart: a forest plot.

W&B shows it as a custom chart: the table is logged by the study's report run, and the specification
is a chart preset of the team.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import wandb

from study.gain_table import GainTable, format_interval, format_points
from tasks.run.plain_text import spreadsheet_text

# Name of the chart in the report run; W&B appends "_table" for its data.
KEY = "report/forest"
# Columns of the table. A row is the mean of a variant, or one of its seeds.
COLUMNS = [
    "row",
    "kind",
    "gain",
    "low",
    "high",
    "low_examples",
    "high_examples",
    "result",
    "detail",
]
# Colours that differ with colour-vision deficiency (Okabe & Ito 2008), by the result of the test.
COLOURS = {"better": "#009e73", "worse": "#d55e00", "not significant": "#0072b2"}
# Readable on white and on black.
GREY = "#767676"


def forest_rows(tables: Sequence[GainTable]) -> list[list[Any]]:
    """List the points of the forest plot: the columns are `COLUMNS`, gains are in points."""
    rows = []
    for table in tables:
        for index, (label, one) in enumerate(zip(table.subjects, table.comparisons, strict=True)):
            if one.gain is None:
                continue
            title = spreadsheet_text(", ".join(filter(None, (label, table.title))))
            interval = format_interval(one.gain)
            figures = format_points(one.gain) + (
                f" ({interval})" if one.gain.low is not None else ", no interval"
            )
            result = "not significant"
            if one.significant:
                result = "better" if one.gain.mean > 0 else "worse"
            p = "" if one.p_holm is None else f", p = {one.p_holm:.2g}"
            # The chart splits it into three lines.
            row = f"{title}\n{figures}\n{one.outcome or result}{p}"
            detail = f"{title}: {figures} points, {len(one.seeds)} seeds{p}"
            ends = [
                None if end is None else 100 * end
                for estimate in (one.gain, one.gain_examples)
                for end in ((None, None) if estimate is None else (estimate.low, estimate.high))
            ]
            rows.append([row, "mean", 100 * one.gain.mean, *ends, result, detail])
            for seed, gain in table.gains(index).items():
                text = f"{title}, seed {seed}: {100 * gain:+.2f} points"
                rows.append([row, "seed", 100 * gain, None, None, None, None, result, text])
    return rows


def forest_media(rows: list[list[Any]], preset: str | None) -> dict[str, Any]:
    """Make what a report run logs: the table that the chart draws, with the chart if it has one.

    Args:
        rows: As returned by `forest_rows`.
        preset: Name of the chart preset on the server; None if there is none.
    """
    table = wandb.Table(columns=list(COLUMNS), data=rows, allow_mixed_types=True)
    if preset is None:
        return {f"{KEY}_table": table}
    return {KEY: wandb.plot_table(preset, table, {name: name for name in COLUMNS})}


def _field(name: str) -> str:
    """Name of a field in a specification for W&B, which replaces it by a column's name."""
    return f"${{field:{name}}}"


def _of(name: str) -> str:
    return f"datum['{_field(name)}']"


def forest_spec() -> dict[str, Any]:
    """Make the Vega-Lite specification; W&B binds its fields to the columns of the table."""
    row = {
        "field": _field("row"),
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {
            "labelExpr": "split(datum.label, '\\n')",
            # Leaves half of a phone's width; the tooltip has the whole name.
            "labelLimit": 170,
            "labelLineHeight": 15,
            # Centres three lines.
            "labelOffset": -15,
            "labelPadding": 8,
            "ticks": False,
            "domain": False,
            "grid": True,
            "tickBand": "extent",
        },
    }
    colour = {
        "field": _field("result"),
        "type": "nominal",
        "scale": {"domain": list(COLOURS), "range": list(COLOURS.values())},
        # The rows name the result.
        "legend": None,
    }

    def across(name: str) -> dict[str, Any]:
        return {
            "field": _field(name),
            "type": "quantitative",
            "title": ["gain in test accuracy,", "points"],
            "axis": {"tickCount": 6},
            "scale": {"padding": 8},
        }

    def interval(low: str, high: str, width: int) -> dict[str, Any]:
        return {
            "transform": [{"filter": f"{_of('kind')} == 'mean' && isValid({_of(low)})"}],
            "mark": {"type": "rule", "strokeWidth": width, "strokeCap": "round"},
            "encoding": {
                "x": across(low),
                "x2": {"field": _field(high)},
                "y": row,
                "color": colour,
            },
        }

    def marks(kind: str, **mark: Any) -> dict[str, Any]:
        return {
            "transform": [{"filter": f"{_of('kind')} == '{kind}'"}],
            "mark": mark,
            "encoding": {
                "x": across("gain"),
                "y": row,
                "color": colour,
                "tooltip": {"field": _field("detail"), "type": "nominal"},
            },
        }

    zero = {"color": GREY, "strokeDash": [4, 4]}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": "Mean gain of each variant (diamond), its 95 % interval over seeds (thick) "
        "and over seeds and test examples (thin), and the gain of each seed (ticks).",
        "data": {"name": "wandb"},
        "width": "container",
        "height": {"step": 58},
        "layer": [
            {"mark": {"type": "rule", **zero}, "encoding": {"x": {"datum": 0}}},
            interval("low_examples", "high_examples", 1),
            interval("low", "high", 4),
            marks("seed", type="tick", size=14, thickness=2, opacity=0.8),
            marks("mean", type="point", filled=True, shape="diamond", size=160, opacity=1),
        ],
        "config": {
            "background": None,
            "view": {"stroke": None},
            "axis": {
                "labelColor": GREY,
                "titleColor": GREY,
                "titleFontWeight": "normal",
                "labelFontSize": 12,
                "titleFontSize": 12,
                "gridColor": GREY,
                "gridOpacity": 0.2,
            },
        },
    }


def preset_name() -> str:
    """Name of the chart preset; it changes with the specification."""
    digest = hashlib.sha256(json.dumps(forest_spec()).encode()).hexdigest()
    return f"regain-forest-{digest[:8]}"


def filled_spec(rows: list[list[Any]]) -> dict[str, Any]:
    """Make the specification with its data, for a Vega editor or notebook."""
    text = json.dumps(forest_spec())
    for name in COLUMNS:
        text = text.replace(_field(name), name)
    values = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    spec: dict[str, Any] = json.loads(text)
    return spec | {"data": {"values": values}}
