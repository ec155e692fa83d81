"""Index of all studies, advices, searches and runs on this machine, served on localhost.

`python -m study.dashboard` also serves the folder `runs`, so that its pages can be opened.
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

from study.advising.records import ADVICE
from study.page import templates
from study.state import read_state, stored_state
from tasks.errors import InputError

RUNS = Path("runs")
# Maximum number of results read for one page.
MOST_FILES_READ = 50
# Fields of a single run in the index.
RUN_FIELDS = ("name", "test", "seconds")
# Errors of a broken file: it must not hide the others.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
OUTSIDE = "not shown: a link to outside this folder"
# Names of this machine. In a DNS rebinding attack the Host header is another name.
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


def studies(folder: Path) -> list[dict[str, Any]]:
    """List the studies in a folder of runs, the newest first, each with its verdict.

    Studies without a stored state are read until a limit, so that the page loads within a second;
    the next page reads further ones.
    """
    found = []
    left = MOST_FILES_READ
    for file in _newest(folder.glob("studies/*/study.yaml")):
        page = file.parent / "study.html"
        entry: dict[str, Any] = {"name": file.parent.name, "progress": "", "verdict": OUTSIDE}
        found.append(entry)
        if not is_inside(file, folder):
            continue
        entry["link"] = _link(page, folder) if page.exists() else None
        # Until the study has a page; a study that runs writes it.
        entry["runs"] = [] if page.exists() else _runs(file.parent, folder)
        state = stored_state(file.parent)
        if state is None and left > 0:
            state = read_state(file.parent)
            left -= len(state["files"])
        entry |= state or {"verdict": "not read yet: reload this page"}
    return found


def _runs(study: Path, folder: Path) -> list[dict[str, str]]:
    """List the complete runs of a study with links to their results."""
    files = sorted(study.glob("*/metrics.json"))
    return [{"name": file.parent.name, "link": _link(file, folder)} for file in files]


def searches(folder: Path) -> list[dict[str, Any]]:
    """List the complete searches."""
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
        except READ_ERRORS as error:
            entry = {"name": file.parent.name, "best": f"cannot be read: {error}"}
        found.append(entry)
    return found


def advices(folder: Path) -> list[dict[str, Any]]:
    """List the advices, the newest first, each with its sentence."""
    found = []
    for file in _newest(folder.glob(f"advice/*/{ADVICE}")):
        entry: dict[str, Any] = {"name": file.parent.name}
        found.append(entry)
        page = file.parent / "advice.html"
        try:
            content = json.loads(_text(file, folder))
            recommended = content["recommendation"]
            entry["sentence"] = "no recommendation yet"
            if recommended is not None:
                entry["sentence"] = str(recommended["sentence"])
            entry["minutes"] = f"{content['seconds'] / 60:.0f} minutes"
            entry["link"] = _link(page, folder) if page.exists() else None
        except READ_ERRORS as error:
            entry["sentence"] = f"cannot be read: {error}"
    return found


def single_runs(folder: Path) -> list[dict[str, Any]]:
    """List the runs outside of studies, advices and searches."""
    found = []
    for file in _newest(folder.glob("*/*/metrics.json")):
        if file.parts[len(folder.parts)] in ("studies", "advice", "sweeps"):
            continue
        try:
            record = _run_fields(file, folder)
            entry = {
                "name": record["name"],
                "link": _link(file, folder),
                "accuracy": f"{100 * record['test']['acc']:.2f}",
                "minutes": f"{record['seconds']['all'] / 60:.1f}",
                "folder": file.parent.name,
            }
        except READ_ERRORS as error:
            entry = {"name": f"{file.parent}: cannot be read: {error}"}
        found.append(entry)
    return found


def _run_fields(file: Path, folder: Path) -> dict[str, Any]:
    """Read the fields for the index from the first lines of a result."""
    if not is_inside(file, folder):
        raise ValueError(OUTSIDE)
    found: dict[str, Any] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            # Each top-level key is on its own line.
            key, _, value = line.partition(": ")
            if key.strip('"') in RUN_FIELDS:
                found[key.strip('"')] = json.loads(value.rstrip().removesuffix(","))
            if len(found) == len(RUN_FIELDS):
                return found
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _text(file: Path, folder: Path) -> str:
    if not is_inside(file, folder):
        raise ValueError(OUTSIDE)
    return file.read_text(encoding="utf-8")


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, with all links resolved."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        # A link to itself, or an invalid file name.
        return False


def _newest(files: Iterable[Path]) -> list[Path]:
    timed = []
    for file in files:
        # It may have vanished, or be a broken link.
        with contextlib.suppress(OSError):
            timed.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(timed, reverse=True)]


def _link(file: Path, folder: Path) -> str:
    return "/" + quote(str(file.relative_to(folder)))


def index(folder: Path) -> str:
    """Write the index page."""
    found = studies(folder)
    return (
        templates()
        .get_template("index.html")
        .render(
            name="regain",
            folder=str(folder.resolve()),
            studies=found,
            under_way=any(one.get("done", 0) < one.get("size", 0) for one in found),
            advices=advices(folder),
            searches=searches(folder),
            runs=single_runs(folder),
        )
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the index at `/`, made for each request, and the files of `runs`."""

    def parse_request(self) -> bool:
        """Reject requests whose Host is not a name of this machine (DNS rebinding)."""
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and LOCAL_HOST.fullmatch(hosts[0].strip()):
            return True
        self.send_error(HTTPStatus.FORBIDDEN, "Open it as http://127.0.0.1 or http://localhost")
        return False

    def send_head(self) -> Any:
        """Send the headers and return the file of the body."""
        root = Path(self.directory)
        if urlsplit(self.path).path != "/":
            return super().send_head() if self._is_served(root) else None
        content = index(root).encode("utf-8", "replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)

    def _is_served(self, root: Path) -> bool:
        """Whether a path is a folder or regular file in `runs`; if not, send 404."""
        path = Path(self.translate_path(self.path))
        # For a folder, its index page is served.
        served = (path, path / "index.html", path / "index.htm")
        # A name can be too long for a file.
        with contextlib.suppress(OSError):
            if all(is_inside(one, root) for one in served) and (path.is_file() or path.is_dir()):
                return True
        self.send_error(HTTPStatus.NOT_FOUND, "File not found")
        return False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - As the base calls it.
        """Do not print requests."""


def serve(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Open the server on localhost.

    Raises:
        InputError: The port is in use or not valid.
    """
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"PORT={port} cannot be used ({error}); choose another PORT") from error


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user error is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m study.dashboard",
        description="Serve an index of all studies and runs on localhost.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=8000, help="port on localhost [8000]")
    options = parser.parse_args(arguments)
    RUNS.mkdir(exist_ok=True)
    try:
        server = serve(RUNS, options.port)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"all studies and runs: http://127.0.0.1:{server.server_port}/ (Ctrl-C to stop)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
