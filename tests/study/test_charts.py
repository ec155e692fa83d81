"""What the charts show, beyond how they look."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest

from study import charts
from study.chart_style import colour, dark_partners, dash
from study.gain_table import gain_tables
from study.plan import Study
from study.results import collect
from study.trial_results import sampling_half_width
from tests.study.conftest import Planted, read_tables, record, right


def test_a_band_is_kept_where_seeds_agree_and_ends_at_the_bounds() -> None:
    figure = go.Figure()
    columns = [[1.0, 20.0, 40.0], [60.0, 60.0, 60.0], [80.0, 95.0, 99.0]]
    charts.draw_mean(figure, [1, 2, 3], columns, 1, "dropout", (0, 100))
    band, line = figure.data
    assert len(band.x) == 6
    assert band.y[1] == 60.0 == band.y[4]
    assert (min(band.y), max(band.y)) == (0, 100)
    assert list(line.y) == [np.mean(column) for column in columns]


def test_dots_of_the_reliability_diagram_hold_equally_many_predictions(gaining: Study) -> None:
    figure = charts.reliability(gain_tables(collect(gaining))[0])
    for trace in figure.data[1:]:
        counts = [count for _, count in trace.customdata]
        # 300 predictions of three seeds.
        assert counts == [30] * 10
        hits = [100 * right / count for right, count in trace.customdata]
        assert list(trace.y) == pytest.approx(hits)
        assert list(trace.x) == sorted(trace.x)
    assert figure.layout.meta["predictions_per_dot"] == 30


def test_few_predictions_make_few_dots(planted: Planted) -> None:
    study = planted({"none": [record(0, right(40, 60))]})
    figure = charts.reliability(read_tables(study)[1][0])
    assert [count for _, count in figure.data[1].customdata] == [30, 30]


def test_seeds_and_both_intervals_can_be_seen(gaining: Study) -> None:
    table = gain_tables(collect(gaining))[0]
    figure = charts.gains(table)
    both = [trace for trace in figure.data if trace.meta == "both"]
    thin, thick, seeds, mean = both
    assert (thin.line.width, thick.line.width) == (2, 6)
    assert thin.marker.symbol == "line-ns"
    assert len(set(seeds.y)) == 1
    assert seeds.y[0] < mean.y[0] == thick.y[0]
    assert list(seeds.x) == pytest.approx([10, 12, 14])
    # Zero and all values are in view.
    low, high = figure.layout.xaxis.range
    assert low < min(0, *(x for trace in figure.data for x in trace.x))
    assert high > max(x for trace in figure.data for x in trace.x)
    assert "both<br>+12.00 *" in figure.layout.yaxis.ticktext


def test_only_the_baseline_is_grey_and_twelve_variants_differ() -> None:
    styles = [(colour(index), dash(index)) for index in range(12)]
    assert len(set(styles)) == 12
    assert [style for style in styles if style[0] == colour(0)] == [styles[0]]


def test_each_colour_of_a_chart_has_a_partner_in_the_dark(gaining: Study) -> None:
    table = gain_tables(collect(gaining))[0]
    text = json.dumps([f.to_json() for f in (charts.gains(table), charts.learning_curves(table))])
    for light in dark_partners():
        text = text.replace(light, "")
    assert "#" not in text.replace("#1c2126", "").replace("#ffffff", "")
    assert re.findall(r"rgba\((?!0,0,0,0)\d", text) == []


def test_the_choice_of_validation_examples_has_its_own_uncertainty() -> None:
    assert sampling_half_width(0.96, 339) == pytest.approx(0.0209, abs=1e-4)
