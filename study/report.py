"""What a study leaves behind: its page."""

from collections.abc import Callable
from typing import Any

from study.page import write_page
from study.results import Collection


def write_report(collection: Collection, say: Callable[..., Any]) -> None:
    """Write the page of a study."""
    file = collection.study.folder / "study.html"
    write_page(collection, file)
    say(f"look at it: {file}")
