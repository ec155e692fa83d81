"""Generated parts of a page: tables, and the lines between `<!-- NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BLOCK = re.compile(r"<!-- (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(page: Path, made: Mapping[str, Sequence[str]]) -> None:
    """Write each block of a page anew.

    Args:
        page: A Markdown file.
        made: The lines of each block.

    Raises:
        KeyError: The page has a block that is not in `made`.
    """

    def block(found: re.Match[str]) -> str:
        # GitHub needs an empty line between a comment and a table.
        lines = "\n".join(made[found["name"]])
        return f"<!-- {found['name']} -->\n\n{lines}\n\n<!-- end -->"

    page.write_text(BLOCK.sub(block, page.read_text()))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table."""
    heads = list(heads)
    made = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return [made[0], "| --- " * len(heads) + "|", *made[1:]]
