"""The panels that W&B shows for the runs of a study or of a search, by section.

Every key is one that the runs log: `tests/study/test_wandb_panels.py` looks each up in the files of
real runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as reports
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from study import forest
from study.gain_table import GainTable
from study.plan import Study
from study.report_run import prefixes
from tasks.run.tracking import STEP

VARIANT = "run.variant"
# The figure that a search optimizes: the validation accuracy of the best epoch.
OBJECTIVE = "val/best_acc"
# A grid of a report is 24 wide.
HALF = {"w": 12, "h": 8}
FULL = {"w": 24, "h": 12}

Panels = dict[str, list[Any]]


def line_panel(
    title: str, *metrics: str, pattern: str | None = None, group: str = VARIANT, x: str = STEP
) -> reports.LinePlot:
    """Make a line panel of metrics: mean and deviation over seeds of each group of runs."""
    return reports.LinePlot(
        title=title,
        x=x,
        y=list(metrics),
        metric_regex=pattern,
        groupby=reports.Config(group),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=reports.Layout(**HALF),
    )


def bar_panel(title: str, metric: str, group: str = VARIANT) -> reports.BarPlot:
    """Make a bar panel of a value in the summary: mean and deviation over seeds of each group."""
    return reports.BarPlot(
        title=title,
        metrics=[metric],
        groupby=reports.Config(group),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=reports.Layout(**HALF),
    )


def report_run_panels(tables: Sequence[GainTable], preset: str | None) -> list[Any]:
    """Make the panels of the study's report run: the forest plot, and the tables of gains.

    Args:
        tables: The study's gain tables.
        preset: Name of the forest plot's preset on the server; if None, a panel shows the report
            run's Plotly charts of the same gains.
    """
    names = prefixes(tables)
    pictures = [f"{name}/gain" for name in names]
    return [forest_panel(preset, pictures), *(table_panel(f"{name}/gain_table") for name in names)]


def forest_panel(preset: str | None, pictures: list[str]) -> Any:
    """Make the panel of the forest plot.

    Args:
        preset: Name of its preset on the server; None if there is none.
        pictures: Keys of the charts that are shown without a preset.
    """
    layout = reports.Layout(**FULL)
    if preset is None:
        return reports.MediaBrowser(
            title="Gain in test accuracy with 95 % intervals",
            media_keys=pictures,
            num_columns=1,
            layout=layout,
        )
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"{forest.KEY}_table"}},
        chart_name=preset,
        chart_fields={name: name for name in forest.COLUMNS},
        layout=layout,
    )


def confusion_panel() -> reports.CustomChart:
    """Make the panel of the confusion matrix, which each run logs."""
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": "test/confusion_matrix_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields={name: name for name in ("Actual", "Predicted", "nPredictions")},
        chart_strings={"title": "Test: confusion matrix"},
        layout=reports.Layout(**HALF),
    )


def table_panel(name: str) -> reports.WeavePanelSummaryTable:
    """Make the panel of a table that runs log."""
    return reports.WeavePanelSummaryTable(table_name=name, layout=reports.Layout(**FULL))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def response_panel(key: str, values: Sequence[str]) -> Any:
    """Make the panel of the gain against an axis: points for numbers, bars for names."""
    title = f"Gain in test accuracy against {key}"
    if not all(_is_number(value) for value in values):
        return bar_panel(title, "gain/test_acc", group=key)
    return reports.ScatterPlot(
        title=title,
        x=reports.Config(key),
        y=reports.SummaryMetric("gain/test_acc"),
        running_ymean=True,
        layout=reports.Layout(**HALF),
    )


def group_key(study: Study) -> str:
    """Return the configuration key that runs are grouped by: the variant, or an axis."""
    return next(iter(study.axes)) if study.axes and len(study.variants) == 1 else VARIANT


def study_panels(study: Study, gpus: int = 0) -> Panels:
    """Make the panels of a study's training runs.

    Args:
        study: The study.
        gpus: Number of GPUs of a run.
    """
    group = group_key(study)

    def bar(title: str, metric: str) -> Any:
        return bar_panel(title, metric, group)

    def line(title: str, *metrics: str, pattern: str | None = None, x: str = STEP) -> Any:
        return line_panel(title, *metrics, pattern=pattern, group=group, x=x)

    return {
        "Gain": [
            bar("Gain in test accuracy over the same seed's baseline", "gain/test_acc"),
            bar("Gain in validation accuracy", "gain/val_acc"),
            *(response_panel(key, values) for key, values in study.axes.items()),
            bar(
                "Change of the test labels' negative log-likelihood (below 0 is better)",
                "gain/test_loss",
            ),
            bar("Change of the calibration error (below 0 is better)", "gain/ece"),
            bar("Change of the generalization gap (below 0 is better)", "gain/gap"),
        ],
        "Accuracy": [
            bar("Test accuracy", "test/acc"),
            bar("Test accuracy with the weights of the last epoch", "test_last/acc"),
            line("Validation accuracy", "val/acc"),
            line("Validation loss", "val/loss"),
        ],
        "Generalization": [
            line("Gap: training minus validation accuracy", "reg/gap_acc"),
            bar("Negative log-likelihood of the test labels", "test/loss"),
            bar("Test calibration error", "test/ece"),
            line("Validation calibration error", "val/ece"),
        ],
        "Inside the layers": [
            line("Variance shift of every batch norm", pattern="reg/variance_shift/.*"),
            line("Dead units", pattern="reg/dead_units/.*"),
            line("Dropout rates", pattern="reg/p/.*"),
        ],
        "Mistakes": [table_panel("test/worst_mistakes"), confusion_panel()],
        "Cost": [
            line("Examples per second", "speed/examples_per_second"),
            *system_panels(group, gpus),
        ],
    }


def system_panels(group: str, gpus: int) -> list[Any]:
    """Make the panels of the machine: use of processors, GPUs and memory, over the run's seconds.

    Args:
        group: Configuration key that runs are grouped by.
        gpus: Number of GPUs of a run.
    """
    panels = [
        ("Use of the processors, %", ["system/cpu"]),
        ("Memory of the process, MB", ["system/proc.memory.rssMB"]),
    ]
    if gpus:
        panels += [
            ("Use of the GPUs, %", [f"system/gpu.{index}.gpu" for index in range(gpus)]),
            (
                "Memory of the GPUs, %",
                [f"system/gpu.{index}.memoryAllocated" for index in range(gpus)],
            ),
        ]
    return [
        line_panel(title, *metrics, group=group, x="RelativeTime(Process)")
        for title, metrics in panels
    ]


def search_panels(parameters: Mapping[str, BaseDistribution]) -> Panels:
    """Make the panels of a search.

    Args:
        parameters: The parameters by key, with their distributions.
    """
    numeric = {
        key: kind
        for key, kind in parameters.items()
        if isinstance(kind, (FloatDistribution, IntDistribution))
    }
    columns = [
        reports.ParallelCoordinatesPlotColumn(metric=reports.Config(key)) for key in parameters
    ]
    objective = reports.ParallelCoordinatesPlotColumn(
        metric=reports.SummaryMetric(OBJECTIVE), display_name="validation accuracy"
    )
    return {
        "Search": [
            reports.ParallelCoordinatesPlot(
                title="Parameters and validation accuracy of the best epoch",
                columns=[*columns, objective],
                layout=reports.Layout(**FULL),
            ),
            reports.ParameterImportancePlot(
                with_respect_to=OBJECTIVE, layout=reports.Layout(**FULL)
            ),
        ],
        "Response": [
            reports.ScatterPlot(
                title=f"Validation accuracy against {key}",
                x=reports.Config(key),
                y=reports.SummaryMetric(OBJECTIVE),
                layout=reports.Layout(**HALF),
            )
            for key in numeric
        ],
        "Trials": [
            reports.LinePlot(title=title, x=STEP, y=[metric], layout=reports.Layout(**HALF))
            for title, metric in (
                ("Validation accuracy", "val/acc"),
                ("Validation loss", "val/loss"),
            )
        ],
    }
