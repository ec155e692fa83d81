"""`advice.html`: the page of an advice, self-contained, opens from disk."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import study.charts
from study.advising import charts, page_tables
from study.advising.charts import ForestRow
from study.advising.commands import advise_command
from study.advising.design_page import design_study
from study.advising.records import Advice, Contrast
from study.chart_style import colour
from study.gain_table import GainTable, gain_tables
from study.page import PAGE_FILE as STUDY_PAGE
from study.page import page_figures, provenance, templates, write_file
from study.page_charts import epochs
from study.plan import load_study
from study.results import Collection, collect
from tasks.data.sources import source_label
from tasks.lookup import task_label
from tasks.run.plain_text import without_folders

PAGE_FILE = "advice.html"
CONFIRM = "confirm"


@dataclass(frozen=True)
class Confirmed:
    """The runs of the confirmation.

    Args:
        collection: All of them.
        table: Gains of the tuned arms; None if no run of the baseline is complete.
    """

    collection: Collection
    table: GainTable | None


def read_confirmed(advice: Advice, folder: Path) -> Confirmed | None:
    """Read the runs of the confirmation; None if it has not begun."""
    if not (folder / CONFIRM / "study.yaml").is_file():
        return None
    collection = collect(load_study(folder / CONFIRM))
    tables = gain_tables(collection)
    if not tables:
        return Confirmed(collection, None)
    table = tables[0]
    # In the order of the tuning; the baseline is the first one in both.
    kept = [table.labels.index(arm.arm) for arm in advice.tuning if arm.arm in table.labels]
    return Confirmed(
        collection,
        replace(
            table,
            arms=[table.arms[index] for index in kept],
            results=[table.results[index] for index in kept],
            comparisons=[table.comparisons[index] for index in kept],
        ),
    )


def forest_rows(
    advice: Advice, contrasts: Sequence[Contrast], table: GainTable | None
) -> list[ForestRow]:
    """Make the rows of the forest plot of a look."""
    arms = [arm.arm for arm in advice.tuning]
    primary = advice.confirmation.primary if advice.confirmation else ""
    found = []
    for one in contrasts:
        pairs: dict[int, float] = {}
        collapsed: list[int] = []
        if table is not None and one.arm in table.labels:
            results, baseline = table.results[table.labels.index(one.arm)], table.results[0]
            both = sorted(set(results) & set(baseline))
            pairs = {seed: results[seed].accuracy - baseline[seed].accuracy for seed in both}
            collapsed = [s for s in both if results[s].at_chance or baseline[s].at_chance]
        place = arms.index(one.arm)
        found.append(ForestRow(one.arm, one.arm, place, one, pairs, collapsed, one.arm == primary))
    return found


def contrasts_of(advice: Advice) -> list[Contrast]:
    """Return the contrasts of the last look; none before the first look."""
    looks = advice.confirmation.looks if advice.confirmation else []
    return looks[-1].contrasts if looks else []


def _part_rows(advice: Advice) -> list[ForestRow]:
    confirmation = advice.confirmation
    if confirmation is None:
        return []
    arms = [arm.arm for arm in advice.tuning]
    found = [*confirmation.parts, *([confirmation.half_data] if confirmation.half_data else [])]
    return [
        ForestRow(one.against.removeprefix(f"{one.arm} "), one.arm, arms.index(one.arm), one)
        for one in found
    ]


def figures_of(advice: Advice, confirmed: Confirmed | None) -> dict[str, Any]:
    """Draw all charts of an advice, by the id of their element."""
    figures: dict[str, Any] = {}
    arms = [arm.arm for arm in advice.tuning]
    confirmation = advice.confirmation
    table = confirmed.table if confirmed else None
    if confirmation and (contrasts := contrasts_of(advice)):
        figures["gains"] = charts.forest(forest_rows(advice, contrasts, table), "gain, points")
        if any(one.low is not None for look in confirmation.looks for one in look.contrasts):
            figures["looks"] = charts.narrowing(confirmation.looks, arms, advice.question.precision)
    for index, key in enumerate(charts.parameters_of(advice.tuning)):
        figures[f"response-{index}"] = charts.response(key, advice.tuning)
    if any(charts.eligible_accuracies(arm, i) for i, arm in enumerate(advice.tuning)):
        figures["budget"] = charts.budget(advice.tuning)
    if any(charts.repeated(arm) for arm in advice.tuning):
        figures["finalists"] = charts.finalists(advice.tuning)
    if parts := _part_rows(advice):
        figures["parts"] = charts.forest(parts, "gain, points")
    if table is not None:
        if epochs(table) > 1:
            figures["gaps"] = charts.recoloured(study.charts.gaps(table), arms)
        figures["reliability"] = charts.recoloured(study.charts.reliability(table), arms)
    return figures


def _alternatives(advice: Advice) -> dict[str, str]:
    """Return the text that stands for a chart, where its table is not beside it."""
    confirmation = advice.confirmation
    found = {}
    if confirmation and confirmation.looks:
        last = confirmation.looks[-1]
        found["gains"] = "; ".join(
            f"{one.arm} {page_tables.points(one.gain)} ({page_tables.interval(one)})"
            for one in last.contrasts
        )
        found["looks"] = "; ".join(
            f"{look.seeds} pairs: "
            + ", ".join(
                f"{one.arm} ± {50 * (one.high - one.low):.2f}"
                for one in look.contrasts
                if one.low is not None and one.high is not None
            )
            for look in confirmation.looks
        )
    return found


def _phase(advice: Advice, confirmed: Confirmed | None) -> str:
    """Describe how far the advice is."""
    trials = sum(1 for arm in advice.tuning for one in arm.trials if one.results or one.error)
    text = f"Tuning: {trials} trials of {len(advice.question.arms)} arms have ended."
    if advice.confirmation is not None:
        done = confirmed.collection.done if confirmed else 0
        looks = advice.confirmation.looks
        pairs = looks[-1].seeds if looks else 0
        most = max(advice.confirmation.planned, default=0)
        text += f" Confirmation: {done} runs have ended; {pairs} of {most} planned pairs analysed."
    return text


STOPPED = {
    "precision": "every interval is as narrow as asked",
    "budget": "the next round would not have ended within the budget",
    "planned": "all planned pairs were run",
}


def _method(advice: Advice, confirmed: Confirmed | None) -> dict[str, str]:
    """Describe how the advice was made."""
    question, confirmation = advice.question, advice.confirmation
    further = sorted(
        {
            seed
            for arm in advice.tuning
            for one in arm.trials
            for seed in one.results
            if seed != arm.first_seed
        }
    )
    first = sorted({arm.first_seed for arm in advice.tuning})
    made = {
        "question": f"{task_label(question.task)} on {source_label(question.data)}: "
        f"{', '.join(question.arms)}; the first one is the baseline",
        "command": without_folders(advise_command(question)),
        "time": f"{advice.seconds / 60:.1f} of {question.budget / 60:.1f} minutes",
        "chosen on validation": "learning rate, length of training and the parameters of "
        "each arm, with the same number of trials for every arm",
        "seeds of tuning": f"{_listed(first)} for every trial"
        + (f", {_listed(further)} for the finalists" if further else ""),
    }
    if confirmation is not None:
        made["primary contrast"] = (
            f"{confirmation.primary} against {confirmation.baseline}, fixed before the first run"
        )
        made["planned looks"] = f"after {_listed(confirmation.planned)} pairs"
        if confirmation.stopped:
            made["stopped because"] = STOPPED.get(confirmation.stopped, confirmation.stopped)
        if confirmation.looks:
            last = confirmation.looks[-1]
            made["error probability spent"] = (
                f"{last.alpha_spent:.3f} after {last.seeds} pairs (critical value "
                f"{last.critical:.2f})"
            )
    if confirmed is not None:
        made["seeds of confirmation"] = _listed(confirmed.collection.study.seeds)
        made["test split"] = (
            f"read once in each of the {confirmed.collection.done} runs of the confirmation, and "
            "in no run of the tuning"
        )
        if confirmed.collection.done:
            facts = provenance(confirmed.collection)
            made |= {key: facts[key] for key in ("machine", "versions", "commit")}
    return made


def _listed(numbers: Sequence[int]) -> str:
    """List numbers; those without a gap as a range."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def write_page(advice: Advice, folder: Path, under_way: bool) -> None:
    """Write the page of an advice.

    Args:
        advice: What is known.
        folder: Folder of the advice.
        under_way: The advice is running: the page reloads itself.
    """
    confirmed = read_confirmed(advice, folder)
    figures = figures_of(advice, confirmed)
    parts = _part_rows(advice)
    collections = [confirmed.collection] if confirmed else []
    collections += [
        collect(load_study(folder / name))
        for name in list(page_tables.PHASES)[1:]
        if (folder / name / "study.yaml").is_file()
    ]
    errors = {name: text for one in collections for name, text in one.errors.items()}
    table = confirmed.table if confirmed else None
    recommendation, confirmation = advice.recommendation, advice.confirmation
    preset = Path(recommendation.file) if recommendation else None
    looks = confirmation.looks if confirmation else []
    question = advice.question
    # The first one is the baseline.
    names = [Path(arm).stem for arm in question.arms]
    content: dict[str, Any] = {
        "name": f"advice {question.name}",
        "facts": f"{task_label(question.task)} on {source_label(question.data)}; "
        f"arms: {', '.join(names)}",
        "under_way": under_way,
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "phase": _phase(advice, confirmed),
        "minutes": f"{advice.seconds / 60:.0f} of {question.budget / 60:.0f} minutes",
        "share": min(1.0, advice.seconds / question.budget),
        "recommendation": recommendation,
        "command": without_folders(recommendation.command) if recommendation else "",
        "again": without_folders(advise_command(question)),
        "preset": preset.read_text() if preset is not None and preset.is_file() else "",
        "preset_link": quote(preset.name) if preset is not None else "",
        "gain_columns": page_tables.GAIN_COLUMNS,
        "gains": page_tables.gain_rows(
            contrasts_of(advice), confirmation.primary if confirmation else ""
        ),
        "change_columns": page_tables.CHANGE_COLUMNS,
        "design_page": f"{CONFIRM}/{STUDY_PAGE}"
        if not under_way and design_study(advice, folder)
        else "",
        "changes": page_tables.change_rows(table) if table else [],
        "baseline": names[0],
        "looks": looks,
        "precision": question.precision,
        "responses": {
            f"response-{index}": key.removeprefix("model.")
            for index, key in enumerate(charts.parameters_of(advice.tuning))
        },
        "tuning_columns": page_tables.TUNING_COLUMNS,
        "tuning": page_tables.tuning_rows(advice.tuning),
        "trial_tables": page_tables.trial_tables(advice.tuning),
        "finalist_columns": page_tables.FINALIST_COLUMNS,
        "finalists": page_tables.finalist_rows(advice.tuning),
        "regression": page_tables.points(page_tables.regression(advice.tuning)),
        "part_columns": page_tables.PART_COLUMNS,
        "parts": page_tables.part_rows(
            [row.label for row in parts], [row.contrast for row in parts]
        ),
        "level_columns": page_tables.LEVEL_COLUMNS,
        "levels": page_tables.level_rows(table) if table else [],
        "cost_columns": page_tables.COST_COLUMNS,
        "costs": page_tables.cost_rows(advice.tuning, collections),
        "failures": page_tables.failures(advice, errors),
        "made": _method(advice, confirmed),
        "alternatives": _alternatives(advice),
        "chips": [
            {"label": arm.arm, "colour": colour(index)} for index, arm in enumerate(advice.tuning)
        ],
        "figures": page_figures(figures),
    }
    write_file(folder / PAGE_FILE, templates().get_template("advice.html").render(content))
