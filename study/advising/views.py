"""The W&B report and workspace of an advice, as code."""

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from study.advising.charts import parameters_of
from study.advising.commands import advise_command
from study.advising.page import Confirmed, contrasts_of, figures_of
from study.advising.records import Advice
from study.advising.report_run import CHARTS, tables_of
from study.wandb_panels import (
    HALF,
    OBJECTIVE,
    VARIANT,
    Panels,
    forest_panel,
    study_panels,
    table_panel,
)
from study.wandb_views import Views, grids_of, report_of, runset_of, workspace_of
from tasks.data.sources import source_label
from tasks.lookup import task_label
from tasks.run.plain_text import without_folders

# Titles of the charts that are pictures of the report run.
TITLES = {
    "report/looks": "How the intervals narrowed",
    "report/budget": "Expected best of n trials",
    "report/finalists": "Regression to the mean",
    "report/parts": "What each part contributes",
}


def advice_views(
    advice: Advice, confirmed: Confirmed | None, entity: str, preset: str | None
) -> Views:
    """Make the report and the workspace of an advice.

    Args:
        advice: The advice.
        confirmed: The runs of its confirmation.
        entity: W&B team or user.
        preset: Name of the forest plot's preset on the server; None if there is none.
    """
    question = advice.question
    answer = _answer_panels(advice, confirmed, preset)
    response = _response_panels(advice)
    confirmation = study_panels(confirmed.collection.study) if confirmed else {}
    runs = {
        kind: runset_of(question.name, kind, order, groupby)
        for kind, order, groupby in (
            ("report", reports.Metric("CreatedTimestamp"), []),
            ("tune", reports.SummaryMetric(OBJECTIVE), []),
            ("train", reports.SummaryMetric("gain/test_acc"), [f"config.{VARIANT}"]),
        )
    }
    blocks = [
        *_answer_blocks(advice),
        *grids_of(answer, runs["report"]),
        *grids_of(response, runs["tune"]),
        *grids_of({f"Confirmation: {k}": v for k, v in confirmation.items()}, runs["train"]),
        reports.H2("How to ask again"),
        _command(without_folders(advise_command(question))),
    ]
    title = f"advice {question.name}"
    about = (
        f"Advice on regularization: {task_label(question.task)} on {source_label(question.data)}."
    )
    shown = workspaces.RunsetSettings(
        filters=expr.And(expr.Metric("group") == question.name),
        order=[expr.Ordering(expr.Summary(OBJECTIVE), ascending=False)],
        pinned_columns=[f"summary:{OBJECTIVE}", "summary:gain/test_acc", "summary:test/acc"],
    )
    return {
        "report": report_of(title, about, blocks, entity),
        "workspace": workspace_of(title, answer | response | confirmation, shown, entity),
    }


def _answer_blocks(advice: Advice) -> list[object]:
    recommendation = advice.recommendation
    if recommendation is None:
        return [reports.P("There is no recommendation yet.")]
    return [
        reports.P(recommendation.sentence),
        *(reports.P(note) for note in recommendation.notes),
        _command(recommendation.command),
    ]


def _command(command: str) -> reports.MarkdownBlock:
    return reports.MarkdownBlock(f"```\n{command}\n```")


def _answer_panels(advice: Advice, confirmed: Confirmed | None, preset: str | None) -> Panels:
    """Make the panels of the report run, as far as it has what they show."""
    figures = figures_of(advice, confirmed)
    tables = {key for key, _, _ in tables_of(advice)}
    found: Panels = {}
    if contrasts_of(advice):
        found["Answer"] = [forest_panel(preset, ["report/gain"]), table_panel("report/gain_table")]
    pictures = [
        reports.MediaBrowser(
            title=title, media_keys=[key], num_columns=1, layout=reports.Layout(**HALF)
        )
        for key, title in TITLES.items()
        if CHARTS[key] in figures
    ]
    further = [table_panel("report/tuning")] if "report/tuning" in tables else []
    if pictures or further:
        found["Tuning and parts"] = [*pictures, *further]
    return found


def _response_panels(advice: Advice) -> Panels:
    """Make a panel of the validation accuracy against each parameter of the trials."""
    panels = [
        reports.ScatterPlot(
            title=f"Validation accuracy against {key}",
            x=reports.Config(key),
            y=reports.SummaryMetric(OBJECTIVE),
            layout=reports.Layout(**HALF),
        )
        for key in parameters_of(advice.tuning)
        if _is_numeric(advice, key)
    ]
    return {"Response: where and how much": panels} if panels else {}


def _is_numeric(advice: Advice, key: str) -> bool:
    values = [t.parameters[key] for arm in advice.tuning for t in arm.trials if key in t.parameters]
    return all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
