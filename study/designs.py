"""The presets of a study design, written into the study's folder.

A study compares variants with the first of them. Three designs make these variants from one recipe:
`ablation`, the recipe and it without each of its parts; `kinds`, it without each kind of
regularizer; and `factorial`, dropout and normalization together, each alone, and neither. `--tuned`
copies the tuned file of each variant.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from regain.registry import unknown
from study.parts import Part, parts_of, without
from study.preset_text import section_text
from tasks.errors import InputError
from tasks.run.presets import config_stack
from tasks.run.yaml_files import read_yaml_file

ABLATION, KINDS, FACTORIAL = "ablation", "kinds", "factorial"
DESIGNS = (ABLATION, KINDS, FACTORIAL)
# The recipe of each design, if none is given.
RECIPES = {ABLATION: "full", KINDS: "full", FACTORIAL: "both"}
# Designs whose first variant is the recipe, and whose other ones lack something of it.
LACKING = (ABLATION, KINDS)
# Folder of the presets, in that of the study.
PRESETS = "presets"
# Short name of a variant without a part: this and the part's name.
WITHOUT = "without-"
# Short name of the variant without any part.
NONE = "none"
# The factors of a factorial design, which are the variants with one of them.
DROPOUT, NORMALIZATION, BOTH = "dropout", "normalization", "both"
# All augmentations are one kind of regularizer.
AUGMENTATION = "augmentation"
WITHOUT_BOTH = f"{WITHOUT}{DROPOUT}-and-{NORMALIZATION}"
RATE = "model.optim.lr"


def recipe_of(design: str, reg: str, instead: str) -> str:
    """Return the recipe of a design; empty without a design.

    Args:
        design: Name of the design; empty for none.
        reg: The recipe that was asked for; empty for the default.
        instead: The variable that lists presets without a design.

    Raises:
        InputError: There is no such design, or a recipe is given without a design.
    """
    if design and design not in DESIGNS:
        raise InputError(unknown("DESIGN", design, list(DESIGNS)))
    if reg and not design:
        raise InputError(
            f"REG={reg} is the recipe of a design; set DESIGN={ABLATION}, or list presets in "
            f"{instead}"
        )
    return (reg or RECIPES[design]) if design else ""


def design_presets(
    design: str, task: str, data: str, reg: str, folder: Path, recipe: str = ""
) -> list[str]:
    """Write the presets of a design and return their files; the first one is the baseline.

    Args:
        design: `ablation`, `kinds` or `factorial`.
        task: A task, as `find_task` takes it.
        data: A data source.
        reg: The recipe: a preset or its file.
        folder: The study's folder.
        recipe: Short name of the recipe; default: that of the preset.

    Raises:
        InputError: The recipe lacks parts, or the study has other presets.
    """
    recipe = recipe or Path(reg).stem
    config: dict[str, Any] = yaml.safe_load(config_stack(task, reg, data)[-1])
    parts = parts_of(config, task)
    removed = {ABLATION: _ablation, KINDS: _by_kind, FACTORIAL: _factorial}[design](
        reg, recipe, parts
    )
    files = []
    for name, lacking in removed.items():
        left = config
        for part in lacking:
            left = without(left, part)
        comment = f"{recipe} without {', '.join(part.name for part in lacking)}."
        if any(part.option == NORMALIZATION for part in lacking):
            left, note = _without_rate(left, task, data, reg, folder)
            comment += note
        files.append(write_preset(folder, name, task, left, comment if lacking else f"{reg}."))
    return [str(file) for file in files]


def _ablation(reg: str, recipe: str, parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Return the parts that each variant lacks, by its short name."""
    return _leaving_out(reg, recipe, {part.name: [part] for part in parts})


def _by_kind(reg: str, recipe: str, parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Return the parts that each variant lacks, by its short name.

    With dropout and a norm among them, the recipe without either of them completes a factorial.
    """
    kinds = _kinds(parts)
    found = _leaving_out(reg, recipe, kinds)
    # Without a third kind, this variant is `none`.
    if {DROPOUT, NORMALIZATION} < set(kinds):
        found[WITHOUT_BOTH] = kinds[DROPOUT] + kinds[NORMALIZATION]
    return found


def _kinds(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Group parts by the kind of regularizer; a part of no such kind is one by itself."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        kind = part.name
        if part.section == "augment":
            kind = AUGMENTATION
        elif "drop" in part.option:
            # A schedule of the rates and R-Drop are nothing without dropout.
            kind = DROPOUT
        found.setdefault(kind, []).append(part)
    return found


def _leaving_out(reg: str, recipe: str, kinds: Mapping[str, list[Part]]) -> dict[str, list[Part]]:
    """Return the parts that each variant lacks, by its short name: each kind, and all of them."""
    if not kinds:
        raise InputError(
            f"REG={reg} turns on no regularizer, so that no part can be removed; choose a recipe "
            "such as full"
        )
    if recipe == NONE:
        raise InputError(f"REG={reg}: a recipe cannot be named {NONE}; rename its file")
    found: dict[str, list[Part]] = {recipe: []}
    found |= {f"{WITHOUT}{kind}": parts for kind, parts in kinds.items()}
    # With a single kind, this would be the same as the variant without it.
    return found if len(kinds) == 1 else found | {NONE: list(chain(*kinds.values()))}


def _factorial(reg: str, recipe: str, parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Return the parts that each variant lacks, by its short name.

    The rates of dropout are those of the recipe with and without a norm: otherwise, the interaction
    would be one of rates too. What else the recipe has is in all four variants.
    """
    kinds = _kinds(parts)
    dropout, norm = kinds.get(DROPOUT, []), kinds.get(NORMALIZATION, [])
    if not norm or not any(part.section == "reg" for part in dropout):
        raise InputError(
            f"REG={reg} has no {DROPOUT if norm else NORMALIZATION}: DESIGN={FACTORIAL} "
            "needs a recipe with both; choose both or full"
        )
    return {NONE: [*dropout, *norm], DROPOUT: norm, NORMALIZATION: dropout, BOTH: []}


def _without_rate(
    config: dict[str, Any], task: str, data: str, reg: str, folder: Path
) -> tuple[dict[str, Any], str]:
    """Remove a recipe's learning rate, which belongs to its norm, if there is one without a norm.

    Returns:
        The preset, and a note for its comment.
    """
    rate = config.get("model", {}).get("optim", {}).get("lr")
    if rate is None:
        return config, ""
    # What is below the preset differs if the task or the data have another rate without a norm.
    trial = folder / PRESETS / ".trial.yaml"
    trial.parent.mkdir(parents=True, exist_ok=True)
    trial.write_text(section_text(task, config, ["A trial."]))
    try:
        same = config_stack(task, str(trial), data)[:-1] == config_stack(task, reg, data)[:-1]
    finally:
        trial.unlink()
    if same:
        return config, ""
    return without(config, Part("lr", (RATE,))), (
        f" The rate {rate} belongs to the norm; without it, that of the task and the data applies."
    )


def write_preset(
    folder: Path, name: str, task: str, config: Mapping[str, Any], comment: str
) -> Path:
    """Write a preset into a study's folder, unless it is there.

    Args:
        folder: The study's folder.
        name: Short name of the variant.
        task: A task, as `find_task` takes it.
        config: Section of the preset.
        comment: Line at its top.

    Raises:
        InputError: The study has another preset of this name: the one it is made from has changed.
    """
    file = folder / PRESETS / f"{name}.yaml"
    text = section_text(task, config, [comment])
    if file.exists():
        if read_yaml_file(file) != yaml.safe_load(text):
            raise InputError(
                f"{file}, which the study uses, differs from the preset that it is made from now; "
                "choose another NAME"
            )
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)
    return file
