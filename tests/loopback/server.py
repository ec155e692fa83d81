"""The HTTP side: GraphQL, streams of rows, uploads and downloads, and failures of each kind."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.loopback.answers import Answers
from tests.loopback.graph import answer


class Server(ThreadingHTTPServer, Answers):
    """Keeps what clients send, and answers their queries from it.

    What to look at: `runs` by their ids, `artifacts`, `views` by their ids, `sweeps` by their
    names, `charts`; also `calls`, all calls by their names, `uploads` by their file names, and
    `rows` of all runs by their step.

    `fails` says how each request fails: a status code that answers it, "silent" for no answer,
    "gone" for a cut connection, None for none; `healthy_paths` are answered all the same. Calls
    named in `refused` are answered with an error.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)
        Answers.__init__(self, f"http://127.0.0.1:{self.server_port}")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploads: dict[str, bytes] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.received: list[str] = []
        self.refused: set[str] = set()
        # Calls that the schema does not have: errors of this server, not of the client.
        self.unknown: list[str] = []
        self.fails: int | str | None = None
        self.healthy_paths: set[str] = set()
        self.closing = threading.Event()
        self.has_rows = threading.Event()
        # One request at a time changes the state.
        self.lock = threading.Lock()

    def wait_for_rows(self) -> None:
        """Return when the first rows have come."""
        assert self.has_rows.wait(240), "no row has come"

    def handle_error(self, *_: Any) -> None:
        """A client that ends cuts its connections off."""

    def told(self, name: str) -> list[dict[str, Any]]:
        """Variables of all calls with this name."""
        return [variables for called, variables in self.calls if called == name]


class Handler(BaseHTTPRequestHandler):
    """Takes one request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def parse_request(self) -> bool:
        """Fail the request, if that is what the server does now."""
        if not super().parse_request():
            return False
        failure = self.server.fails
        if failure is None or self.path in self.server.healthy_paths:
            return True
        self.body()
        if isinstance(failure, int):
            self.reply({"errors": [{"message": f"failing with {failure}"}]}, failure)
            return False
        if failure == "silent":
            self.server.closing.wait()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        return False

    def reply(self, content: Any, code: int = 200) -> None:
        self.send(json.dumps(content).encode(), "application/json", code)

    def send(self, body: bytes, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(f"{self.requestline} {content.decode(errors='replace')}")
        return content

    def do_GET(self) -> None:
        place, _, key = self.path.lstrip("/").partition("/")
        if place != "blob":
            self.reply({})
        elif (content := self.server.blobs.get(key)) is None:
            self.reply({"errors": [{"message": f"no content at {self.path}"}]}, 404)
        else:
            self.send(content, "application/octet-stream")

    def do_PUT(self) -> None:
        content = self.body()
        # /upload/KEY/NAME
        _, _, key, name = self.path.split("/", 3)
        with self.server.lock:
            self.server.uploads[unquote(name)] = content
            self.server.take_upload(key, content)
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            if self.path.endswith("/file_stream"):
                self.take_stream(json.loads(body))
                self.reply({})
            elif self.path == "/graphql":
                self.call(json.loads(body))
            else:
                self.reply({})

    def call(self, content: dict[str, Any]) -> None:
        found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
        name = found.group(1) if found else ""
        variables = content.get("variables") or {}
        self.server.calls.append((name, variables))
        if name in self.server.refused:
            self.reply({"errors": [{"message": f"{name} is not allowed"}]}, 400)
            return
        data, errors = answer(content["query"], variables, self.server)
        self.server.unknown += [f"{name}: {error}" for error in errors]
        if errors:
            self.reply({"errors": [{"message": error} for error in errors]}, 400)
        else:
            self.reply({"data": data})

    def take_stream(self, streamed: dict[str, Any]) -> None:
        """Take rows, output and the end of a run: /files/ENTITY/PROJECT/RUN/file_stream."""
        files = streamed.get("files") or {}
        run = self.server.runs.get(self.path.split("/")[-2])
        if run is not None:
            run.stream(files)
            if streamed.get("complete"):
                run.end(streamed.get("exitcode") or 0)
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            row = json.loads(line)
            self.server.rows[row["_step"]] = row
            self.server.has_rows.set()

    def log_message(self, *_: Any) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Listen for as long as the context lasts; a call that the server does not know is an error."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
        assert not server.unknown, "\n".join(server.unknown)
