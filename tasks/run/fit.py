"""One run: train, select on validation, test once, report."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from tasks.building import without_sizes
from tasks.data.sources import source_label
from tasks.errors import InputError
from tasks.lookup import find_task, task_label
from tasks.run.build import RunCLI, build, check_trainer
from tasks.run.calibrating import MonteCarloCalibration
from tasks.run.callbacks import CallbackOrder
from tasks.run.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    RandomState,
    Stopped,
)
from tasks.run.cores import CoreMonitor
from tasks.run.devices import RanksEnd, device_counts, strategy_of
from tasks.run.length import INTERVAL, TrainingLength
from tasks.run.presets import config_stack
from tasks.run.progress import EpochLines, ProgressBar, SpeedMonitor
from tasks.run.results import RESULTS, VALIDATION, ResultsWriter, is_complete, scores_under
from tasks.run.resume import resumable
from tasks.run.rows import loggers_with
from tasks.run.run_directory import claim, run_folder
from tasks.run.safe_loading import read_checkpoint


def train(
    options: argparse.Namespace, arguments: list[str], further: Sequence[Callback] = ()
) -> None:
    """Train, select on validation, test once, and print where everything is.

    Args:
        options: The short options, as `parse` returns them.
        arguments: For LightningCLI.
        further: Callbacks besides those of every run.

    Raises:
        InputError: An option, a key or the data cannot be used.
    """
    task = find_task(options.task)
    stack = config_stack(options.task, options.reg, options.data, arguments)
    label = task_label(options.task)
    name = f"{label}-{source_label(options.data)}-{Path(options.reg).stem}-s{options.seed}"
    devices, nodes = device_counts(options.devices, options.nodes)
    # Not earlier: wandb is slow to import, and the help does not need it.
    from tasks.run.artifacts import ArtifactLogger
    from tasks.run.loggers import add_loggers, logger_names

    loggers = logger_names(options.logger)
    folder = run_folder(options, name)
    speed = SpeedMonitor()
    terminal = sys.stdout.isatty()
    cli = build(
        task,
        [
            *(part for config in stack for part in ("--config", config)),
            f"--seed_everything={options.seed}",
            f"--data.source={options.data}",
            f"--trainer.devices={devices}",
            f"--trainer.num_nodes={nodes}",
            f"--trainer.strategy={strategy_of(options.strategy, devices, nodes)}",
            f"--trainer.enable_progress_bar={terminal}",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger.init_args.save_dir={folder}",
            f"--trainer.logger.init_args.name={name}",
            f"--trainer.logger.init_args.group={label}",
            *without_sizes(task, arguments),
            *arguments,
        ],
        [
            # `tasks.run.callbacks.ORDER` is the order in which they are called.
            CallbackOrder(),
            *(speed, CoreMonitor(), ProgressBar() if terminal else EpochLines(), RandomState()),
            *(BestCheckpoint(folder), MonteCarloCalibration(folder), *further),
        ],
    )
    trainer: Any = cli.trainer
    check_trainer(trainer, test=not options.no_test)
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    start = None
    if options.resume:
        if is_complete(folder, test=not options.no_test):
            print(f"the run in {folder} is complete")
            return
        start = resumable(folder, config)
    # Not earlier: decoding may take minutes, and all that can be checked without it has been.
    cli.datamodule.setup()
    task_model = cli.build_model()
    if trainer.max_epochs is None and trainer.max_steps == -1:
        trainer.fit_loop.max_epochs = task_model.optim.epochs
        trainer.callbacks.append(TrainingLength(cli.config.trainer[INTERVAL]))
    facts = {key: getattr(options, key) for key in ("task", "data", "reg")}
    seed = int(cli.config.seed_everything)
    facts |= {"name": name, "seed": seed, "arguments": list(arguments)}
    results = ResultsWriter(facts, config, folder, speed, test=not options.no_test)
    versions = {key: results.environment[key] for key in ("versions", "git_commit")}
    artifacts = ArtifactLogger(facts | versions, folder / BEST, test=not options.no_test)
    last = LastCheckpoint(folder, config, facts | versions)
    trainer.callbacks += [artifacts, results, last]
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    # Processes that the trainer starts for further devices run this same command.
    os.environ["REGAIN_RUN_DIR"] = str(folder)
    try:
        # All ranks stop after the same step.
        with claim(folder, resumed=start is not None), RanksEnd(Stopped):
            tags = {"name": name, "task": label}
            add_loggers(trainer, loggers, folder, tags, resumed=start is not None)
            fit_and_test(cli, folder, start, test=not options.no_test)
    finally:
        os.environ.pop("REGAIN_RUN_DIR")
    artifacts.confirm(trainer)
    report(trainer, results, test=not options.no_test)
    artifacts.link(trainer)


def fit_and_test(cli: RunCLI, folder: Path, start: Path | None, test: bool) -> None:
    """Fit, from a checkpoint if there is one, and test; close the W&B run in any case.

    Raises:
        InputError: The training ended before a validation.
    """
    trainer: Any = cli.trainer
    # Checkpoints are read as plain data; no code in them is executed.
    safe = {"datamodule": cli.datamodule, "weights_only": True}
    try:
        trainer.fit(cli.model, ckpt_path=start, **safe)
        if not (folder / BEST).exists():
            raise InputError(
                f"the run ended before a validation, so {folder} has no weights to keep; "
                "raise trainer.max_epochs, max_steps or max_time"
            )
        if test:
            if not same_weights(folder / BEST, folder / LAST):
                cli.model.tested = "test_last"
                trainer.test(ckpt_path=str(folder / LAST), verbose=False, **safe)
                cli.model.tested = "test"
            trainer.test(ckpt_path=str(folder / BEST), verbose=False, **safe)
    finally:
        close_run(trainer, failed=sys.exc_info()[0] is not None)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights and statistics."""
    if not (one.is_file() and other.is_file()):
        # The checkpoint of a sharded model is a folder.
        return False
    here, there = (read_checkpoint(file)["state_dict"] for file in (one, other))
    return here.keys() == there.keys() and all(
        torch.equal(here[name], there[name]) for name in here
    )


def close_run(trainer: Any, failed: bool) -> None:
    """Close the W&B run, if one is open, so that the next run of this process opens its own."""
    for logger in loggers_with(trainer, "close"):
        logger.close(failed)


@rank_zero_only
def report(trainer: Any, results: ResultsWriter, test: bool) -> None:
    """Print the scores, the run's folder, and how to look at the run."""
    metrics, folder = trainer.callback_metrics, results.folder
    if test and results.last is not None:
        print(f"test accuracy {described(scores_under('test/', metrics))}")
        print(f"last epoch    {described(results.last[0])}")
    else:
        print(f"last validation accuracy {described(scores_under('val/', metrics))}")
    print(f"run in {folder}")
    if (folder / BEST).exists():
        print(f"predict with it: make predict CKPT={shlex.quote(str(folder))} INPUT=...")
    for logger in loggers_with(trainer, "look"):
        print(f"look at it: {logger.look}")
    for logger in loggers_with(trainer, "sync_command"):
        if logger.sync_command is None:
            file = folder / (RESULTS if test else VALIDATION)
            print(f"look at it on your W&B page, or in {file}")
        else:
            look = shlex.join(["wandb", "leet", str(logger.unpublished)])
            print(f"look at it: {look}, or publish it: {logger.sync_command}")
    if not trainer.loggers:
        print(f"look at it in {folder / (RESULTS if test else VALIDATION)}")


def described(scores: Mapping[str, float]) -> str:
    """Describe scores in one line.

    Example:
        >>> described({"acc": 0.5, "loss": 1.0, "ece": 0.25})
        '50.00 %  (loss 1.000, calibration error 0.250)'
    """
    accuracy, loss, ece = (scores[name] for name in ("acc", "loss", "ece"))
    return f"{100 * accuracy:.2f} %  (loss {loss:.3f}, calibration error {ece:.3f})"
