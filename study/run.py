"""Run a study: `python -m study.run --task speech --variants "none dropout batchnorm both"`.

Started again after an interruption, it runs only what is missing.
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
from rich.table import Table
from rich.text import Text

from study.factorial import COLUMNS as EFFECT_COLUMNS
from study.factorial import effects
from study.gain_table import COLUMNS, GainTable, gain_tables, rows
from study.launch import Job, Launcher, Local, gpus_here, jobs_at_a_time
from study.next_steps import steps_after
from study.options import add_design_options, training_parser
from study.page import PAGE_FILE, write_page
from study.plan import Study, effect_of, estimate_run_seconds, load_study
from study.planning import plan_variants
from study.report import write_report
from study.results import Collection, collect
from study.run_gains import LiveGains
from study.terminal import duration, live_display, restartable
from study.verdict import verdict
from tasks.errors import InputError
from tasks.run.loggers import logger_names

log = logging.getLogger(__name__)

# Columns by priority; the terminal shows as many as fit, seven or eight in 80 characters.
COLUMN_PRIORITY = [
    *("variant", "gain", "95 % interval", "test %", "p (Holm)", "seeds", "last epoch", "NLL"),
    *("gap", "calibration", "incl. test examples", "steps", "step time", "memory"),
]
SHORT_HEADINGS = {"last epoch": "last"}
LAUNCHERS = ["local", "ray", "slurm"]


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options of the study; the rest are training arguments of every run."""
    parser = training_parser(
        "study.run",
        "Train variants over seeds and report the gain of each. Further options, such "
        "as --trainer.max_epochs=40, are options of python -m tasks.train for every run.",
    )
    parser.add_argument(
        "--variants",
        default="none dropout batchnorm both",
        help="presets or their files, in quotes; the first is the baseline "
        "[none dropout batchnorm both]",
    )
    add_design_options(parser, "the variants")
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="use the tuned file of each variant, from make advise or make sweep",
    )
    parser.add_argument(
        "--effect", default="", help="smallest effect of interest, in points: 1.0 [none]"
    )
    parser.add_argument("--seeds", default="5", help="number of seeds, or a list: 0,1,2 [5]")
    parser.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="key and values to compare at; may be repeated",
    )
    parser.add_argument("--entity", help="W&B team or user of the report [your own]")
    parser.add_argument("--name", default="", help="name of the study [TASK-DATA]")
    parser.add_argument(
        "--launcher", default="local", choices=LAUNCHERS, help="where the runs start [local]"
    )
    parser.add_argument(
        "--launcher_option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of ray.init or of submitit's executor; may be repeated",
    )
    return parser.parse_known_args(arguments)


def study_from_options(options: argparse.Namespace, arguments: list[str]) -> Study:
    """Make the study from the command line.

    Raises:
        InputError: An option is not valid.
    """
    if options.logger:
        # Reports an unknown name before anything runs. The page shows the arguments as a command,
        # in which names with spaces between them would be several arguments.
        arguments = ["--logger", ",".join(logger_names(options.logger)), *arguments]
    seeds = _seeds(options.seeds)
    axes = {key: values.split(",") for key, values in _pairs("axis", options.axis).items()}
    planned = plan_variants(options, axes)
    return Study(
        task=options.task,
        data=options.data,
        seeds=seeds,
        axes=axes,
        arguments=arguments,
        effect=effect_of(options.effect),
        **planned,
    )


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or text == "0":
        raise InputError(f"SEEDS={text} must be a number of seeds or a list such as 0,1,2")
    return list(range(int(text))) if len(parts) == 1 else [int(part) for part in parts]


def _pairs(name: str, texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (key, _, value) in zip(texts, pairs, strict=True):
        if not key or not value:
            raise InputError(f"--{name} {text} must have the form KEY=VALUE")
    return {key: value for key, _, value in pairs}


def make_launcher(options: argparse.Namespace, study: Study) -> Launcher:
    """Make the launcher of the runs.

    Raises:
        InputError: It is not installed or cannot be reached.
    """
    extra = _pairs("launcher_option", options.launcher_option)
    if options.launcher == "local":
        return Local(jobs_at_a_time(options.jobs, options.threads))
    from study import cluster

    if options.launcher == "ray":
        return cluster.Ray(extra)
    return cluster.Slurm(study.folder / "slurm", options.jobs, extra)


class Progress:
    """Displays the progress and the current gain tables; plain lines if not a terminal.

    Tables and the study's page are made only when a run has ended, to leave the cores to the runs.

    Args:
        study: The study.
        total: Number of its runs.
        parallel: Number of parallel runs.
        console: Where to display it.
    """

    def __init__(self, study: Study, total: int, parallel: int, console: Console) -> None:
        self.study = study
        self.total = total
        self.parallel = parallel
        self.console = console
        self.start = time.monotonic()
        self.ended = 0
        self.display: Live | None = None
        self.collection = collect(study)
        self.done_before = self.collection.done
        self.tables: list[GainTable] = []
        self.rendered: list[Table] = []
        self._write()

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Update the display while runs are in progress."""
        with live_display(self.console, self.render) as self.display:
            yield

    def update(self, job: Job) -> None:
        """Record that a run has ended."""
        self.ended += 1
        self.collection = collect(self.study, self.collection)
        self._write()
        if self.display is None:
            self.console.print(Text(self.line(job)), soft_wrap=True)

    def line(self, job: Job) -> str:
        """Describe how a run ended and the time left."""
        outcome = self.collection.errors.get(job.name)
        if outcome is None:
            outcome = "done"
            for arm, seeds in self.collection.results.items():
                for seed, result in seeds.items():
                    if self.study.run_folder(arm, seed).name == job.name:
                        outcome = f"{100 * result.accuracy:.2f} %"
                        outcome += (
                            ", training stayed at chance accuracy" if result.at_chance else ""
                        )
        else:
            outcome = f"failed: {outcome}"
        return f"[{self.collection.done}/{self.total}] {job.name}: {outcome}{self.time_left()}"

    def time_left(self) -> str:
        """Estimate the remaining time from the elapsed time."""
        missing = self.total - self.done_before - self.ended
        if not self.ended or missing <= 0:
            return ""
        elapsed = time.monotonic() - self.start
        return f"  (about {duration(elapsed / self.ended * missing)} left)"

    def render(self) -> Group:
        """Render the progress and the gain tables."""
        failed = len(self.collection.errors)
        state = f"{self.collection.done} of {self.total} runs done"
        state += f", {failed} failed" if failed else ""
        running = min(self.parallel, self.total - self.done_before - self.ended)
        state += f", {running} in progress{self.time_left()}"
        return Group(Text(state), *self.rendered)

    def _write(self) -> None:
        """Render the gain tables and write the page of the runs so far."""
        self.tables = gain_tables(self.collection)
        if self.console.is_terminal:
            self.rendered = [terminal_table(table, self.console.width) for table in self.tables]
        try:
            page = self.study.folder / PAGE_FILE
            write_page(self.collection, self.tables, page, under_way=True)
        except Exception as error:
            # The runs go on; an error that remains is reported at the end.
            log.warning("the study's page could not be written (%s)", error)


def terminal_table(table: GainTable, width: int) -> Table:
    """Render a gain table with the columns that fit into the terminal."""
    cells_of_rows = rows(table, short=True)
    widths = {
        column: max(
            len(SHORT_HEADINGS.get(column, table.headings[index])),
            *(len(cells[index]) for cells in cells_of_rows),
        )
        for index, column in enumerate(COLUMNS)
    }
    chosen: list[str] = []
    for column in COLUMN_PRIORITY:
        # Plus a space between columns.
        if sum(widths[one] + 1 for one in chosen) + widths[column] > width:
            break
        chosen.append(column)
    table_view = Table(
        # `Text`: untrusted names are not markup.
        title=Text(table.title) if table.title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    indices = [
        index for index, column in enumerate(COLUMNS) if column in (chosen or COLUMN_PRIORITY[:1])
    ]
    for index in indices:
        justify: Any = "left" if COLUMNS[index] == "variant" else "right"
        heading = SHORT_HEADINGS.get(COLUMNS[index], table.headings[index])
        table_view.add_column(heading, justify=justify, no_wrap=True)
    for cells in cells_of_rows:
        table_view.add_row(*(Text(cells[index]) for index in indices))
    return table_view


def effects_table(table: GainTable) -> Table:
    """Render the effects of a factorial study."""
    table_view = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in EFFECT_COLUMNS:
        justify: Any = "left" if column == "effect" else "right"
        table_view.add_column(column, justify=justify, no_wrap=True)
    for effect in effects(table):
        table_view.add_row(*effect.cells)
    return table_view


def show_plan(study: Study, missing: int, total: int, parallel: int, console: Console) -> None:
    """Print the number of runs and the estimated duration."""
    what = f"{len(study.variants)} variants x {len(study.seeds)} seeds"
    for key, values in study.axes.items():
        what += f" x {len(values)} values of {key}"
    console.print(Text(f"study {study.name}: {what} = {total} runs"), soft_wrap=True)
    if not missing:
        console.print("all runs are done")
        return
    known = estimate_run_seconds(study)
    estimate = "the duration is estimated after the first run"
    if known:
        estimate = f"about {duration(known[0] * missing / parallel)} ({known[1]})"
    console.print(
        Text(f"{total - missing} done, {missing} missing, {parallel} in parallel: {estimate}"),
        soft_wrap=True,
    )


def run(options: argparse.Namespace, arguments: list[str], console: Console) -> Collection:
    """Run what is missing and write the report.

    Raises:
        InputError: An option is not valid.
    """
    say = functools.partial(
        console.print, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    asked = study_from_options(options, arguments)
    asked.save()
    jobs = asked.jobs(options.threads, gpus=1 if gpus_here() else 0)
    missing = [job for job in jobs if not job.done]
    runner = make_launcher(options, asked)
    parallel = min(getattr(runner, "at_a_time", len(jobs)), len(jobs))
    show_plan(asked, len(missing), len(jobs), parallel, console)
    progress = Progress(asked, len(jobs), parallel, console)
    gains = LiveGains(asked, options.entity)
    with progress.live():
        for job in runner.run(missing):
            progress.update(job)
            if asked.uses_wandb:
                gains.update(progress.tables)
    # The whole study: earlier calls may have added variants, seeds and axis values.
    collection = collect(load_study(asked.folder), progress.collection)
    tables = gain_tables(collection)
    for table in tables:
        console.print(terminal_table(table, console.width))
        if effects(table):
            console.print(effects_table(table))
        say(verdict(table))
        for step in steps_after(table).steps:
            say(f"  {step}")
    if collection.done:
        write_report(collection, tables, options.entity, say)
    return collection


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit code 1 if a run failed, 2 for a user error."""
    with restartable():
        collection = run(*parse(arguments), Console())
    for name, reason in collection.errors.items():
        print(f"failed: {collection.study.folder / name}: {reason}", file=sys.stderr)
    if collection.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
