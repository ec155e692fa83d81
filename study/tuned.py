"""The tuned file of each variant: from an advice, or from a search over its preset."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from study.advising.records import ADVICE, ADVICES, load_advice
from study.designs import write_preset
from study.parts import parts_of
from study.plan import STUDIES
from tasks.errors import InputError
from tasks.run.presets import config_stack

SEARCHES = STUDIES.parent / "sweeps"


def tuned_files(task: str, data: str, variants: Sequence[str]) -> dict[str, Path]:
    """Return the tuned file of each variant, by its short name.

    That of an advice comes before those of searches: it tunes all variants with the same budget.

    Raises:
        InputError: A variant has no such file, or several.
    """
    found = {}
    for variant in variants:
        name = Path(variant).stem
        files = list(_of_advices(task, data, name)) or list(_of_searches(task, data, variant))
        if not files:
            raise InputError(
                f"{name} has no tuned file for TASK={task} DATA={data}; make them with make advise "
                f'TASK={task} DATA={data} ARMS="{" ".join(variants)}"'
            )
        if len(files) > 1:
            raise InputError(
                f"{name} has several tuned files: {', '.join(map(str, files))}; list one file of "
                "each variant in VARIANTS instead of --tuned"
            )
        found[name] = files[0]
    return found


def copy_tuned(files: dict[str, Path], task: str, data: str, folder: Path) -> list[str]:
    """Copy tuned files into a study's folder, under the short names of their variants."""
    return [
        str(
            write_preset(
                folder,
                name,
                task,
                yaml.safe_load(config_stack(task, str(file), data)[-1]),
                f"Copy of {file}.",
            )
        )
        for name, file in files.items()
    ]


def _of_advices(task: str, data: str, name: str) -> Iterator[Path]:
    for record in sorted(ADVICES.glob(f"*/{ADVICE}")):
        try:
            advice = load_advice(record.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        asked = advice.question
        if (asked.task, asked.data) != (task, data):
            continue
        chosen = {one.arm for one in advice.tuning if one.chosen is not None}
        file = record.parent / "tuned" / f"{name}.yaml"
        if name in chosen and file.is_file():
            yield file


def _of_searches(task: str, data: str, variant: str) -> Iterator[Path]:
    for record in sorted(SEARCHES.glob("*/trials.json")):
        file = record.parent / "best.yaml"
        try:
            given = json.loads(record.read_text())["given"]
            searched = (given["task"], given["data"], given["reg"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if searched != (task, data, variant) or not file.is_file():
            continue
        # A search over `none` may turn dropout on; then the result is another variant.
        if _kinds(task, data, str(file)) <= _kinds(task, data, variant):
            yield file


def _kinds(task: str, data: str, preset: str) -> set[str]:
    """Return what a preset turns on; the places of dropout count as one."""
    parts = parts_of(yaml.safe_load(config_stack(task, preset, data)[-1]), task)
    return {
        "dropout" if part.section == "reg" and "drop" in part.option else part.option
        for part in parts
    }
