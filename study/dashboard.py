"""An index of all studies, searches and runs on this machine, served on localhost.

`python -m study.dashboard` serves the folder `runs` itself, so that every page in it can be opened.
"""

import argparse
import contextlib
import functools
import http.server
import io
import json
import re
import sys
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup

from study.page import PAGE
from study.state import read_state, stored_state
from tasks.errors import InputError

RUNS = Path("runs")
# Files of studies that are read for one page.
READ_AT_A_TIME = 50
# What the index shows of a single run.
SHOWN = ("name", "test", "seconds")
# What a broken file can raise: it must not hide all others.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
OUTSIDE = "not shown: a link leads out of this folder"
# Names of this machine. A page of another site whose name is made to lead here has that name.
OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


def studies(folder: Path) -> list[dict[str, Any]]:
    """List the studies in a folder of runs, the newest first, each with its verdict.

    Of studies whose state is not stored, only so many runs are read at a time that a page is made
    within a second; the next page has more of them.
    """
    found = []
    left = READ_AT_A_TIME
    for file in _newest(folder.glob("studies/*/study.yaml")):
        page = file.parent / "study.html"
        entry: dict[str, Any] = {"name": file.parent.name, "progress": "", "verdict": OUTSIDE}
        found.append(entry)
        if not inside(file, folder):
            continue
        entry["link"] = _link(page, folder) if page.exists() else None
        state = stored_state(file.parent)
        if state is None and left > 0:
            state = read_state(file.parent)
            left -= len(state["files"])
        entry |= state or {"verdict": "not read yet: reload this page"}
    return found


def searches(folder: Path) -> list[dict[str, Any]]:
    """List the searches that have come to an end."""
    found = []
    for file in _newest(folder.glob("sweeps/*/trials.json")):
        try:
            content = json.loads(_text(file, folder))
            mean, half = content["expected"]
            best = ", ".join(f"{key} {value}" for key, value in content["best"].items())
            entry = {
                "name": file.parent.name,
                "link": _link(file.parent / "sweep.html", folder),
                "trials": len(content["trials"]),
                "best": best,
                "expected": f"{100 * mean:.2f} ± {100 * half:.2f}",
            }
        except UNREADABLE as error:
            entry = {"name": file.parent.name, "best": f"cannot be read: {error}"}
        found.append(entry)
    return found


def single_runs(folder: Path) -> list[dict[str, Any]]:
    """List the runs that belong to no study or search."""
    found = []
    for file in _newest(folder.glob("*/*/metrics.json")):
        if file.parts[len(folder.parts)] in ("studies", "sweeps"):
            continue
        try:
            record = _head(file, folder)
            entry = {
                "name": record["name"],
                "link": _link(file, folder),
                "accuracy": f"{100 * record['test']['acc']:.2f}",
                "minutes": f"{record['seconds']['all'] / 60:.1f}",
                "folder": file.parent.name,
            }
        except UNREADABLE as error:
            entry = {"name": f"{file.parent}: cannot be read: {error}"}
        found.append(entry)
    return found


def _head(file: Path, folder: Path) -> dict[str, Any]:
    """Read what the index shows of a run: of its results, the first lines and not the long ones."""
    if not inside(file, folder):
        raise ValueError(OUTSIDE)
    found: dict[str, Any] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            # Results are written with a line for each part.
            key, _, value = line.partition(": ")
            if key.strip('"') in SHOWN:
                found[key.strip('"')] = json.loads(value.rstrip().removesuffix(","))
            if len(found) == len(SHOWN):
                return found
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _text(file: Path, folder: Path) -> str:
    if not inside(file, folder):
        raise ValueError(OUTSIDE)
    return file.read_text(encoding="utf-8")


def inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, once all links are followed."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        # A link to itself, or a name that no file can have.
        return False


def _newest(files: Iterable[Path]) -> list[Path]:
    timed = []
    for file in files:
        # It may have vanished, or be a link to nowhere.
        with contextlib.suppress(OSError):
            timed.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(timed, reverse=True)]


def _link(file: Path, folder: Path) -> str:
    return "/" + quote(str(file.relative_to(folder)))


def index(folder: Path) -> str:
    """Write the index page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True
    )
    return environment.get_template("index.html").render(
        css=Markup((PAGE / "study.css").read_text()),
        folder=str(folder.resolve()),
        studies=studies(folder),
        searches=searches(folder),
        runs=single_runs(folder),
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the index at `/`, made anew each time, and the files of `runs` below it."""

    def parse_request(self) -> bool:
        """Refuse what does not ask for this machine by one of its own names (DNS rebinding)."""
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and OWN_HOST.fullmatch(hosts[0].strip()):
            return True
        self.send_error(HTTPStatus.FORBIDDEN, "Open it as http://127.0.0.1 or http://localhost")
        return False

    def send_head(self) -> Any:
        """Send the head of an answer, and return the file that is its body."""
        root = Path(self.directory)
        if urlsplit(self.path).path != "/":
            return super().send_head() if self._serves(root) else None
        content = index(root).encode("utf-8", "replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)

    def _serves(self, root: Path) -> bool:
        """Say whether a path is that of a folder or a plain file in `runs`; if not, answer so."""
        path = Path(self.translate_path(self.path))
        # In place of a folder, its page is served.
        served = (path, path / "index.html", path / "index.htm")
        # A name that is too long for a file is none.
        with contextlib.suppress(OSError):
            if all(inside(one, root) for one in served) and (path.is_file() or path.is_dir()):
                return True
        self.send_error(HTTPStatus.NOT_FOUND, "File not found")
        return False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - As the base calls it.
        """Keep the terminal for what matters."""


def serve(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Open the server, for this machine only.

    Raises:
        InputError: The port is taken, or there is none of this number.
    """
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"PORT={port} cannot be used ({error}); choose another PORT") from error


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can mend is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m study.dashboard", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000, help="of the server on localhost")
    options = parser.parse_args(arguments)
    RUNS.mkdir(exist_ok=True)
    try:
        server = serve(RUNS, options.port)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"all studies and runs: http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
