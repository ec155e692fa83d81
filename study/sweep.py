"""Search for the parameters of a regularizer on validation data; the test split is not read.

`python -m study.sweep --task speech --space configs/sweep/dropout.yaml --trials 30` keeps the
search in a database: started again, it continues, and several machines can share it.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from study.launch import (
    LOG,
    Job,
    Processes,
    jobs_at_a_time,
    run_jobs,
    start_job,
)
from study.options import training_parser
from study.plan import SMALL_LOGS
from study.preset_text import preset_text
from study.publish import publish_search
from study.response import Response, fit_response
from study.search_space import Space, read_space
from study.sweep_page import write_page
from study.sweep_trial import storage_at
from study.terminal import plural, restartable
from study.trial_results import FAILED, accuracies
from tasks.data.sources import source_label
from tasks.errors import InputError
from tasks.lookup import task_label
from tasks.run.folder_names import check_folder_name
from tasks.run.loggers import logger_names
from tasks.run.presets import config_stack

log = logging.getLogger(__name__)

# This many failed trials in a row end the search.
MOST_FAILURES = 3
# Earlier versions pruned trials.
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options of the search; the rest are training arguments of every trial."""
    parser = training_parser(
        "study.sweep",
        "Search for hyperparameters on validation data. Further options, such as "
        "--trainer.max_epochs=40, are options of python -m tasks.train for every trial.",
    )
    parser.add_argument(
        "--space", required=True, type=Path, help="YAML file of parameters, as in configs/sweep"
    )
    parser.add_argument("--trials", type=int, default=30, help="total number of trials [30]")
    parser.add_argument("--reg", default="none", help="preset that the values override [none]")
    parser.add_argument("--seed", default="0", help="first seed of each trial [0]")
    parser.add_argument(
        "--seeds", default="1", help="number of seeds of each trial, or a list: 3,5,7 [1]"
    )
    parser.add_argument("--name", help="name of the search [TASK-DATA-REG-SPACE]")
    parser.add_argument(
        "--storage", help="URL of the database [SQLite in the folder of the search]"
    )
    return parser.parse_known_args(arguments)


class Search:
    """A search for parameters: its database, its trials and its result.

    Args:
        options: As returned by `parse`.
        arguments: Training arguments of every trial.

    Raises:
        InputError: The task, space, preset or database is not valid.
    """

    def __init__(self, options: argparse.Namespace, arguments: list[str]) -> None:
        self.options = options
        self.arguments = arguments
        self.space: Space = read_space(options.space)
        self.seeds = seeds_of(options.seed, options.seeds)
        # Both report an unknown name before anything runs.
        self.uses_wandb = "wandb" in logger_names(options.logger)
        config_stack(options.task, options.reg, options.data)
        data, reg = Path(source_label(options.data)).stem, Path(options.reg).stem
        parts = (task_label(options.task), data, reg, options.space.stem)
        self.name = options.name or "-".join(parts)
        check_folder_name(self.name, "NAME")
        self.folder = Path("runs") / "sweeps" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.storage = options.storage or f"sqlite:///{(self.folder / 'trials.db').resolve()}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Created before any worker starts: concurrent creation fails.
        self.study = optuna.create_study(
            study_name=self.name,
            storage=storage_at(self.storage),
            direction="maximize",
            load_if_exists=True,
        )
        self._check_same()
        self._enqueue_lowest()

    def _check_same(self) -> None:
        """Check that earlier trials had the same settings."""
        steps = self.space.steps
        given = {
            "task": self.options.task,
            "data": self.options.data,
            "reg": self.options.reg,
            "seeds": self.seeds,
            "arguments": self.arguments,
            "space": {
                key: str(kind) + (f" in steps of {steps[key]}" if key in steps else "")
                for key, kind in self.space.parameters.items()
            },
            "fixed": {key: str(value) for key, value in self.space.fixed.items()},
        }
        before = self.study.user_attrs.get("given")
        if before is not None and "seed" in before:
            # From a version with one seed per trial.
            before["seeds"] = [int(before.pop("seed"))]
        if before is None:
            self.study.set_user_attr("given", given)
        elif before != given:
            changed = [key for key in given if before.get(key) != given[key]]
            raise InputError(
                f"the search {self.name} exists with a different {' and '.join(changed)}; "
                "choose another NAME"
            )

    def _enqueue_lowest(self) -> None:
        """Try the lowest values first, and again if that trial failed.

        The network without the regularizer must be part of the comparison.
        """
        lowest = self.space.lowest()
        kept = (TrialState.WAITING, TrialState.RUNNING, *FINISHED)
        for trial in self.study.get_trials(deepcopy=False, states=kept):
            if lowest in (trial.params, trial.system_attrs.get("fixed_params")):
                return
        self.study.enqueue_trial(lowest)

    def count(self, *states: TrialState) -> int:
        """Count the trials in the given states, on all machines."""
        return len(self.study.get_trials(deepcopy=False, states=states))

    def run(self) -> None:
        """Run the missing trials, several in parallel.

        Raises:
            InputError: Several trials in a row failed.
        """
        options = self.options
        at_a_time = jobs_at_a_time(options.jobs, options.threads)
        started = ended = failures = 0
        missing = max(0, options.trials - self.count(*FINISHED))
        print(
            f"{missing} of {options.trials} trials with {plural(len(self.seeds), 'seed')} each: "
            f"{plural(missing * len(self.seeds), 'run')}, {at_a_time} at a time",
            flush=True,
        )

        def next_job() -> Job | None:
            nonlocal started
            with warnings.catch_warnings():
                # Experimental since Optuna 2.9, like the heartbeats.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # Queues what a killed search has left.
                optuna.storages.fail_stale_trials(self.study)
            # Trials just started here may not be in the database yet.
            running = max(started - ended, self.count(TrialState.RUNNING))
            if self.count(*FINISHED) + running >= options.trials:
                return None
            folder = self.folder / f"trial-{len(list(self.folder.glob('trial-*')))}"
            folder.mkdir()
            started += 1
            return Job(folder.name, folder, self._command(folder), options.threads)

        def work(job: Job, gpu: str | None, processes: Processes) -> bool:
            return start_job(job, gpu, processes) == 0

        for job, good in run_jobs(at_a_time, next_job, work):
            ended += 1
            failures = 0 if good else failures + 1
            if failures >= MOST_FAILURES:
                lines = (job.folder / LOG).read_text(errors="replace").splitlines() or ["no output"]
                raise InputError(f"{failures} trials in a row failed; {job.folder}: {lines[-1]}")
            self._print_progress()

    def _command(self, folder: Path) -> list[str]:
        options = self.options
        return [
            *("-m", "study.sweep_trial", "--storage", self.storage, "--name", self.name),
            *("--space", str(options.space), "--folder", str(folder)),
            *("--seeds", ",".join(map(str, self.seeds)), "--no_test"),
            *("--task", options.task, "--reg", options.reg, "--data", options.data),
            *("--logger", options.logger),
            f"--trainer.logger.init_args.group={self.name}",
            "--trainer.logger.init_args.job_type=sweep",
            *SMALL_LOGS,
            *self.arguments,
        ]

    def _print_progress(self) -> None:
        line = f"{self.count(*FINISHED)} of {self.options.trials} trials"
        if self.count(TrialState.COMPLETE):
            best = self.study.best_trial
            values = format_values(self.space.values(best.params))
            line += f"; highest {100 * (best.value or 0):.2f} % at {values}"
        print(line, flush=True)

    def write(self) -> Response:
        """Write `best.yaml`, `trials.json` and `sweep.html`."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "parameters": self.space.values(trial.params),
                "accuracies": accuracies(trial),
                "failed": trial.user_attrs.get(FAILED),
                "intermediate": trial.intermediate_values,
                "began": trial.datetime_start and trial.datetime_start.isoformat(),
                "ended": trial.datetime_complete and trial.datetime_complete.isoformat(),
            }
            for trial in self.study.get_trials(deepcopy=False)
        ]
        response = fit_response(self.study, self.space)
        content = {
            "given": self.study.user_attrs["given"],
            "best": response.best,
            "expected": response.expected,
            "smoothing": response.smoothing,
            "sampling": response.sampling,
            "validation_examples": response.examples,
            "seed_spread": response.spread,
            "trials": trials,
        }
        (self.folder / "trials.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "best.yaml").write_text(self._preset(response))
        write_page(self.folder / "sweep.html", self.name, self.study, self.space, response)
        return response

    def _preset(self, response: Response) -> str:
        """Make a preset: the one that was searched over, with the best values."""
        options = self.options
        comment = [
            f"make train TASK={options.task} DATA={options.data} REG={self.folder}/best.yaml",
            f"Found by {self.count(*FINISHED)} trials of {options.space} on validation data, "
            f"seeds: {', '.join(map(str, self.seeds))}.",
            f"Expected accuracy: {response}.",
        ]
        values = {**self.space.fixed, **response.best}
        return preset_text(options.task, options.reg, options.data, values, comment)


def seeds_of(first: str, seeds: str) -> list[int]:
    """Return the seeds of each trial.

    Args:
        first: The first seed.
        seeds: Their number, or a list of seeds; with a list, `first` is ignored.

    Raises:
        InputError: One of them is something else.

    Example:
        >>> seeds_of("4", "2"), seeds_of("0", "3,7")
        ([4, 5], [3, 7])
    """
    if not first.isdecimal():
        raise InputError(f"SEED={first} must be a whole number")
    if "," not in seeds and seeds.isdecimal() and int(seeds):
        return [int(first) + index for index in range(int(seeds))]
    parts = seeds.split(",")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts) or len({*parts}) < len(parts):
        raise InputError(f"SEEDS={seeds} must be a number of seeds or a list such as 0,1,2")
    return [int(part) for part in parts]


def format_values(values: dict[str, Any]) -> str:
    """Format parameters in one line."""
    rounded = ((key, f"{v:.4g}" if isinstance(v, float) else v) for key, v in values.items())
    return ", ".join(f"{key} {value}" for key, value in rounded)


def main(arguments: list[str] | None = None) -> None:
    """Run the search; a user error is one line and exit code 2."""
    with restartable():
        search = Search(*parse(arguments))
        search.run()
        if not search.count(TrialState.COMPLETE):
            raise InputError(f"no trial of {search.name} is complete; see {search.folder}")
        response = search.write()
    print(f"best: {format_values(response.best)}")
    print(f"expected validation accuracy: {response}")
    print(f"preset: REG={search.folder / 'best.yaml'}   page: {search.folder / 'sweep.html'}")
    if search.uses_wandb:
        publish_search(search.folder, search.space, print)


if __name__ == "__main__":
    main()
