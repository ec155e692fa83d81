"""Write the page and the W&B report of a study from its complete runs.

`python -m study.report --study speech-builtin`
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from study.gain_table import GainTable, gain_tables
from study.page import PAGE_FILE, write_page
from study.plan import effect_of, load_study, study_folder
from study.publish import publish
from study.results import Collection, collect
from study.state import store_state
from tasks.errors import InputError


def write_report(
    collection: Collection,
    tables: Sequence[GainTable],
    entity: str | None,
    say: Callable[..., Any],
) -> None:
    """Write the page, the stored state and the W&B report of a study.

    Raises:
        InputError: No run of the study is complete.
    """
    file = collection.study.folder / PAGE_FILE
    write_page(collection, tables, file)
    store_state(collection, tables)
    if collection.study.uses_wandb:
        publish(collection, tables, entity, say)
    say(f"page of the study: {file}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user error is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m study.report",
        description="Rewrite the pages and the W&B report of a study.",
        allow_abbrev=False,
    )
    parser.add_argument("--study", required=True, help="name in runs/studies, or a path in runs")
    parser.add_argument("--entity", help="W&B team or user [your own]")
    parser.add_argument(
        "--effect", default="", help="smallest effect of interest, in points [as before]"
    )
    options = parser.parse_args(arguments)
    try:
        study = load_study(study_folder(options.study))
        if options.effect:
            study = replace(study, effect=effect_of(options.effect))
            study.save()
        collection = collect(study)
        write_report(collection, gain_tables(collection), options.entity, print)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
