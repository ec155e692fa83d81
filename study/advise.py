"""Advise on a task: `python -m study.advise --task speech --budget 30m`.

Each arm is tuned equally on validation data, then confirmed with fresh seeds. Started again after
an interruption, it runs only what is missing.
"""

import argparse
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from study.advising.budget import seconds_of
from study.advising.confirming import confirm
from study.advising.design_page import write_design_page
from study.advising.display import Display
from study.advising.page import PAGE_FILE, write_page
from study.advising.publish import publish
from study.advising.recommendation import recommend
from study.advising.records import ADVICE, ADVICES, Advice, Question, Recommendation, load_advice
from study.advising.state import store_confirmed_state
from study.advising.tuning import tune
from study.advising.work import Work
from study.designs import NONE, design_presets, recipe_of
from study.launch import jobs_at_a_time
from study.options import add_design_options, training_parser
from study.terminal import restartable
from tasks.data.sources import source_label
from tasks.errors import InputError
from tasks.lookup import find_task, task_label
from tasks.run.folder_names import check_folder_name
from tasks.run.loggers import logger_names

log = logging.getLogger(__name__)

# A page takes a second of computing time, and a browser reloads it every 30 seconds.
SECONDS_PER_PAGE = 15.0


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options; the rest are training arguments of every run."""
    parser = training_parser(
        "study.advise",
        "Tune each arm equally on validation data, confirm it with fresh seeds, and "
        "say which one to use. Further options, such as --data.train_fraction=0.5, are options of "
        "python -m tasks.train for every run.",
    )
    parser.add_argument(
        "--arms",
        default="none dropout batchnorm both",
        help="presets or their files, in quotes; the first is the baseline "
        "[none dropout batchnorm both]",
    )
    add_design_options(parser, "the arms")
    parser.add_argument("--budget", default="30m", help="time for everything: 90s, 30m or 2h [30m]")
    parser.add_argument(
        "--precision",
        default="0.5",
        help="half width of the intervals at which the confirmation stops, in points [0.5]",
    )
    parser.add_argument("--entity", help="W&B team or user of the report [your own]")
    parser.add_argument("--name", default="", help="name of the advice [TASK-DATA]")
    return parser.parse_known_args(arguments)


def question_from_options(options: argparse.Namespace, arguments: list[str]) -> Question:
    """Make the question from the command line.

    Raises:
        InputError: An option is not valid.
    """
    names = ",".join(logger_names(options.logger))
    if options.logger:
        arguments = ["--logger", names, *arguments]
    try:
        precision = float(options.precision)
    except ValueError:
        precision = 0.0
    if not 0 < precision < 100:
        raise InputError(f"PRECISION={options.precision} must be a number of points, such as 0.5")
    find_task(options.task)
    recipe = recipe_of(options.design, options.reg, "ARMS")
    default = [task_label(options.task), Path(source_label(options.data)).stem]
    default += [options.design, Path(recipe).stem] if options.design else []
    name = options.name or "-".join(default)
    check_folder_name(name, "NAME")
    arms = options.arms.split()
    if options.design:
        folder = ADVICES / name
        arms = design_presets(options.design, options.task, options.data, recipe, folder)
        # The baseline comes first; a recipe of one part has no `none`.
        arms.sort(key=lambda file: Path(file).stem != NONE)
        if Path(arms[0]).stem != NONE:
            arms.reverse()
    return Question(
        name,
        options.task,
        options.data,
        arms,
        seconds_of(options.budget),
        precision,
        arguments,
        options.design,
        recipe,
    )


def open_advice(asked: Question, folder: Path) -> Advice:
    """Return what is known about a question, with the new budget and precision.

    Raises:
        InputError: The folder has another question.
    """
    if not (folder / ADVICE).exists():
        return Advice(asked)
    known = load_advice(folder)
    fixed = ("task", "data", "arms", "arguments", "design", "recipe")
    changed = [key for key in fixed if getattr(known.question, key) != getattr(asked, key)]
    if changed:
        raise InputError(
            f"the advice {asked.name} exists with a different {' and '.join(changed)}; "
            "choose another NAME"
        )
    return replace(known, question=asked)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an advice.

    Raises:
        InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder} is in use by another process; wait for its end") from error
        yield


def run(options: argparse.Namespace, arguments: list[str], console: Console) -> Advice:
    """Run what is missing, and print the recommendation.

    Raises:
        InputError: An option is not valid, or trainings fail.
    """
    asked = question_from_options(options, arguments)
    folder = ADVICES / asked.name
    with locked(folder):
        before = open_advice(asked, folder)
        at_a_time = jobs_at_a_time(options.jobs, options.threads)
        spent = before.seconds + seconds_since_start()
        work = Work(asked.budget, at_a_time, options.threads, spent)
        display = Display(work, console)
        with display.live():
            advice = found(before, folder, display)
        store_confirmed_state(advice, folder)
        publish(advice, folder, options.entity, display.say)
        display.say(recommendation_of(advice).sentence)
        for note in recommendation_of(advice).notes:
            display.say(f"  {note}")
        display.say(f"train with it: {recommendation_of(advice).command}")
        display.say(f"page: {folder / PAGE_FILE}")
        if design := write_design_page(advice, folder):
            display.say(f"what each part contributes: {design}")
    return advice


def seconds_since_start() -> float:
    """Return how long this process runs: its imports are part of the budget."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        # Not on Linux. Imports are mostly computing time.
        return time.process_time()
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def found(advice: Advice, folder: Path, display: Display) -> Advice:
    """Tune the arms, confirm them, and recommend one; save and show what has changed.

    Raises:
        InputError: The question is not valid, or trainings fail.
    """
    work = display.work

    def kept(changed: Advice) -> Advice:
        changed = replace(changed, seconds=work.seconds)
        changed.save(folder)
        display.update(changed)
        write_page_if_possible(changed, folder, under_way=changed.recommendation is None)
        return changed

    # Of an earlier start, with a smaller budget.
    advice = replace(advice, recommendation=None)
    display.phase = "tuning on validation data"
    for changed in tune(advice, folder, work, display.say):
        advice = kept(changed)
    display.phase = "confirmation with fresh seeds"
    for changed in confirm(advice, folder, work):
        advice = kept(changed)
    return kept(recommend(advice, folder, work.at_a_time))


def write_page_if_possible(advice: Advice, folder: Path, under_way: bool) -> None:
    """Write the page; while runs are in progress, not often, and an error is a warning."""
    file = folder / PAGE_FILE
    if under_way and file.exists() and time.time() - file.stat().st_mtime < SECONDS_PER_PAGE:
        return
    try:
        write_page(advice, folder, under_way)
    except Exception as error:
        if not under_way:
            raise
        log.warning("the page could not be written (%s)", error)


def recommendation_of(advice: Advice) -> Recommendation:
    """Return the recommendation of a complete advice."""
    assert advice.recommendation is not None
    return advice.recommendation


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user error is one line and exit code 2."""
    with restartable():
        run(*parse(arguments), Console())


if __name__ == "__main__":
    main()
