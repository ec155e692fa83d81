"""One trial of a search, in a process of its own: `study.sweep` starts it."""

import argparse
import sys
import warnings
from pathlib import Path

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback

from study.space import read_space
from tasks import train
from tasks.errors import InputError

# Seconds between the signs of life of a trial; the trial of a machine that gives none for twice as
# long counts as failed, and another one takes its place.
HEARTBEAT = 30


def storage_at(url: str) -> optuna.storages.RDBStorage:
    """Open the database that all workers of a search share.

    Raises:
        InputError: There is no such database.
    """
    # A further connection waits while another one writes.
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        with warnings.catch_warnings():
            # The heartbeat has been experimental since Optuna 2.9, and nothing else finds the dead.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=arguments,
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(3),
            )
    except Exception as error:
        # SQLAlchemy, its drivers and a missing driver each have errors of their own.
        reason = " ".join(str(error).split())
        raise InputError(f"STORAGE={url} cannot be opened: {reason}") from error


class Reporter(Callback):
    """Tells the search the best validation accuracy so far, the one that chooses the weights.

    No trial is cut short for a low accuracy in an early epoch: the more dropout, the more slowly a
    network learns, and the comparison would favour the rates that learn fastest.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.best = 0.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the best validation accuracy of all epochs until now."""
        if trainer.sanity_checking:
            return
        self.best = max(self.best, float(trainer.callback_metrics["val/acc"]))
        self.trial.report(self.best, trainer.current_epoch)


def main(arguments: list[str] | None = None) -> None:
    """Ask the search for values, train with them, tell it the validation accuracy."""
    parser = argparse.ArgumentParser(prog="python -m study.trial", allow_abbrev=False)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--space", required=True, type=Path)
    options, rest = parser.parse_known_args(arguments)
    space = read_space(options.space)
    # The search on standard output, as W&B does not take it: one line a trial.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.load_study(
        study_name=options.name,
        storage=storage_at(options.storage),
        # Parameters are drawn together, and away from trials that are still running.
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
    )

    def objective(trial: optuna.Trial) -> float:
        reporter = Reporter(trial)
        found = [f"--{key}={value}" for key, value in space.suggest(trial).items()]
        train.train(*train.parse([*rest, *found]), further=[reporter])
        return reporter.best

    try:
        search.optimize(objective, n_trials=1)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
