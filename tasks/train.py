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
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from tasks.callbacks import (
    ConfigRecorder,
    EpochLines,
    ProgressBar,
    ResultsWriter,
    SpeedMonitor,
    checkpoints,
)
from tasks.errors import InputError
from tasks.presets import config_stack

# Warnings of Lightning about what is meant to be as it is here.
SETTLED = (
    ".*does not have many workers.*",  # The batches are gathered from memory.
    ".*smaller than the logging interval.*",  # The end of an epoch logs the rest.
    ".*args parameter is intended to run from within Python.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # The run's own folder.
    ".*loading a checkpoint outside the 'fit' stage.*",  # It is the test that loads it.
    ".*is not supported by the model summary.*",  # It counts parameters all the same.
    ".*isinstance.treespec, LeafSpec.*",  # Between Lightning and torch.
)


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
    parser.add_argument("--devices", default="1", help="number of GPUs or processes")
    parser.add_argument("--run_dir", help="folder of the run; default runs/NAME/TIME")
    parser.add_argument("--no_test", action="store_true", help="leave the test split unread")
    return parser.parse_known_args(arguments)


def run_folder(options: argparse.Namespace, name: str) -> Path:
    """Choose the run's folder; processes that this one starts choose the same."""
    folder = options.run_dir or os.environ.get("REGAIN_RUN_DIR")
    if not folder:
        folder = str(Path("runs") / name / time.strftime("%Y%m%d-%H%M%S"))
    return Path(folder)


def build(task: Any, arguments: list[str], callbacks: list[Callback]) -> RunCLI:
    """Parse the configurations and build trainer, model and data.

    Raises:
        InputError: A key, type or value is wrong.
    """
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
    except (ArgumentError, ValueError, TypeError) as error:
        # Each layer checks its values by itself when it is built, and names them.
        raise InputError(" ".join(str(error).split())) from error


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
    folder = run_folder(options, name)
    speed = SpeedMonitor()
    terminal = sys.stdout.isatty()
    progress = ProgressBar() if terminal else EpochLines()
    callbacks: list[Callback] = [speed, progress, *checkpoints(folder), *further]
    cli = build(
        task,
        [
            *(part for config in stack for part in ("--config", config)),
            f"--seed_everything={options.seed}",
            f"--data.source={options.data}",
            f"--trainer.devices={options.devices}",
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
    trainer.callbacks.insert(0, results)
    folder.mkdir(parents=True, exist_ok=True)
    # Processes that the trainer starts for further devices run this same command.
    os.environ["REGAIN_RUN_DIR"] = str(folder)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule)
        if not options.no_test:
            best = str(folder / "best.ckpt")
            trainer.test(datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    finally:
        os.environ.pop("REGAIN_RUN_DIR")
        close_run(trainer.logger, failed=sys.exc_info()[0] is not None)
    report("val" if options.no_test else "test", trainer.callback_metrics, folder, trainer.logger)


def close_run(logger: Any, failed: bool) -> None:
    """Close the W&B run, if one is open, so that the next run of this process opens its own."""
    if hasattr(logger, "close"):
        logger.close(failed)


@rank_zero_only
def report(split: str, scores: Mapping[str, Any], folder: Path, logger: Any) -> None:
    """Print the score, the run's folder, and how to look at it."""
    accuracy, loss, ece = (float(scores[f"{split}/{name}"]) for name in ("acc", "loss", "ece"))
    title = {"test": "test", "val": "last validation"}[split]
    print(
        f"{title} accuracy {100 * accuracy:.2f} %  (loss {loss:.3f}, calibration error {ece:.3f})"
    )
    print(f"run in {folder}")
    if getattr(logger, "unpublished", None):
        look = shlex.join(["wandb", "leet", str(logger.unpublished)])
        print(f"look at it: {look}, or publish it: {logger.sync_command}")
    else:
        print(f"look at it on your W&B page, or in {folder / 'metrics.json'}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can mend is one line and exit code 2."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tasks").setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in SETTLED:
        warnings.filterwarnings("ignore", message=message)
    try:
        train(*parse(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: no space left on the device: {error.filename or 'disk'}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
