"""From the options of `make study` to the variants of a study."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from study.designs import design_presets, recipe_of
from study.plan import STUDIES, default_name
from study.tuned import copy_tuned, tuned_files
from tasks.run.folder_names import check_folder_name


def plan_variants(options: argparse.Namespace, axes: Iterable[str]) -> dict[str, Any]:
    """Return the variants of a study, its name, and how the variants are made.

    Presets of a design, and copies of tuned files, are written into the study's folder.

    Raises:
        InputError: An option is not valid.
    """
    design, name = options.design, options.name
    recipe = recipe_of(design, options.reg, "VARIANTS")
    variants = options.variants.split()
    if not design and not options.tuned:
        return {"variants": variants, "name": name}
    files = {}
    if options.tuned:
        files = tuned_files(options.task, options.data, [recipe] if design else variants)
    if not name:
        further = [design, Path(recipe).stem] if design else []
        further += ["tuned"] if options.tuned else []
        name = default_name(options.task, options.data, [*further, *axes])
    check_folder_name(name, "NAME")
    folder = STUDIES / name
    if design:
        short = Path(recipe).stem
        reg = str(files.get(short, recipe))
        variants = design_presets(design, options.task, options.data, reg, folder, short)
    else:
        variants = copy_tuned(files, options.task, options.data, folder)
    return {
        "variants": variants,
        "name": name,
        "design": design,
        "recipe": recipe,
        "sources": {title: str(file) for title, file in files.items()},
    }
