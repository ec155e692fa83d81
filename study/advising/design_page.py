"""The page of an advice with a design: what each part contributes, each variant tuned."""

from dataclasses import replace
from pathlib import Path

from study.advising.confirming import FOLDER
from study.advising.records import Advice
from study.designs import LACKING
from study.gain_table import gain_tables
from study.page import PAGE_FILE, write_page
from study.plan import Study, load_study
from study.results import collect


def design_study(advice: Advice, folder: Path) -> Study | None:
    """Return the confirmation as a study of the design.

    Its variants are the tuned arms in the order of the design, and its seeds those that all arms
    have: a round that the budget has ended is not to be continued as a study.

    Args:
        advice: The advice.
        folder: Its folder.

    Returns:
        None without a design, if not all arms were confirmed, or without a complete seed.
    """
    question = advice.question
    if not question.design or not (folder / FOLDER / "study.yaml").is_file():
        return None
    study = load_study(folder / FOLDER)
    files = {Path(file).stem: file for file in study.variants}
    arms = [Path(file).stem for file in question.arms]
    if question.design in LACKING:
        recipe = Path(question.recipe).stem
        arms.sort(key=lambda arm: arm != recipe)
    if set(arms) != set(files):
        return None
    found = collect(study).results.values()
    seeds = [seed for seed in study.seeds if all(seed in results for results in found)]
    if not seeds:
        return None
    variants = [files[arm] for arm in arms]
    return replace(study, design=question.design, variants=variants, seeds=seeds)


def write_design_page(advice: Advice, folder: Path) -> Path | None:
    """Write the study page of the confirmation; return its file, or None if there is no study."""
    study = design_study(advice, folder)
    if study is None:
        return None
    collection, file = collect(study), folder / FOLDER / PAGE_FILE
    write_page(collection, gain_tables(collection), file)
    return file
