"""Run a study: `python -m study.run --task speech --variants "none dropout batchnorm both"`.

Started again after an interruption, it does only what is missing.
"""

import argparse
import contextlib
import functools
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from study.launch import Job, Launcher, Local, end_on_sigterm, gpus_here, jobs_at_a_time
from study.plan import Study, load_study, seconds_a_run
from study.report import write_report
from study.results import Collection, collect
from study.tables import COLUMNS, Table, rows, tables, verdict
from tasks.errors import InputError

# Columns for the terminal, the most important first: as many as fit. Seven or eight do in 80.
RANKED = [
    *("variant", "gain", "95 % interval", "test %", "p (Holm)", "seeds", "last epoch", "NLL"),
    *("gap", "calibration", "and test examples", "steps", "step time", "memory"),
]
HEADINGS = {"last epoch": "last"}
# Times a second that the line with the time that is left is written anew.
REFRESH = 1
LAUNCHERS = ["local", "ray", "slurm"]


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split off what is the study's own; all else is for every run's training."""
    parser = argparse.ArgumentParser(prog="python -m study.run", allow_abbrev=False)
    parser.add_argument("--task", required=True, help="vision, speech or nlp")
    parser.add_argument("--data", default="builtin", help="builtin, a name, a path or a hub id")
    parser.add_argument(
        "--variants", default="none dropout batchnorm both", help="presets; the first is compared"
    )
    parser.add_argument("--seeds", default="5", help="how many, or which: 0,1,2")
    parser.add_argument("--axis", action="append", default=[], help="KEY=VALUE,VALUE; repeatable")
    parser.add_argument("--entity", help="W&B team or user of the report; default your own")
    parser.add_argument("--name", default="", help="of the study; default TASK-DATA")
    parser.add_argument("--jobs", default="auto", help="runs at a time: auto, or a number")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--launcher", default="local", choices=LAUNCHERS)
    parser.add_argument(
        "--launcher_option",
        action="append",
        default=[],
        help="KEY=VALUE for Ray's init or submitit's executor; repeatable",
    )
    return parser.parse_known_args(arguments)


def planned(options: argparse.Namespace, arguments: list[str]) -> Study:
    """Make the study that the command line asks for.

    Raises:
        InputError: Something that was given cannot be used.
    """
    return Study(
        task=options.task,
        data=options.data,
        variants=options.variants.split(),
        seeds=_seeds(options.seeds),
        axes={key: values.split(",") for key, values in _pairs("axis", options.axis).items()},
        arguments=arguments,
        name=options.name,
    )


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or text == "0":
        raise InputError(f"SEEDS={text} is neither a number of seeds nor a list such as 0,1,2")
    return list(range(int(text))) if len(parts) == 1 else [int(part) for part in parts]


def _pairs(name: str, texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (key, _, value) in zip(texts, pairs, strict=True):
        if not key or not value:
            raise InputError(f"--{name} {text} is not of the form KEY=VALUE")
    return {key: value for key, _, value in pairs}


def launcher(options: argparse.Namespace, study: Study) -> Launcher:
    """Choose what carries the runs out.

    Raises:
        InputError: It is not installed, or there is none to talk to.
    """
    extra = _pairs("launcher_option", options.launcher_option)
    if options.launcher == "local":
        return Local(jobs_at_a_time(options.jobs, options.threads))
    from study import cluster

    if options.launcher == "ray":
        return cluster.Ray(extra)
    return cluster.Slurm(study.folder / "slurm", options.jobs, extra)


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> duration(50), duration(200), duration(9000)
        ('50 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Progress:
    """Shows how far a study is, with the table so far; lines where there is no terminal.

    The tables change when a run ends, and are computed only then: between two runs the display
    must leave the cores to the runs.

    Args:
        study: The study.
        total: Number of its runs.
        parallel: Number of runs at a time.
        console: Where to show it.
    """

    def __init__(self, study: Study, total: int, parallel: int, console: Console) -> None:
        self.study = study
        self.total = total
        self.parallel = parallel
        self.console = console
        self.began = time.monotonic()
        self.ended = 0
        self.live: Live | None = None
        self.collection = collect(study)
        self.before = self.collection.done
        self.pictures = self._drawn_tables() if console.is_terminal else []

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the display up for as long as runs are under way."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, get_renderable=self.picture, refresh_per_second=REFRESH
        ) as self.live:
            yield

    def update(self, job: Job) -> None:
        """Show that a run has ended."""
        self.ended += 1
        self.collection = collect(self.study, self.collection)
        if self.live is not None:
            self.pictures = self._drawn_tables()
        else:
            self.console.print(Text(self.line(job)), soft_wrap=True)

    def line(self, job: Job) -> str:
        """Say how a run ended, and what is left."""
        outcome = self.collection.errors.get(job.name)
        if outcome is None:
            outcome = "done"
            for arm, seeds in self.collection.results.items():
                for seed, result in seeds.items():
                    if self.study.run_folder(arm, seed).name == job.name:
                        outcome = f"{100 * result.accuracy:.2f} %"
                        outcome += ", training never left chance" if result.at_chance else ""
        else:
            outcome = f"failed: {outcome}"
        return f"[{self.collection.done}/{self.total}] {job.name}: {outcome}{self.left()}"

    def left(self) -> str:
        """Estimate the time that is left from that which has passed."""
        missing = self.total - self.before - self.ended
        if not self.ended or missing <= 0:
            return ""
        passed = time.monotonic() - self.began
        return f"  (about {duration(passed / self.ended * missing)} left)"

    def picture(self) -> Group:
        """Draw the state of things."""
        failed = len(self.collection.errors)
        state = f"{self.collection.done} of {self.total} runs done"
        state += f", {failed} failed" if failed else ""
        running = min(self.parallel, self.total - self.before - self.ended)
        state += f", {running} under way{self.left()}"
        return Group(Text(state), *self.pictures)

    def _drawn_tables(self) -> list[RichTable]:
        return [drawn(table, self.console.width) for table in tables(self.collection)]


def drawn(table: Table, width: int) -> RichTable:
    """Draw a gain table for a terminal, with the columns that fit into its width."""
    written = rows(table, short=True)
    widths = {
        column: max(len(HEADINGS.get(column, column)), *(len(cells[place]) for cells in written))
        for place, column in enumerate(COLUMNS)
    }
    chosen: list[str] = []
    for column in RANKED:
        # A space between two columns.
        if sum(widths[one] + 1 for one in chosen) + widths[column] > width:
            break
        chosen.append(column)
    picture = RichTable(
        # Names from outside are no markup.
        title=Text(table.title) if table.title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    places = [place for place, column in enumerate(COLUMNS) if column in (chosen or RANKED[:1])]
    for place in places:
        justify: Any = "left" if COLUMNS[place] == "variant" else "right"
        heading = HEADINGS.get(COLUMNS[place], COLUMNS[place])
        picture.add_column(heading, justify=justify, no_wrap=True)
    for cells in written:
        picture.add_row(*(Text(cells[place]) for place in places))
    return picture


def show_plan(study: Study, missing: int, total: int, parallel: int, console: Console) -> None:
    """Say what will be run, and how long that takes."""
    what = f"{len(study.variants)} variants x {len(study.seeds)} seeds"
    for key, values in study.axes.items():
        what += f" x {len(values)} values of {key}"
    console.print(Text(f"study {study.name}: {what} = {total} runs"), soft_wrap=True)
    if not missing:
        console.print("all of them are done")
        return
    known = seconds_a_run(study)
    estimate = "the time is known when the first one is done"
    if known:
        estimate = f"about {duration(known[0] * missing / parallel)}, from {known[1]}"
    console.print(
        Text(f"{total - missing} are done, {missing} to do, {parallel} at a time: {estimate}"),
        soft_wrap=True,
    )


def run(options: argparse.Namespace, arguments: list[str], console: Console) -> Collection:
    """Do all runs that are missing and write the report.

    Raises:
        InputError: Something that was given cannot be used.
    """
    say = functools.partial(
        console.print, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    asked = planned(options, arguments)
    asked.save()
    jobs = asked.jobs(options.threads, gpus=1 if gpus_here() else 0)
    missing = [job for job in jobs if not job.done]
    how = launcher(options, asked)
    parallel = min(getattr(how, "at_a_time", len(jobs)), len(jobs))
    show_plan(asked, len(missing), len(jobs), parallel, console)
    progress = Progress(asked, len(jobs), parallel, console)
    with progress.shown():
        for job in how.run(missing):
            progress.update(job)
    # The whole study, with what earlier calls have added to it.
    whole = load_study(asked.folder)
    collection = collect(whole)
    for table in tables(collection):
        console.print(drawn(table, console.width))
        say(verdict(table))
    if collection.done:
        write_report(collection, options.entity, say)
    return collection


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; 1 if a run failed, 2 for an error that the user can mend."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    end_on_sigterm()
    try:
        collection = run(*parse(arguments), Console())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)
    for name, reason in collection.errors.items():
        print(f"failed: {collection.study.folder / name}: {reason}", file=sys.stderr)
    if collection.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
