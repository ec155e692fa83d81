"""What a study leaves behind: its page."""

from collections.abc import Callable
from typing import Any

from study.results import Collection


def write_report(collection: Collection, say: Callable[..., Any]) -> None:
    """Write the page of a study."""
    say(f"page of {collection.study.folder}")
