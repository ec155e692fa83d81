"""The W&B run of type `report` of a study: gains, curves, a forest plot, all predictions."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import wandb

from study import charts, forest
from study.factorial import COLUMNS, effects
from study.factorial_chart import interaction
from study.gain_table import GainTable, rows
from study.page import PAGE_FILE
from study.plan import Study
from study.results import Collection
from study.verdict import verdict
from tasks.run.artifacts import artifact_name, code_artifact
from tasks.run.plain_text import spreadsheet_text
from tasks.run.tracking import RunLogger


@dataclass(frozen=True)
class ReportRun:
    """The report run of a study.

    Args:
        folder: Its folder.
        entity: W&B team or user; None or empty if unknown.
        preset: Name of the forest plot's preset on the server; None if there is none.
    """

    folder: Path
    entity: str | None
    preset: str | None


def log_report_run(
    collection: Collection,
    tables: Sequence[GainTable],
    entity: str | None,
    chart: Callable[[str], str | None],
) -> ReportRun:
    """Log the gain table, the curves and the per-example table as the study's `report` run.

    A study has one such run, which is replaced each time.

    Args:
        collection: The study's runs.
        tables: Their gain tables.
        entity: W&B team or user; None is the default entity.
        chart: Function that maps a team or user to the name of its preset of the forest plot.
    """
    study = collection.study
    with report_logger(study.folder, study.name, entity) as logger:
        run = logger.experiment
        preset = preset_of(run, chart)
        logger.log_media(lambda: forest.forest_media(forest.forest_rows(tables), preset))
        for prefix, table in zip(prefixes(tables), tables, strict=True):
            logger.log_media(partial(_media, table, prefix))
            gain = table.quantity
            subjects = zip(table.labels, table.subjects, table.comparisons, strict=True)
            for arm, label, one in subjects:
                logger.log_summary({f"{prefix}/accuracy/{arm}": one.mean})
                if one.outcome:
                    logger.log_summary({f"{prefix}/outcome/{label}": one.outcome})
                if one.gain is not None:
                    for name, estimate in (
                        (gain, one.gain),
                        (f"{gain}_last", one.gain_last),
                        ("nll", one.loss),
                    ):
                        if estimate is not None:
                            logger.log_summary({f"{prefix}/{name}/{label}": asdict(estimate)})
                logger.log_summary({f"{prefix}/at_chance/{arm}": len(one.at_chance)})
            for effect in effects(table):
                logger.log_summary({f"{prefix}/effect/{effect.name}": asdict(effect.estimate)})
            logger.log_summary({f"{prefix}/verdict": verdict(table)})
        logger.log_artifact(partial(_results_artifact, study, tables))
        return ReportRun(Path(run.dir).parent, run.entity, preset)


@contextmanager
def report_logger(folder: Path, name: str, entity: str | None) -> Iterator[RunLogger]:
    """Open the report run of a study or an advice, in place of the earlier one.

    Args:
        folder: Folder of the study or advice.
        name: Its name, which is the W&B group of its runs.
        entity: W&B team or user; None is the default entity.
    """
    name_file = folder / "report-id.txt"
    if not name_file.exists():
        name_file.write_text(uuid.uuid4().hex[:8])
    shutil.rmtree(folder / "report", ignore_errors=True)
    logger = RunLogger(
        name=f"{name}-report",
        save_dir=str(folder / "report"),
        group=name,
        job_type="report",
        entity=entity,
        id=name_file.read_text().strip(),
    )
    try:
        # Panels group runs by it.
        logger.log_hyperparams({"run": {"variant": "report"}})
        yield logger
        if logger.log_code:
            # The runs of a study log no code.
            logger.log_artifact(code_artifact)
    finally:
        logger.close()


def preset_of(run: Any, chart: Callable[[str], str | None]) -> str | None:
    """Return the name of the forest plot's preset on the server; None if there is none."""
    return chart(run.entity) if not run.offline and not run.disabled else None


def prefixes(tables: Sequence[GainTable]) -> list[str]:
    """Return the prefix of the keys of each table."""
    if len(tables) == 1:
        return ["report"]
    return [f"report/{index}: {table.title}" for index, table in enumerate(tables)]


def _results_artifact(study: Study, tables: Sequence[GainTable]) -> wandb.Artifact:
    artifact = wandb.Artifact(f"{artifact_name(study.name)}-examples", type="predictions")
    artifact.add(examples(tables[-1]), "examples")
    page = study.folder / PAGE_FILE
    if page.exists():
        artifact.add_file(str(page))
    return artifact


def _media(table: GainTable, prefix: str) -> dict[str, Any]:
    media = {
        f"{prefix}/gain_table": wandb.Table(columns=list(table.headings), data=rows(table)),
        f"{prefix}/gain": wandb.Plotly(charts.gains(table)),
        f"{prefix}/learning_curves": wandb.Plotly(charts.learning_curves(table)),
        f"{prefix}/gap": wandb.Plotly(charts.gaps(table)),
        f"{prefix}/reliability": wandb.Plotly(charts.reliability(table)),
    }
    if found := effects(table):
        data = [effect.cells for effect in found]
        media[f"{prefix}/effects"] = wandb.Table(columns=list(COLUMNS), data=data)
        media[f"{prefix}/interaction"] = wandb.Plotly(interaction(table))
    return media


def examples(table: GainTable) -> wandb.Table:
    """List the prediction of each run for each test example."""
    classes: list[str] = []
    columns: list[str | int] = ["variant", "seed", "index", "label", "predicted", "confidence"]
    data = []
    for arm, results in zip(table.labels, table.results, strict=True):
        label = spreadsheet_text(arm)
        for seed, result in results.items():
            # W&B exports tables as CSV.
            classes = [spreadsheet_text(name) for name in result.record["classes"]]
            found = result.record["predictions"]
            for index, (true, taken, sure) in enumerate(
                zip(found["label"], found["predicted"], found["confidence"], strict=True)
            ):
                data.append([label, seed, index, classes[true], classes[taken], sure])
    return wandb.Table(columns=columns, data=data)
