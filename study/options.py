"""The options that several of `study.run`, `study.sweep` and `study.advise` have."""

import argparse


def training_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make a parser of a command that starts trainings, with the options of all such commands.

    Args:
        program: Module of the command.
        description: What it does.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--task",
        required=True,
        help="vision, speech, nlp, package.module:Class or path/to/file.py:Class",
    )
    parser.add_argument(
        "--data", default="builtin", help="builtin, a name, a path or a hub id [builtin]"
    )
    parser.add_argument("--logger", default="", help="loggers of every run [wandb]")
    parser.add_argument(
        "--jobs", default="auto", help="parallel runs [auto: one per GPU, or one per core]"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run [1]")
    return parser


def add_design_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the design of a comparison, and its recipe.

    Args:
        parser: The parser.
        default: What is compared without a design.
    """
    parser.add_argument(
        "--design",
        default="",
        help="ablation: --reg and it without each of its parts; kinds: it without each kind of "
        "regularizer; factorial: dropout and normalization of --reg together, each alone, and "
        f"neither [compare {default}]",
    )
    parser.add_argument("--reg", default="", help="recipe of a design [full, or both]")
