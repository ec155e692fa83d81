"""The short options of the command line, and its help."""

import argparse
import sys
import textwrap

from jsonargparse import set_parsing_settings

from regain.dropoutkinds import DROPOUT_KINDS
from regain.normkinds import NORM_KINDS
from tasks.data.sources import source_names
from tasks.lookup import find_task, task_names
from tasks.run.build import RunCLI
from tasks.run.presets import preset_names

PROGRAM = "python -m tasks.train"


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the short options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --task TASK [options] [--KEY=VALUE ...]",
        description="Train, validate and test one model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="with --task: all keys too")
    parser.add_argument("--task", help="a task below, package.module:Task or file.py:Task")
    parser.add_argument("--reg", default="both", help="a preset below, or a YAML file [both]")
    parser.add_argument(
        "--data",
        default="builtin",
        help="a data set below, a path, a hub id, package.module:function or file.py:function "
        "[builtin]",
    )
    parser.add_argument("--seed", default="0", help="of weights, splits, order and masks [0]")
    parser.add_argument("--devices", default="", help="number of GPUs or processes a machine")
    parser.add_argument("--nodes", default="", help="number of machines")
    parser.add_argument(
        "--strategy", default="auto", help="auto, ddp, fsdp or another one of Lightning's [auto]"
    )
    parser.add_argument("--run_dir", help="folder of the run [runs/NAME/TIME]")
    parser.add_argument(
        "--resume",
        default="",
        help="folder of an interrupted run to continue; auto: --run_dir, or the newest such run",
    )
    parser.add_argument(
        "--logger",
        default="",
        help="loggers, one or several of wandb, tensorboard, csv and mlflow [wandb]",
    )
    parser.add_argument("--no_test", action="store_true", help="do not read the test split")
    return parser


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split off the short options; LightningCLI gets the other arguments.

    With `--help` it prints the help and exits.
    """
    parser = options_parser()
    options, further = parser.parse_known_args(arguments)
    if options.help:
        parser.epilog = choices()
        parser.print_help()
        if options.task:
            print_keys(options.task)
        sys.exit()
    if not options.task:
        parser.error(f"--task is missing: {', '.join(task_names())}, or a task of your own")
    return options, further


def choices() -> str:
    """List the entries of the registries and of `configs`."""
    tasks = {name: find_task(name) for name in task_names()}
    lists = {
        "tasks": list(tasks),
        "presets (--reg)": preset_names("reg"),
        **{f"data of {name}": source_names(task.data_class) for name, task in tasks.items()},
        **{
            f"models of {name} (--model.arch)": task.models.names()
            for name, task in tasks.items()
            if task.models is not None
        },
        "dropout kinds (--model.reg.dropout_kind)": DROPOUT_KINDS.names(),
        "norms (--model.reg.normalization)": ["none", *NORM_KINDS.names()],
    }
    return "\n".join(
        textwrap.fill(
            f"{what}: {', '.join(names)}", 100, subsequent_indent="  ", break_on_hyphens=False
        )
        for what, names in lists.items()
    )


def print_keys(name: str) -> None:
    """Print all keys of a task's configuration with their documentation."""
    # jsonargparse reads the source code of all classes, which takes a second.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    task = find_task(name)
    RunCLI(
        task,
        task.data_class,
        parser_kwargs={"prog": f"{PROGRAM} --task {name}", "description": "All keys:"},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        run=False,
        args=["--help"],
    )
