"""An index of all studies, searches and runs on this machine, served on localhost.

`python -m study.dashboard` serves the folder `runs` itself, so that every page in it can be opened.
"""

import argparse
import functools
import http.server
import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from study.page import PAGE
from study.plan import load_study
from study.results import collect
from study.tables import tables, verdict
from tasks.errors import InputError

RUNS = Path("runs")


def studies(folder: Path) -> list[dict[str, Any]]:
    """List the studies in a folder of runs, the newest first, each with its verdict."""
    found = []
    for file in _newest(folder.glob("studies/*/study.yaml")):
        page = file.parent / "study.html"
        entry: dict[str, Any] = {"name": file.parent.name, "state": "", "verdict": ""}
        entry["link"] = _link(page, folder) if page.exists() else None
        try:
            collection = collect(load_study(file.parent))
        except InputError as error:
            entry["verdict"] = str(error)
        else:
            study = collection.study
            planned = len(list(study.arms())) * len(study.seeds)
            entry["state"] = f"{collection.done} of {planned} runs"
            if collection.errors:
                entry["state"] += f", {len(collection.errors)} failed"
            entry["verdict"] = " ".join(verdict(table) for table in tables(collection))
        found.append(entry)
    return found


def searches(folder: Path) -> list[dict[str, Any]]:
    """List the searches that have come to an end."""
    found = []
    for file in _newest(folder.glob("sweeps/*/trials.json")):
        try:
            content = json.loads(file.read_text())
            mean, half = content["expected"]
            best = ", ".join(f"{key} {value}" for key, value in content["best"].items())
            entry = {
                "name": file.parent.name,
                "link": _link(file.parent / "sweep.html", folder),
                "trials": len(content["trials"]),
                "best": best,
                "expected": f"{100 * mean:.2f} ± {100 * half:.2f}",
            }
        except (ValueError, KeyError, TypeError) as error:
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
            record = json.loads(file.read_text())
            entry = {
                "name": record["name"],
                "link": _link(file, folder),
                "accuracy": f"{100 * record['test']['acc']:.2f}",
                "minutes": f"{record['seconds']['all'] / 60:.1f}",
                "folder": file.parent.name,
            }
        except (ValueError, KeyError, TypeError) as error:
            entry = {"name": f"{file.parent}: cannot be read: {error}"}
        found.append(entry)
    return found


def _newest(files: Any) -> list[Path]:
    return sorted(files, key=lambda file: -file.stat().st_mtime)


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

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/":
            super().do_GET()
            return
        content = index(Path(self.directory)).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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
