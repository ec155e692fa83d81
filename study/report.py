"""What a study leaves behind: its page, and its report in W&B.

`python -m study.report --study speech-builtin` writes them anew from the runs that are there.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any

from study.page import write_page
from study.plan import load_study, study_folder
from study.publish import publish
from study.results import Collection, collect
from study.state import read_state
from tasks.errors import InputError


def write_report(collection: Collection, entity: str | None, say: Callable[..., Any]) -> None:
    """Write the page of a study, and its report in W&B.

    Raises:
        InputError: No run of the study is complete.
    """
    file = collection.study.folder / "study.html"
    write_page(collection, file)
    read_state(collection.study.folder)
    publish(collection, entity, say)
    say(f"look at it: {file}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can mend is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m study.report", allow_abbrev=False)
    parser.add_argument("--study", required=True, help="name in runs/studies, or a folder in runs")
    parser.add_argument("--entity", help="W&B team or user; default your own")
    options = parser.parse_args(arguments)
    try:
        collection = collect(load_study(study_folder(options.study)))
        write_report(collection, options.entity, print)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
