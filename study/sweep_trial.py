"""One trial of a search, started by `study.sweep` in its own process.

Several seeds are trained one after the other. The database has the accuracy of each seed as soon
as it is known: if the process dies, the next attempt trains with the missing seeds only.
"""

import argparse
import hashlib
import json
import signal
import sys
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from study.search_space import read_space
from study.trial_results import FAILED, FOLDER, accuracies, save_result
from tasks import train
from tasks.errors import InputError, first_line
from tasks.run.checkpoints import Stopped
from tasks.run.results import VALIDATION
from tasks.run.rows import log_config, loggers_with

# Seconds between heartbeats of a trial. Without one for twice as long, the trial counts as failed
# and is repeated.
HEARTBEAT = 30
MOST_ATTEMPTS = 3


def storage_at(url: str) -> optuna.storages.RDBStorage:
    """Open the database of a search, shared by all workers.

    Raises:
        InputError: It cannot be opened.
    """
    # Seconds that a connection waits while another one writes.
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        with warnings.catch_warnings():
            # Heartbeats are experimental since Optuna 2.9; nothing else detects dead workers.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=arguments,
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(
                    MOST_ATTEMPTS
                ),
            )
    except Exception as error:
        # SQLAlchemy, its drivers and a missing driver raise different errors.
        reason = " ".join(str(error).split())
        raise InputError(f"STORAGE={url} cannot be opened: {reason}") from error


class TrialStopped(Exception):  # noqa: N818 - Not an error.
    """The trial received SIGTERM; it is queued, and continues when the search does."""


class Reporter(Callback):
    """Reports the best validation accuracy of a seed so far, which also selects the weights.

    No trial is pruned for low accuracy in an early epoch: networks with more dropout learn more
    slowly, so pruning would favour the rates that learn fastest.

    In W&B, each seed is a run of its own: its configuration has the number of the trial as
    `sweep.trial` and its seed as `run.seed`; the parameters have their own keys, such as
    `model.reg.dropout`. The run of the last seed has the result of the trial in its summary:
    `sweep/val_acc_mean` and, with several seeds, the standard deviation `sweep/val_acc_sd`.

    Args:
        trial: The trial.
        seed: The seed.
        seeds: All seeds of the trial.
    """

    def __init__(self, trial: optuna.Trial, seed: int, seeds: list[int]) -> None:
        self.trial = trial
        self.seed = seed
        self.seeds = seeds
        self.best = 0.0

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the best accuracy before an interruption."""
        if trainer.state.fn == TrainerFn.FITTING:
            epochs = checkpoint["results"]["history"]
            self.best = max((epoch["val/acc"] for epoch in epochs), default=0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log which trial this run belongs to."""
        log_config(trainer, {"sweep": {"trial": self.trial.number}})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the best validation accuracy so far."""
        if trainer.sanity_checking:
            return
        self.best = max(self.best, float(trainer.callback_metrics["val/acc"]))
        if len(self.seeds) == 1:
            self.trial.report(self.best, trainer.current_epoch)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the result of the seed, and log that of the trial after the last seed."""
        run: Any = trainer
        examples = run.datamodule.splits["validation"].chosen
        digest = hashlib.sha256(examples.numpy().tobytes()).hexdigest()[:16]
        save_result(self.trial, self.seed, self.best, len(examples), digest)
        found = accuracies(self.trial)
        if set(found) == set(self.seeds):
            spread = {"sweep/val_acc_sd": stdev(found.values())} if len(found) > 1 else {}
            for logger in loggers_with(trainer, "log_summary"):
                logger.log_summary({"sweep/val_acc_mean": fmean(found.values()), **spread})


def folder_of(trial: optuna.Trial, given: Path) -> Path:
    """Return the folder of a trial; an interrupted trial continues in its first folder."""
    first = Path(trial.user_attrs.get(FOLDER, given))
    # The first attempt may have been on another machine.
    folder = first if first.is_dir() else given
    trial.set_user_attr(FOLDER, str(folder))
    return folder


def run_seeds(trial: optuna.Trial, seeds: list[int], given: Path, arguments: list[str]) -> float:
    """Train with each seed whose result is missing, and return the mean accuracy.

    Args:
        trial: The trial.
        seeds: Its seeds, in this order.
        given: Folder for a new trial; with several seeds, each has a folder in it.
        arguments: Arguments of the training.

    Raises:
        InputError: A seed cannot be trained with; the trial fails, and has no result.
    """
    folder = folder_of(trial, given)
    for seed in seeds:
        if seed in accuracies(trial):
            continue
        several = len(seeds) > 1
        name = f"{folder.parent.name}-{folder.name}" + (f"-s{seed}" if several else "")
        place = folder / f"seed-{seed}" if several else folder
        run = [
            *(f"--seed={seed}", f"--run_dir={place}"),
            *("--resume=auto", f"--trainer.logger.init_args.name={name}"),
        ]
        try:
            options = train.parse([*run, *arguments])
            train.train(*options, further=[Reporter(trial, seed, seeds)])
            if seed not in accuracies(trial):
                # The run was complete before; the database that had its result was deleted.
                found = json.loads((place / VALIDATION).read_text())
                save_result(
                    trial,
                    seed,
                    found["best"]["val/acc"],
                    found["examples"]["validation"],
                    found["validation_set"],
                )
        except Exception as error:
            trial.set_user_attr(FAILED, {"seed": seed, "error": first_line(error)})
            if several and isinstance(error, InputError):
                raise InputError(f"seed {seed}: {error}") from error
            raise
    return fmean(accuracies(trial)[seed] for seed in seeds)


def main(arguments: list[str] | None = None) -> None:
    """Draw values, train with them and report the validation accuracy."""
    parser = argparse.ArgumentParser(prog="python -m study.sweep_trial", allow_abbrev=False)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--space", required=True, type=Path)
    parser.add_argument("--seeds", required=True, help="list such as 0,1,2")
    parser.add_argument("--folder", required=True, type=Path)
    options, rest = parser.parse_known_args(arguments)
    space = read_space(options.space)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    # No log lines: the search prints one line per trial.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.load_study(
        study_name=options.name,
        storage=storage_at(options.storage),
        # Draws parameters jointly, and away from running trials.
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
    )

    def objective(trial: optuna.Trial) -> float:
        found = [f"--{key}={value}" for key, value in space.suggest(trial).items()]
        try:
            return run_seeds(trial, seeds, options.folder, [*rest, *found])
        except Stopped as stop:
            # At once: a missed heartbeat is noticed only after a minute.
            search.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=trial.user_attrs,
                )
            )
            raise TrialStopped from stop

    try:
        search.optimize(objective, n_trials=1)
    except TrialStopped:
        sys.exit(128 + signal.SIGTERM)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
