"""The command line: one run of one task, from configurations to a test score.

`python -m tasks.train --task vision --reg both --data builtin --seed 0` stacks the configurations
of `configs/` and hands every further argument to LightningCLI, so that each key can be set:
`--model.reg.dropout=0.2 --trainer.max_epochs=5`.
"""

import argparse
import errno
import importlib
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from tasks.callbacks import ConfigRecorder, EpochLines, ProgressBar, SpeedMonitor
from tasks.checkpoints import (
    BEST,
    LAST,
    BestCheckpoint,
    LastCheckpoint,
    RandomState,
    Stopped,
    WholeFiles,
)
from tasks.configs import check_configurations
from tasks.cores import CoreMonitor, limit_threads
from tasks.devices import is_first, keep_freed_memory, started, strategy_of, world
from tasks.errors import InputError
from tasks.folder import claim, new_folder
from tasks.opening import read_checkpoint
from tasks.presets import config_stack
from tasks.results import RESULTS, ResultsWriter, scores_under
from tasks.resume import resumable, unfinished

# Warnings of Lightning about what is meant to be as it is here.
SETTLED = (
    ".*does not have many workers.*",  # The batches are gathered from memory.
    ".*smaller than the logging interval.*",  # The end of an epoch logs the rest.
    ".*args parameter is intended to run from within Python.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # The run's own folder.
    ".*your dataloader is not resumable.*",  # It is told where to begin.
    ".*loading a checkpoint outside the 'fit' stage.*",  # It is the test that loads it.
    ".*is not supported by the model summary.*",  # It counts parameters all the same.
    ".*recommended to use .self.log.*sync_dist=True.*",  # Each rank has measured all examples.
    ".*.broadcast_buffers. is deprecated.*",  # What takes its place is not in torch 2.9.
    ".*isinstance.treespec, LeafSpec.*",  # Between Lightning and torch.
)


# How the parts of a run say that they cannot be built so.
REFUSALS = (
    *(ArgumentError, ValueError, TypeError, OverflowError, RecursionError, ZeroDivisionError),
    *(MisconfigurationException, ImportError),
)
# What the environment can refuse at any time; anything else would be a mistake of ours.
NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPIPE)


class RunCLI(LightningCLI):
    """LightningCLI whose model learns from the data what it is built for."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what two parts must agree on."""
        parser.link_arguments("seed_everything", "data.seed")
        if getattr(self.model_class, "__name__", "") == "TextTask":
            parser.link_arguments("model.pretrained", "data.tokenizer")
        parser.link_arguments("data", "model.spec", lambda data: data.spec(), "instantiate")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split off the short options; what they do not know is for LightningCLI."""
    parser = argparse.ArgumentParser(prog="python -m tasks.train", allow_abbrev=False)
    parser.add_argument("--task", required=True, help="vision, speech or nlp")
    parser.add_argument("--reg", default="both", help="a preset of configs/reg, or a file")
    parser.add_argument("--data", default="builtin", help="builtin, a name, a path or a hub id")
    parser.add_argument("--seed", default="0", help="of weights, splits, order and masks")
    parser.add_argument("--devices", default="", help="number of GPUs or processes a machine")
    parser.add_argument("--nodes", default="", help="number of machines")
    parser.add_argument("--strategy", default="auto", help="auto, ddp, fsdp or one of Lightning's")
    parser.add_argument("--run_dir", help="folder of the run; default runs/NAME/TIME")
    parser.add_argument(
        "--resume",
        default="",
        help="go on with the run in this folder; auto: in --run_dir, or the newest unfinished one",
    )
    parser.add_argument("--no_test", action="store_true", help="leave the test split unread")
    return parser.parse_known_args(arguments)


def run_folder(options: argparse.Namespace, name: str) -> Path:
    """Choose the run's folder; the same in all processes of the run.

    Raises:
        InputError: The run that shall go on is not there.
    """
    folder = options.run_dir or os.environ.get("REGAIN_RUN_DIR")
    if options.resume not in ("", "auto"):
        folder = options.resume
        if not Path(folder).is_dir():
            raise InputError(f"RESUME={folder} is no folder of a run; there is also RESUME=auto")
    elif options.resume and not folder:
        folder = next(unfinished(name), None)
    if not folder:
        together = started()
        folder = Path("runs") / name / together if together else new_folder(name)
    return Path(folder)


def build(task: Any, arguments: list[str], callbacks: list[Callback]) -> RunCLI:
    """Parse the configurations and build trainer, model and data.

    Raises:
        InputError: A key, type or value is wrong.
    """
    check_configurations(arguments)
    try:
        return RunCLI(
            task.Task,
            task.Data,
            save_config_callback=ConfigRecorder,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": callbacks},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=arguments,
        )
    except REFUSALS as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | OSError):
            cause = cause.__cause__
        if cause is not None:
            # What the data could not do, without the parser's words around it.
            raise cause from None
        # Each layer checks its values by itself when it is built, and names them.
        raise InputError(" ".join(str(error).split())) from error


def check_trainer(trainer: Any, test: bool) -> None:
    """Refuse what Lightning takes and cannot carry out.

    Raises:
        InputError: The training has no end, no steps, no validation or no test.
    """
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise InputError("trainer.max_epochs=-1 has no end; give it a number of epochs")
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0:
            raise InputError(f"trainer.{name} is at least 1, not 0")
    for name in ("accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise InputError(f"trainer.{name} is at least 1, not {value}")
    if trainer.val_check_interval == 0:
        raise InputError("trainer.val_check_interval is more than 0, not 0")
    for split in ("train", "val", "test") if test else ("train", "val"):
        if getattr(trainer, f"limit_{split}_batches") == 0:
            raise InputError(f"trainer.limit_{split}_batches=0 leaves nothing; it is more than 0")


def train(
    options: argparse.Namespace, arguments: list[str], further: Sequence[Callback] = ()
) -> None:
    """Train, select on validation, test once, and say where everything is.

    Args:
        options: What the run is, as `parse` returns it.
        arguments: For LightningCLI.
        further: Callbacks besides those of every run.

    Raises:
        InputError: Something that was given cannot be used.
    """
    stack = config_stack(options.task, options.reg, options.data)
    task = importlib.import_module(f"tasks.{options.task}")
    name = f"{options.task}-{Path(options.data).name}-{Path(options.reg).stem}-s{options.seed}"
    devices, nodes = world(options.devices, options.nodes)
    folder = run_folder(options, name)
    speed = SpeedMonitor()
    terminal = sys.stdout.isatty()
    progress = ProgressBar() if terminal else EpochLines()
    callbacks: list[Callback] = [
        *(speed, CoreMonitor(), progress, RandomState(), BestCheckpoint(folder), *further)
    ]
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
            f"--trainer.logger.init_args.group={options.task}",
            *arguments,
        ],
        callbacks,
    )
    facts = {key: getattr(options, key) for key in ("task", "data", "reg")}
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    seed = int(cli.config.seed_everything)
    results = ResultsWriter(facts | {"name": name, "seed": seed}, config, folder, speed)
    trainer: Any = cli.trainer
    check_trainer(trainer, test=not options.no_test)
    trainer.callbacks = [results, *trainer.callbacks, LastCheckpoint(folder, config)]
    trainer.strategy.checkpoint_io = WholeFiles()
    start = None
    if options.resume:
        if (folder / RESULTS).exists():
            print(f"the run in {folder} is complete")
            return
        start = resumable(folder, config)
    # Processes that the trainer starts for further devices run this same command.
    os.environ["REGAIN_RUN_DIR"] = str(folder)
    try:
        with claim(folder):
            run(cli, folder, start, test=not options.no_test)
    finally:
        os.environ.pop("REGAIN_RUN_DIR")
    report(trainer, results, test=not options.no_test)


def run(cli: RunCLI, folder: Path, start: Path | None, test: bool) -> None:
    """Fit, from a checkpoint if there is one, and test; close the W&B run, whatever happens.

    Raises:
        InputError: The training ended before there was anything to test.
    """
    trainer: Any = cli.trainer
    # Nothing in a checkpoint is run.
    safe = {"datamodule": cli.datamodule, "weights_only": True}
    try:
        trainer.fit(cli.model, ckpt_path=start, **safe)
        if test:
            if not (folder / BEST).exists():
                raise InputError(
                    f"the run ended before a validation, so that {folder} holds no weights to "
                    "test; raise trainer.max_epochs, max_steps or max_time"
                )
            if not same_weights(folder / BEST, folder / LAST):
                cli.model.tested = "test_last"
                trainer.test(ckpt_path=str(folder / LAST), verbose=False, **safe)
                cli.model.tested = "test"
            trainer.test(ckpt_path=str(folder / BEST), verbose=False, **safe)
    finally:
        close_run(trainer.logger, failed=sys.exc_info()[0] is not None)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights and statistics."""
    if not (one.is_file() and other.is_file()):
        # Of a sharded model each is a folder.
        return False
    here, there = (read_checkpoint(file)["state_dict"] for file in (one, other))
    return here.keys() == there.keys() and all(
        torch.equal(here[name], there[name]) for name in here
    )


def close_run(logger: Any, failed: bool) -> None:
    """Close the W&B run, if one is open, so that the next run of this process opens its own."""
    if hasattr(logger, "close"):
        logger.close(failed)


@rank_zero_only
def report(trainer: Any, results: ResultsWriter, test: bool) -> None:
    """Print the scores, the run's folder, and how to look at it."""
    metrics, folder, logger = trainer.callback_metrics, results.folder, trainer.logger
    if test and results.last is not None:
        print(f"test accuracy {in_words(scores_under('test/', metrics))}")
        print(f"last epoch    {in_words(results.last[0])}")
    else:
        print(f"last validation accuracy {in_words(scores_under('val/', metrics))}")
    print(f"run in {folder}")
    if getattr(logger, "unpublished", None):
        look = shlex.join(["wandb", "leet", str(logger.unpublished)])
        print(f"look at it: {look}, or publish it: {logger.sync_command}")
    else:
        print(f"look at it on your W&B page, or in {folder / RESULTS}")


def in_words(scores: Mapping[str, float]) -> str:
    """Describe scores in one line.

    Example:
        >>> in_words({"acc": 0.5, "loss": 1.0, "ece": 0.25})
        '50.00 %  (loss 1.000, calibration error 0.250)'
    """
    accuracy, loss, ece = (scores[name] for name in ("acc", "loss", "ece"))
    return f"{100 * accuracy:.2f} %  (loss {loss:.3f}, calibration error {ece:.3f})"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can mend is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tasks").setLevel(logging.INFO if is_first() else logging.ERROR)
    for package in ("lightning.pytorch", "lightning.fabric"):
        # Such as the seed, which the command line and the name of the run have.
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in SETTLED:
        warnings.filterwarnings("ignore", message=message)
    try:
        try:
            Path.cwd()
        except FileNotFoundError as error:
            raise InputError("the current folder is gone; go to another one with cd") from error
        keep_freed_memory()
        limit_threads()
        train(*parse(arguments))
    except Stopped:
        print("stopped and saved; the same command with RESUME=auto goes on", file=sys.stderr)
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        if error.errno == errno.EPIPE:
            # What is still to be flushed has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"error: {refusal(error)}", file=sys.stderr)
        sys.exit(2)


def refusal(error: OSError) -> str:
    """Say in one line what the environment has refused.

    Example:
        >>> refusal(OSError(errno.ENOSPC, "No space left on device", "run/best.ckpt"))
        'no space left on the device: run/best.ckpt'
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device: {error.filename or 'disk'}"
    if error.errno == errno.EPIPE:
        return "nobody reads the output any more; the run goes on with RESUME=auto"
    return f"{error.filename or 'a file'} cannot be written: {error.strerror}"


if __name__ == "__main__":
    main()
