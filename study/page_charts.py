"""The charts of a study's page, by the id of their element."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from study import charts
from study.chart_style import NEUTRAL
from study.factorial import effects
from study.factorial_chart import interaction
from study.gain_table import GainTable
from study.results import Result
from study.statistics import Estimate, paired_estimate


def along_axes(tables: Sequence[GainTable]) -> dict[str, Any]:
    """Draw gain and accuracy against the study's axes."""

    def gain(table: GainTable, index: int) -> Estimate | None:
        return _in_points(table.comparisons[index].gain)

    gains = charts.over_axis(tables, gain, (-100, 100), tables[0].subjects)
    gains.update_yaxes(title_text=f"{tables[0].quantity}, points")
    gains.add_hline(y=0, line_width=1, line_dash="dot", line_color=NEUTRAL)
    return {"axis-gain": gains, "axis-accuracy": accuracies(tables)}


def accuracies(tables: Sequence[GainTable]) -> Any:
    """Draw the test accuracy against the study's axes."""

    def accuracy(table: GainTable, index: int) -> Estimate | None:
        return _accuracy(list(table.results[index].values()))

    figure = charts.over_axis(tables, accuracy, (0, 100), tables[0].labels)
    figure.update_yaxes(title_text="test accuracy, %")
    return figure


def over_points(table: GainTable) -> Any:
    """Draw the test accuracy of a single variant against the study's axes."""
    parts = zip(table.arms, table.results, table.comparisons, strict=True)
    return accuracies([GainTable("", [arm], [found], [one]) for arm, found, one in parts])


def _in_points(estimate: Estimate | None) -> Estimate | None:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None if estimate is None else Estimate(100 * estimate.mean)
    return Estimate(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high)


def _accuracy(results: list[Result]) -> Estimate | None:
    return _in_points(paired_estimate([result.accuracy for result in results]))


def figures_of(tables: Sequence[GainTable]) -> dict[str, Any]:
    """Draw all charts of a study; with axes, those of single runs show the last point."""
    table = tables[-1]
    figures: dict[str, Any] = {}
    if len(tables) > 1:
        figures |= along_axes(tables)
    elif table.axis:
        figures["axis-accuracy"] = over_points(table)
    if any(one.gain is not None for one in table.comparisons):
        figures["gains"] = charts.gains(table)
    if effects(table):
        figures["interaction"] = interaction(table)
    if epochs(table) > 1:
        figures |= {"curves": charts.learning_curves(table), "gaps": charts.gaps(table)}
    figures["reliability"] = charts.reliability(table)
    figures |= charts.layers(table)
    figures["confusion-baseline"] = charts.confusion(list(table.results[0].values()))
    if best := best_index(table):
        figures["confusion-best"] = charts.confusion(list(table.results[best].values()))
    return figures


def epochs(table: GainTable) -> int:
    """Return the number of epochs that all runs have."""
    return min(len(one.record["history"]) for found in table.results for one in found.values())


def best_index(table: GainTable) -> int:
    """Return the index of the arm with the highest mean accuracy."""
    return int(np.argmax([one.mean for one in table.comparisons]))
