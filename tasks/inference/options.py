"""Command-line options that the commands for trained models share."""

import argparse


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add `--trust`, which may be repeated."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="IMPORT_PATH",
        help="import path of code that a checkpoint names and that may be run",
    )
