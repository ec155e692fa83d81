"""A study in W&B: one run that reports it, a report and a saved workspace."""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from study import charts
from study.plan import Study
from study.results import Collection
from study.tables import COLUMNS, Table, markdown, rows, tables, verdict
from tasks.plain_text import spreadsheet_text
from tasks.tracking import RunLogger, wandb_mode

log = logging.getLogger(__name__)

PROJECT = "regain"
STEP = "trainer/global_step"
# Stands where the team or user is not known yet.
NOBODY = "ENTITY"


def log_report_run(collection: Collection, entity: str | None) -> tuple[Path, str]:
    """Log the gain table, the curves and the per-example table as the study's `report` run.

    There is one such run a study: the next one takes its place.

    Args:
        collection: The study's runs.
        entity: W&B team or user; the default one if None.

    Returns:
        The folder of the W&B run, offline or not, and the entity that it belongs to.
    """
    study = collection.study
    folder = study.folder / "report"
    name_file = study.folder / "report-id.txt"
    if not name_file.exists():
        name_file.write_text(uuid.uuid4().hex[:8])
    shutil.rmtree(folder, ignore_errors=True)
    logger = RunLogger(
        name=f"{study.name}-report",
        save_dir=str(folder),
        group=study.name,
        job_type="report",
        entity=entity,
        id=name_file.read_text().strip(),
    )
    run = logger.experiment
    try:
        found = tables(collection)
        for place, table in enumerate(found):
            prefix = "report" if len(found) == 1 else f"report/{place}: {table.title}"
            logger.log_media(partial(_logged, table, prefix))
            for label, one in zip(table.labels, table.comparisons, strict=True):
                logger.log_summary({f"{prefix}/accuracy/{label}": one.mean})
                if one.gain is not None:
                    for name, estimate in (
                        ("gain", one.gain),
                        ("gain_last", one.gain_last),
                        ("nll", one.loss),
                    ):
                        if estimate is not None:
                            logger.log_summary({f"{prefix}/{name}/{label}": asdict(estimate)})
                logger.log_summary({f"{prefix}/at_chance/{label}": len(one.at_chance)})
            logger.log_summary({f"{prefix}/verdict": verdict(table)})
        artifact = wandb.Artifact(f"{_plain(study.name)}-examples", type="predictions")
        artifact.add(examples(found[-1]), "examples")
        page = study.folder / "study.html"
        if page.exists():
            artifact.add_file(str(page))
        run.log_artifact(artifact)
        return Path(run.dir).parent, run.entity
    finally:
        logger.close()


def _plain(name: str) -> str:
    """Write a name with the signs and the length that W&B allows for an artifact."""
    plain = (sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "-" for sign in name)
    return "".join(plain)[:100]


def _logged(table: Table, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}/gain_table": wandb.Table(columns=list(COLUMNS), data=rows(table)),
        f"{prefix}/gain": wandb.Plotly(charts.gains(table)),
        f"{prefix}/learning_curves": wandb.Plotly(charts.learning_curves(table)),
        f"{prefix}/gap": wandb.Plotly(charts.gaps(table)),
        f"{prefix}/reliability": wandb.Plotly(charts.reliability(table)),
    }


def examples(table: Table) -> wandb.Table:
    """List each test example with what every run of a table took it for."""
    classes: list[str] = []
    columns: list[str | int] = ["variant", "seed", "index", "label", "predicted", "confidence"]
    data = []
    for arm, results in zip(table.labels, table.results, strict=True):
        label = spreadsheet_text(arm)
        for seed, result in results.items():
            # Tables of W&B can be saved as CSV.
            classes = [spreadsheet_text(name) for name in result.record["classes"]]
            found = result.record["predictions"]
            for index, (true, taken, sure) in enumerate(
                zip(found["label"], found["predicted"], found["confidence"], strict=True)
            ):
                data.append([label, seed, index, classes[true], classes[taken], sure])
    return wandb.Table(columns=columns, data=data)


def line(title: str, *metrics: str, pattern: str | None = None) -> reports.LinePlot:
    """Make a panel of metrics over the steps: a line a variant, a band over its seeds."""
    return reports.LinePlot(
        title=title,
        x=STEP,
        y=list(metrics),
        metric_regex=pattern,
        groupby=reports.Config("run.variant"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=reports.Layout(w=12, h=8),
    )


def bars(title: str, *metrics: str) -> reports.BarPlot:
    """Make a panel of final values, a bar a variant."""
    return reports.BarPlot(
        title=title,
        metrics=list(metrics),
        groupby=reports.Config("run.variant"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=reports.Layout(w=12, h=8),
    )


def panels() -> dict[str, list[Any]]:
    """Make all panels of a study by section."""
    return {
        "Gain": [
            bars("Test accuracy", "test/acc"),
            bars("Test accuracy with the weights of the last epoch", "test_last/acc"),
            bars("Negative log-likelihood of the test labels", "test/loss"),
            line("Validation accuracy", "val/acc"),
            line("Validation loss", "val/loss"),
        ],
        "Generalization": [
            line("Gap: training less validation accuracy", "reg/gap_acc"),
            bars("Calibration error of the test", "test/ece"),
            line("Calibration error of the validation", "val/ece"),
        ],
        "Inside the layers": [
            line("Variance shift of every batch norm", pattern="reg/variance_shift/.*"),
            line("Dead units", pattern="reg/dead_units/.*"),
            line("Dropout rates", pattern="reg/p/.*"),
        ],
        "Cost": [line("Examples a second", "speed/examples_per_second")],
    }


def workspace(study: Study, entity: str) -> workspaces.Workspace:
    """Make the saved view of a study's runs."""
    return workspaces.Workspace(
        entity=entity,
        project=PROJECT,
        name=f"study {study.name}",
        sections=[
            workspaces.Section(name=name, panels=content, is_open=True)
            for name, content in panels().items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            filters=[expr.Metric("group") == study.name, expr.Metric("jobType") == "train"],
            groupby=[expr.Config("run.variant")],
        ),
    )


def report(study: Study, found: Iterable[Table], entity: str) -> reports.Report:
    """Make the report of a study: verdicts, gain tables, and live panels of its runs."""
    blocks: list[Any] = []
    for table in found:
        title = [reports.H2(table.title)] if table.title else []
        blocks += [*title, reports.P(verdict(table)), reports.MarkdownBlock(markdown(table))]
    # Without an entity of its own: looking that one up would need the server.
    runs = reports.Runset(
        project=PROJECT,
        name=study.name,
        filters=f"Metric('group') == {study.name!r} and Metric('jobType') == 'train'",
        groupby=["config.run.variant"],
    )
    for name, content in panels().items():
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runs], panels=content)]
    return reports.Report(
        project=PROJECT,
        entity=entity,
        title=f"study {study.name}",
        description=f"What regularization gains: {study.task} on {Path(study.data).name}.",
        blocks=blocks,
        width="fluid",
    )


def write_specs(collection: Collection, entity: str) -> list[Path]:
    """Write what the report and the workspace hold as JSON beside the study's page."""
    study = collection.study
    files = []
    made = {
        "report": report(study, tables(collection), entity)._to_model(),
        "workspace": workspace(study, entity)._to_model(),
    }
    for name, model in made.items():
        file = study.folder / f"wandb-{name}.json"
        content = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
        file.write_text(json.dumps(content, indent=1) + "\n")
        files.append(file)
    return files


def publish(collection: Collection, entity: str | None, say: Callable[..., Any]) -> None:
    """Log the report run and, if W&B is online, save report and workspace there.

    Offline, their specs are written, and it is said how to publish them later.
    """
    study = collection.study
    mode = wandb_mode()
    folder, team = log_report_run(collection, entity or os.environ.get("WANDB_ENTITY") or None)
    files = write_specs(collection, team or NOBODY)
    if mode == "online" and team:
        for what, made in (
            ("report", report(study, tables(collection), team)),
            ("workspace", workspace(study, team)),
        ):
            try:
                made.save()
            except Exception as error:  # Whatever the server says, nothing is lost.
                log.warning("W&B does not take the %s (%s)", what, " ".join(str(error).split()))
                continue
            say(f"{what} on W&B: {made.url}")
        return
    say(f"W&B is offline: the study's report run is in {folder}")
    say(f"specs of the W&B report and workspace: {' and '.join(map(str, files))}")
    runs = f"{study.folder}/*/wandb/offline-run-*"
    say(
        f"publish them later: wandb login, wandb sync {runs}, "
        f"make report STUDY={study.name} ENTITY=your-team"
    )
