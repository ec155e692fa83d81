"""The W&B run of type `report` of an advice: sentence, gains, and the charts of its page."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import wandb

from study import forest
from study.advising import page_tables
from study.advising.charts import ForestRow
from study.advising.page import PAGE_FILE, Confirmed, contrasts_of, figures_of, forest_rows
from study.advising.records import Advice
from study.report_run import ReportRun, preset_of, report_logger
from tasks.run.artifacts import artifact_name
from tasks.run.plain_text import spreadsheet_text

# The charts of the page that W&B shows too, by the key in the report run.
CHARTS = {
    "report/gain": "gains",
    "report/looks": "looks",
    "report/budget": "budget",
    "report/finalists": "finalists",
    "report/parts": "parts",
}


def log_report_run(
    advice: Advice,
    folder: Path,
    confirmed: Confirmed | None,
    entity: str | None,
    chart: Callable[[str], str | None],
) -> ReportRun:
    """Log the report run of an advice, in place of the earlier one.

    Args:
        advice: The advice.
        folder: Its folder.
        confirmed: The runs of its confirmation.
        entity: W&B team or user; None is the default entity.
        chart: Function that maps a team or user to the name of its preset of the forest plot.
    """
    with report_logger(folder, advice.question.name, entity) as logger:
        run = logger.experiment
        preset = preset_of(run, chart)
        if rows := forest_points(advice, confirmed):
            logger.log_media(lambda: forest.forest_media(rows, preset))
        logger.log_media(partial(_media, advice, confirmed))
        if advice.recommendation is not None:
            logger.log_summary({"report/sentence": advice.recommendation.sentence})
            logger.log_summary({"report/arm": advice.recommendation.arm})
        for one in contrasts_of(advice):
            logger.log_summary({f"report/gain/{one.arm}": asdict(one)})
        logger.log_artifact(partial(_artifact, advice, folder))
        return ReportRun(Path(run.dir).parent, run.entity, preset)


def forest_points(advice: Advice, confirmed: Confirmed | None) -> list[list[Any]]:
    """List the points of the forest plot, as `study.forest.forest_rows` does."""
    table = confirmed.table if confirmed else None
    rows = forest_rows(advice, contrasts_of(advice), table)
    return [point for row in rows for point in _points(row)]


def _points(row: ForestRow) -> list[list[Any]]:
    one = row.contrast
    result = "not significant"
    if one.significant:
        result = "better" if one.gain > 0 else "worse"
    title = spreadsheet_text(row.label)
    p = "" if one.p_adjusted is None else f", p = {one.p_adjusted:.2g}"
    gain = page_tables.points(one.gain)
    figures = (
        f"{gain} ({page_tables.interval(one)})" if one.low is not None else f"{gain}, no interval"
    )
    # The chart splits it into three lines.
    name = f"{title}\n{figures}\n{result}{p}"
    detail = f"{title}: {figures} points, {one.seeds} pairs{p}"
    ends = [None if end is None else 100 * end for end in (one.low, one.high)]
    found: list[list[Any]] = [[name, "mean", 100 * one.gain, *ends, None, None, result, detail]]
    for seed, value in row.pairs.items():
        text = f"{title}, seed {seed}: {page_tables.points(value)} points"
        found.append([name, "seed", 100 * value, None, None, None, None, result, text])
    return found


def _media(advice: Advice, confirmed: Confirmed | None) -> dict[str, Any]:
    figures = figures_of(advice, confirmed)
    found: dict[str, Any] = {
        key: wandb.Plotly(figures[name]) for key, name in CHARTS.items() if name in figures
    }
    for key, columns, rows in tables_of(advice):
        found[key] = wandb.Table(columns=list(columns), data=rows)
    return found


def tables_of(advice: Advice) -> list[tuple[str, list[str], Sequence[list[str]]]]:
    """List the tables of the report run: key, columns and rows."""
    gains = page_tables.gain_rows(contrasts_of(advice), "")
    found = [
        ("report/gain_table", page_tables.GAIN_COLUMNS, [row["cells"] for row in gains]),
        ("report/tuning", page_tables.TUNING_COLUMNS, page_tables.tuning_rows(advice.tuning)),
    ]
    return [(key, columns, rows) for key, columns, rows in found if rows]


def _artifact(advice: Advice, folder: Path) -> wandb.Artifact:
    artifact = wandb.Artifact(f"{artifact_name(advice.question.name)}-advice", type="advice")
    files = [folder / PAGE_FILE, folder / "recommended.yaml", *sorted(folder.glob("tuned/*.yaml"))]
    for file in files:
        if file.is_file():
            artifact.add_file(str(file), name=str(file.relative_to(folder)))
    return artifact
