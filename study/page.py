"""`study.html`: the page of a study, self-contained, opens from disk."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from study.chart_style import colour, dark_partners
from study.factorial import COLUMNS, effects
from study.gain_table import GainTable, rows
from study.launch import ERROR, RESULTS
from study.mistake_cards import mistakes_of
from study.next_steps import note, steps_after
from study.page_charts import best_index, figures_of
from study.results import Collection
from study.verdict import verdict
from tasks.data.sources import source_label
from tasks.errors import InputError
from tasks.lookup import task_label
from tasks.run.plain_text import without_folders

PAGE = Path(__file__).parent / "page"
PAGE_FILE = "study.html"
# Keys that differ in every run, not between variants.
IGNORED_KEYS = ("seed_everything", "data.seed", "trainer.logger.", "trainer.default_root_dir")
# From this number on, confusion matrices are printed below each other.
MANY_CLASSES = 16
SPLITS = ("train", "validation", "test")
VERSIONS = ("python", "torch", "lightning", "torchvision", "torchaudio", "transformers", "wandb")


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration: keys such as `model.reg.dropout`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat_config(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(table: GainTable) -> list[list[str]]:
    """List the configuration keys that differ between arms, with their values."""
    configs = [
        flat_config(next(iter(results.values())).record["config"]) for results in table.results
    ]
    keys = [key for key in configs[0] if not key.startswith(IGNORED_KEYS)]
    return [
        [key, *(str(config.get(key, "")) for config in configs)]
        for key in keys
        if len({str(config.get(key)) for config in configs}) > 1
    ]


def provenance(collection: Collection) -> dict[str, str]:
    """Return the command, machine, versions and commits of the runs."""
    records = [r.record for seeds in collection.results.values() for r in seeds.values()]
    machine, versions = records[0]["machine"], records[0]["versions"]
    return {
        "command": study_command(collection),
        "runs": str(len(records)),
        "commit": ", ".join(sorted({str(record["git_commit"]) for record in records})),
        "machine": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads per run",
        "versions": ", ".join(f"{name} {versions[name]}" for name in VERSIONS),
        "hours of training": f"{sum(r['seconds']['all'] for r in records) / 3600:.2f}",
    }


def progress_of(collection: Collection) -> dict[str, Any] | None:
    """Describe the missing and the failed runs of a study; None if it is complete."""
    study = collection.study
    missing = study.size - collection.done
    if not missing:
        return None
    failed = [
        {"name": name, "reason": without_folders(reason), "link": quote(f"{name}/{ERROR}")}
        for name, reason in collection.errors.items()
    ]
    text = f"Missing: {missing} of {study.size} runs"
    text += f", {len(failed)} of them failed." if failed else "."
    return {"done": collection.done, "size": study.size, "text": text, "failed": failed}


def runs_of(collection: Collection) -> list[dict[str, Any]]:
    """List the runs: one row per arm, one cell per seed, with a link if the run has ended."""
    study, listed = collection.study, []
    for arm in study.arms():
        cells = []
        for seed in study.seeds:
            name = study.run_folder(arm, seed).name
            result = collection.results[arm].get(seed)
            if result is not None:
                cells.append((f"{100 * result.accuracy:.2f}", quote(f"{name}/{RESULTS}")))
            elif name in collection.errors:
                cells.append(("failed", quote(f"{name}/{ERROR}")))
            else:
                cells.append(("missing", ""))
        point = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in arm.point)
        listed.append({"name": f"{arm.title} {point}".strip(), "cells": cells})
    return listed


def next_steps(
    collection: Collection, tables: Sequence[GainTable], under_way: bool
) -> dict[str, Any]:
    """List the next steps and the command for them; with axes, only the first of each point."""
    study = collection.study
    made = [(table.title, steps_after(table)) for table in tables]
    first = []
    if under_way:
        first = ["Wait for the other runs: this is the state so far."]
    elif collection.done < study.size:
        first = [f"Start the study again: {study.size - collection.done} runs are missing."]
    seeds = [advice.seeds for _, advice in made if advice.seeds is not None]
    command = ""
    if collection.done < study.size:
        command = study_command(collection, len(study.seeds))
    elif len(study.variants) == 1 and not study.axes:
        command = study_command(collection, max(len(study.seeds), 3), [*study.variants, "dropout"])
    elif seeds:
        command = study_command(collection, min(seeds))
    if len(made) > 1:
        steps = [*first, *(f"{title}: {one.steps[0]}" for title, one in made)]
    else:
        steps = [*first, *made[0][1].steps]
    return {"steps": steps, "command": "" if under_way else command}


def study_command(
    collection: Collection, seeds: int | None = None, variants: Sequence[str] = ()
) -> str:
    """Return the command of a study, with other seeds or variants if given."""
    study = collection.study
    listed = ",".join(map(str, study.seeds))
    if seeds is not None and study.seeds == list(range(len(study.seeds))):
        listed = str(seeds)
    elif study.seeds == [0]:
        # A single number is read as the number of seeds.
        listed = "1"
    # The files of a design and copies of tuned ones are made again.
    named = list(variants or study.variants)
    if study.sources:
        named = [Path(variant).stem for variant in named]
    what = f'VARIANTS="{" ".join(named)}"'
    # The variants of an advice with a design are tuned files, which are not made again.
    if study.recipe:
        what = f"DESIGN={study.design} REG={study.recipe}"
    command = f"make study TASK={study.task} DATA={study.data} {what} "
    command += f"SEEDS={listed} NAME={study.name}"
    command += f" EFFECT={study.effect:g}" if study.effect else ""
    further = [f"--axis {key}={','.join(values)}" for key, values in study.axes.items()]
    further += ["--tuned"] if study.sources else []
    further += study.arguments
    if further:
        command += f' ARGS="{" ".join(further)}"'
    return without_folders(command)


def templates() -> jinja2.Environment:
    """Return the templates of all pages, with the styles and scripts that they share."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True
    )
    made.globals |= {
        "css": Markup((PAGE / "study.css").read_text()),
        "js": Markup((PAGE / "study.js").read_text()),
        "dark": Markup(json.dumps(dark_partners())),
        "plotly": Markup(get_plotlyjs()),
    }
    return made


def page_figures(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each figure's content, height in pixels and `meta`, for a template."""
    return {
        name: {
            "content": script_safe(figure),
            "height": figure.layout.height,
            "meta": figure.layout.meta,
        }
        for name, figure in figures.items()
    }


def script_safe(figure: Any) -> Markup:
    """Return a chart as JSON for a script element: a class name could contain `</script>`."""
    return Markup(json.dumps(json.loads(figure.to_json())).replace("<", "\\u003c"))


def write_file(file: Path, content: str) -> None:
    """Write a page at once: a browser may read it meanwhile."""
    partial = file.with_suffix(".partial")
    partial.write_text(content)
    partial.replace(file)


def write_page(
    collection: Collection, tables: Sequence[GainTable], file: Path, under_way: bool = False
) -> None:
    """Write the page of a study.

    Args:
        collection: The study's runs.
        tables: Their gain tables. With axes, charts of single runs show the last one.
        file: Where to write it.
        under_way: The study is running: the page reloads itself, may be without results, and has
            no test examples, which take long to load.

    Raises:
        InputError: The baseline has no complete run, and the study is not under way.
    """
    study = collection.study
    if not tables and not under_way:
        raise InputError(f"no run of {study.name} is complete yet")
    facts = f"{task_label(study.task)} on {source_label(study.data)}"
    facts += f", {len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    content: dict[str, Any] = {
        "name": f"study {study.name}",
        "facts": facts,
        "under_way": under_way,
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "progress": progress_of(collection),
        "runs": runs_of(collection),
        "run_columns": ["variant", *(f"seed {seed}" for seed in study.seeds)],
        "figures": {},
    }
    if tables:
        content |= _results(collection, tables, under_way)
    write_file(file, templates().get_template("study.html").render(content))


def _results(
    collection: Collection, tables: Sequence[GainTable], under_way: bool
) -> dict[str, Any]:
    table = tables[-1]
    figures = figures_of(tables)
    best = best_index(table)
    sizes = next(iter(table.results[0].values())).record["examples"]
    return {
        "sizes": ", ".join(f"{sizes[split]:,} {split}" for split in SPLITS if split in sizes),
        "axes": ", ".join(collection.study.axes),
        "columns": table.headings,
        "meanings": table.meanings,
        "ablation": table.ablation,
        "effect_columns": COLUMNS,
        "effect": f"{100 * table.effect:g}" if table.effect else "",
        "tables": [
            {
                "title": one.title,
                "verdict": verdict(one),
                "rows": [
                    {"cells": cells, "note": note(comparison)}
                    for cells, comparison in zip(rows(one), one.comparisons, strict=True)
                ],
                "effects": [effect.cells for effect in effects(one)],
                # Those of a single table are on the first screen.
                "steps": steps_after(one).steps if len(tables) > 1 else [],
            }
            for one in tables
        ],
        "next": next_steps(collection, tables, under_way),
        "chips": [
            {"label": label, "subject": subject, "colour": colour(index)}
            for index, (label, subject) in enumerate(zip(table.labels, table.subjects, strict=True))
        ],
        "best": table.labels[best],
        "many_classes": len(figures["confusion-baseline"].data[0].x) > MANY_CLASSES,
        "figures": page_figures(figures),
        "mistakes": mistakes_of(table, best) if best and not under_way else None,
        "differences": [[without_folders(cell) for cell in row] for row in differences(table)],
        "made": provenance(collection),
    }
