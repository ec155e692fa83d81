"""What the pages say runs: their code, their lines, their links."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from tasks.train import RunCLI, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language):
    """All code of a language on all pages, named by page and place."""
    for page in PAGES:
        for place, (kind, code) in enumerate(BLOCK.findall(page.read_text())):
            if kind == language:
                yield pytest.param(code, id=f"{page.name}-{place}")


# The README's second one needs a trained checkpoint.
@pytest.mark.parametrize(
    "code", [b for b in blocks("python") if "load_from_chec" not in b.values[0]]
)
def test_code_runs(code):
    exec(compile(code, "page", "exec"), {})


def options():
    """Every option of a run that a page has in a table or in a text, with its page."""
    for page in PAGES:
        for value in re.findall(r"`(--(?:model|trainer|data)\.[^`]+)`", page.read_text()):
            # A whole line, and not the beginning of one.
            if "=" in value and not value.endswith("=") and "..." not in value:
                yield pytest.param(value, id=f"{page.name} {value}")


@pytest.mark.parametrize("line", options())
def test_a_line_is_one_that_some_task_takes(line, capsys, monkeypatch):
    taken = []

    class ParsedError(Exception):
        pass

    def stop(self):
        taken.append(self.config)
        raise ParsedError

    # Parsed in full, and not run.
    monkeypatch.setattr(RunCLI, "instantiate_classes", stop)
    for task in ("vision", "speech", "nlp"):
        with contextlib.suppress(ParsedError, SystemExit):
            main(["--task", task, "--reg", "none", *shlex.split(line)])
    assert taken, capsys.readouterr().err


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(text.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(BLOCK, "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target
