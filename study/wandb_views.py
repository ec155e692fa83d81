"""The W&B report and workspace of a study or of a search, as code."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from study.chart_style import colour
from study.factorial import effects, effects_markdown
from study.gain_table import GainTable, markdown
from study.plan import Study
from study.run_gains import wandb_id
from study.search_space import Space
from study.verdict import verdict
from study.wandb_panels import (
    OBJECTIVE,
    Panels,
    group_key,
    report_run_panels,
    search_panels,
    study_panels,
)
from tasks.data.sources import source_label
from tasks.lookup import task_label
from tasks.run.tracking import PROJECT, STEP

# W&B pins at most this many runs.
MOST_PINNED = 20
Views = dict[str, Any]


def study_views(
    study: Study, tables: Sequence[GainTable], entity: str, preset: str | None
) -> Views:
    """Make the report and the workspace of a study.

    Args:
        study: The study.
        tables: Its gain tables.
        entity: W&B team or user.
        preset: Name of the forest plot's preset on the server; None if there is none.
    """
    return {
        "report": _study_report(study, tables, entity, preset),
        "workspace": _study_workspace(study, tables, entity, preset),
    }


def search_views(name: str, space: Space, entity: str) -> Views:
    """Make the report and the workspace of a search.

    Args:
        name: The name of the search, which is the group of its runs.
        space: Its parameters.
        entity: W&B team or user.
    """
    panels = search_panels(space.parameters)
    best = workspaces.RunsetSettings(
        filters=expr.And(expr.Metric("group") == name, expr.Metric("jobType") == "sweep"),
        order=[expr.Ordering(expr.Summary(OBJECTIVE), ascending=False)],
        pinned_columns=[f"summary:{OBJECTIVE}", *map(column_of, space.parameters)],
    )
    runs = runset_of(name, "sweep", reports.SummaryMetric(OBJECTIVE), [])
    blocks = [
        reports.P("Each line or point is one trial. The accuracy is that of the best epoch."),
        *grids_of(panels, runs),
    ]
    return {
        "report": report_of(f"search {name}", "Search for parameters.", blocks, entity),
        "workspace": workspace_of(f"search {name}", panels, best, entity),
    }


def _study_workspace(
    study: Study, tables: Sequence[GainTable], entity: str, preset: str | None
) -> workspaces.Workspace:
    panels = study_panels(study, _gpus(tables))
    panels["Gain"] = [*report_run_panels(tables, preset), *panels["Gain"]]
    baseline = next(study.arms())
    ids = [wandb_id(study.run_folder(baseline, seed)) for seed in study.seeds]
    pinned = [one for one in ids if one is not None][:MOST_PINNED]
    key = group_key(study)
    titles = [arm.title for arm in study.arms()] if not study.axes else []
    runs = workspaces.RunsetSettings(
        # With the report run, which has the forest plot.
        filters=expr.And(expr.Metric("group") == study.name),
        groupby=[expr.Config(key)],
        group_colors={title: colour(index) for index, title in enumerate(titles)},
        order=[expr.Ordering(expr.Summary("gain/test_acc"), ascending=False)],
        pinned_columns=[
            "summary:gain/test_acc",
            "summary:gain/val_acc",
            "summary:test/acc",
            column_of("run.seed"),
        ],
        baseline_run=pinned[0] if pinned else None,
        pinned_runs=pinned,
    )
    return workspace_of(f"study {study.name}", panels, runs, entity)


def _study_report(
    study: Study, tables: Sequence[GainTable], entity: str, preset: str | None
) -> reports.Report:
    blocks: list[Any] = []
    for table in tables:
        blocks += [reports.H2(table.title)] if table.title else []
        blocks.append(reports.P(verdict(table)))
    report_run = runset_of(study.name, "report", reports.Metric("CreatedTimestamp"), [])
    forest = reports.PanelGrid(
        runsets=[report_run], hide_run_sets=True, panels=report_run_panels(tables, preset)[:1]
    )
    runs = runset_of(
        study.name,
        "train",
        reports.SummaryMetric("gain/test_acc"),
        [f"config.{group_key(study)}"],
    )
    first, *further = grids_of(study_panels(study, _gpus(tables)), runs)
    blocks += [first, forest, *further[:1]]
    for table in tables:
        blocks += [reports.H3(table.title)] if table.title else []
        blocks.append(reports.MarkdownBlock(markdown(table)))
        if found := effects(table):
            blocks.append(reports.MarkdownBlock(effects_markdown(found)))
    blocks += further[1:]
    description = f"Gain of regularization: {task_label(study.task)} on {source_label(study.data)}."
    return report_of(f"study {study.name}", description, blocks, entity)


def _gpus(tables: Sequence[GainTable]) -> int:
    """Number of GPUs of the runs."""
    records = [
        result.record for table in tables for seeds in table.results for result in seeds.values()
    ]
    devices = [str(record["config"].get("trainer", {}).get("devices", 1)) for record in records]
    has_gpu = any(record["machine"]["gpu"] for record in records)
    return max((int(one) if one.isdecimal() else 1 for one in devices), default=1) * has_gpu


def column_of(key: str) -> str:
    """Name of a configuration key as a column of W&B's table of runs."""
    first, _, rest = key.partition(".")
    return f"config:{first}.value" + (f".{rest}" if rest else "")


def runset_of(name: str, job_type: str, order: Any, groupby: list[str]) -> reports.Runset:
    """Make the set of the runs of a group and job type, the highest first."""
    # No entity: resolving it would need the server.
    return reports.Runset(
        project=PROJECT,
        name=name,
        filters=f"Metric('group') == {name!r} and Metric('jobType') == {job_type!r}",
        groupby=groupby,
        order=[reports.OrderBy(order, ascending=False)],
    )


def grids_of(panels: Panels, runs: reports.Runset) -> list[Any]:
    """Make a heading and a grid of panels per section."""
    return [
        block
        for name, content in panels.items()
        for block in (reports.H2(name), reports.PanelGrid(runsets=[runs], panels=content))
    ]


def report_of(title: str, description: str, blocks: list[Any], entity: str) -> reports.Report:
    """Make a report; W&B limits its title."""
    return reports.Report(
        project=PROJECT,
        entity=entity,
        title=title[:128],
        description=description,
        blocks=blocks,
        width="fluid",
    )


def workspace_of(
    name: str, panels: Panels, runs: workspaces.RunsetSettings, entity: str
) -> workspaces.Workspace:
    """Make a saved view of the workspace, with a section of panels each."""
    return workspaces.Workspace(
        entity=entity,
        project=PROJECT,
        # The library refuses symbols such as "|" in a name.
        name="".join("-" if category(sign)[0] == "S" else sign for sign in name),
        sections=[
            workspaces.Section(name=title, panels=content, is_open=True)
            for title, content in panels.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=MOST_PINNED),
        runset_settings=runs,
    )


def spec_of(view: Any) -> dict[str, Any]:
    """Return what W&B stores of a report or a workspace."""
    content: dict[str, Any] = json.loads(
        view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    )
    return content


def write_specs(folder: Path, views: Mapping[str, Any]) -> list[Path]:
    """Write reports and workspaces as JSON."""
    files = []
    for name, view in views.items():
        file = folder / f"wandb-{name}.json"
        file.write_text(json.dumps(spec_of(view), indent=1) + "\n")
        files.append(file)
    return files
