"""Search for the parameters of a regularizer on validation data; the test split stays unread.

`python -m study.sweep --task speech --space configs/sweep/dropout.yaml --trials 30` keeps all of a
search in a database: started again, it goes on, and several machines can share one.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from study.launch import (
    LOG,
    Job,
    Processes,
    end_on_sigterm,
    in_turns,
    jobs_at_a_time,
    start_job,
)
from study.response import Response, fit_response, write_page
from study.space import Space, read_space
from study.trial import storage_at
from tasks.errors import InputError
from tasks.names import check_folder_name
from tasks.presets import config_stack

log = logging.getLogger(__name__)

# So many failed trials in a row end the search: it is not chance then.
FAILURES = 3
# Earlier versions cut trials short.
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split off what is the search's own; all else is for every trial's training."""
    parser = argparse.ArgumentParser(prog="python -m study.sweep", allow_abbrev=False)
    parser.add_argument("--task", required=True, help="vision, speech or nlp")
    parser.add_argument("--space", required=True, type=Path, help="file of configs/sweep")
    parser.add_argument("--trials", type=int, default=30, help="number of trials in all")
    parser.add_argument("--reg", default="none", help="preset that the values are set over")
    parser.add_argument("--data", default="builtin", help="builtin, a name, a path or a hub id")
    parser.add_argument("--seed", default="0", help="of all trials")
    parser.add_argument("--name", help="of the search; default TASK-DATA-REG-SPACE")
    parser.add_argument("--storage", help="URL of the database; default SQLite in the folder")
    parser.add_argument("--jobs", default="auto", help="trials at a time: auto, or a number")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each trial")
    return parser.parse_known_args(arguments)


class Search:
    """A search: where it is kept, what it tries and what it has found.

    Args:
        options: As `parse` returns them.
        arguments: For every trial's training.

    Raises:
        InputError: The task, space, preset or database cannot be used.
    """

    def __init__(self, options: argparse.Namespace, arguments: list[str]) -> None:
        self.options = options
        self.arguments = arguments
        self.space: Space = read_space(options.space)
        # A wrong name shall not wait for the first trial.
        config_stack(options.task, options.reg, options.data)
        parts = (options.task, Path(options.data).stem, Path(options.reg).stem, options.space.stem)
        self.name = options.name or "-".join(parts)
        check_folder_name(self.name, "NAME")
        self.folder = Path("runs") / "sweeps" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.storage = options.storage or f"sqlite:///{(self.folder / 'trials.db').resolve()}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Before any worker starts: two that both make it would be in each other's way.
        self.study = optuna.create_study(
            study_name=self.name,
            storage=storage_at(self.storage),
            direction="maximize",
            load_if_exists=True,
        )
        self._check_same()
        self._begin_with_least()

    def _check_same(self) -> None:
        """Refuse to mix trials of different trainings."""
        steps = self.space.steps
        given = {
            "task": self.options.task,
            "data": self.options.data,
            "reg": self.options.reg,
            "seed": self.options.seed,
            "arguments": self.arguments,
            "space": {
                key: str(kind) + (f" in steps of {steps[key]}" if key in steps else "")
                for key, kind in self.space.parameters.items()
            },
            "fixed": {key: str(value) for key, value in self.space.fixed.items()},
        }
        before = self.study.user_attrs.get("given")
        if before is None:
            self.study.set_user_attr("given", given)
        elif before != given:
            changed = [key for key in given if before.get(key) != given[key]]
            raise InputError(
                f"the search {self.name} was begun with another {' and '.join(changed)}; "
                "give this one a NAME of its own"
            )

    def _begin_with_least(self) -> None:
        """Let the lowest values be tried first, and again if that trial failed.

        The network without what is searched for must be among those that are compared.
        """
        least = self.space.least()
        kept = (TrialState.WAITING, TrialState.RUNNING, *ENDED)
        for trial in self.study.get_trials(deepcopy=False, states=kept):
            if least in (trial.params, trial.system_attrs.get("fixed_params")):
                return
        self.study.enqueue_trial(least)

    def count(self, *states: TrialState) -> int:
        """Count the trials in a state, on all machines."""
        return len(self.study.get_trials(deepcopy=False, states=states))

    def run(self) -> None:
        """Do the trials that are missing, several at a time.

        Raises:
            InputError: Several trials in a row failed.
        """
        options = self.options
        at_a_time = jobs_at_a_time(options.jobs, options.threads)
        started = ended = failures = 0

        def next_job() -> Job | None:
            nonlocal started
            # Of the running ones, those here may not have told the database yet.
            running = max(started - ended, self.count(TrialState.RUNNING))
            if self.count(*ENDED) + running >= options.trials:
                return None
            folder = self.folder / f"trial-{len(list(self.folder.glob('trial-*')))}"
            folder.mkdir()
            started += 1
            return Job(folder.name, folder, self._command(folder), options.threads)

        def work(job: Job, gpu: str | None, processes: Processes) -> bool:
            return start_job(job, gpu, processes) == 0

        for job, good in in_turns(at_a_time, next_job, work):
            ended += 1
            failures = 0 if good else failures + 1
            if failures >= FAILURES:
                lines = (job.folder / LOG).read_text(errors="replace").splitlines() or ["no output"]
                raise InputError(f"{failures} trials in a row failed; {job.folder}: {lines[-1]}")
            self._tell()

    def _command(self, folder: Path) -> list[str]:
        options = self.options
        return [
            *("-m", "study.trial", "--storage", self.storage, "--name", self.name),
            *("--space", str(options.space), "--no_test"),
            *("--task", options.task, "--reg", options.reg, "--data", options.data),
            *("--seed", options.seed, "--run_dir", str(folder)),
            f"--trainer.logger.init_args.group={self.name}",
            "--trainer.logger.init_args.job_type=sweep",
            f"--trainer.logger.init_args.name={self.name}-{folder.name}",
            *self.arguments,
        ]

    def _tell(self) -> None:
        line = f"{self.count(*ENDED)} of {self.options.trials} trials"
        if self.count(TrialState.COMPLETE):
            best = self.study.best_trial
            values = in_words(self.space.values(best.params))
            line += f"; highest {100 * (best.value or 0):.2f} % at {values}"
        print(line, flush=True)

    def write(self) -> Response:
        """Write what was found: `best.yaml`, `trials.json` and `sweep.html`."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "parameters": self.space.values(trial.params),
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
            "trials": trials,
        }
        (self.folder / "trials.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "best.yaml").write_text(self._preset(response))
        write_page(self.folder / "sweep.html", self.name, self.study, self.space, response)
        return response

    def _preset(self, response: Response) -> str:
        """Make a preset of the one that the values were set over and the best of them."""
        options = self.options
        config: dict[str, Any] = {}
        # The last one of the stack is the preset.
        preset = yaml.safe_load(config_stack(options.task, options.reg, options.data)[-1])
        _merge(config, preset)
        for key, value in {**self.space.fixed, **response.best}.items():
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            _merge(config, nested)
        mean, half = response.expected
        head = (
            f"# make train TASK={options.task} DATA={options.data} REG={self.folder}/best.yaml\n"
            f"# Found by {self.count(*ENDED)} trials of {options.space} on validation data, seed "
            f"{options.seed}: {100 * mean:.2f} % expected there, give or take {100 * half:.2f}.\n"
        )
        return head + yaml.safe_dump({options.task: config}, sort_keys=False)


def in_words(values: dict[str, Any]) -> str:
    """Write parameters in one line."""
    rounded = ((key, f"{v:.4g}" if isinstance(v, float) else v) for key, v in values.items())
    return ", ".join(f"{key} {value}" for key, value in rounded)


def _merge(config: dict[str, Any], further: dict[str, Any]) -> None:
    for key, value in further.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value


def main(arguments: list[str] | None = None) -> None:
    """Run the search; an error that the user can mend is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    end_on_sigterm()
    try:
        search = Search(*parse(arguments))
        search.run()
        if not search.count(TrialState.COMPLETE):
            raise InputError(f"no trial of {search.name} came to its end")
        response = search.write()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    mean, half = response.expected
    print(f"best: {in_words(response.best)}")
    print(f"expected there: {100 * mean:.2f} % of validation, give or take {100 * half:.2f}")
    print(f"use it: REG={search.folder / 'best.yaml'}   look at it: {search.folder / 'sweep.html'}")


if __name__ == "__main__":
    main()
