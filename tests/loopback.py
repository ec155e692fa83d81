"""A W&B server on the loopback device: it answers the few calls that a client needs, or fails."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {
    "__typename": "Project",
    "id": "P",
    "name": "regain",
    "entityName": "team",
    "entity": {"id": "E", "name": "team"},
    "createdAt": "2026-01-01T00:00:00",
    "isBenchmark": False,
    "user": None,
}


class Server(ThreadingHTTPServer):
    """Keeps what it was told: calls by their name, uploads by their path, rows by their step.

    `fails` says how each request fails: a status code that answers it, "silent" for no answer,
    "gone" for a cut connection, None for none; `healthy_paths` are answered all the same.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploads: dict[str, bytes] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.received: list[str] = []
        self.refused: set[str] = set()
        self.fails: int | str | None = None
        self.healthy_paths: set[str] = set()
        self.closing = threading.Event()
        self.has_rows = threading.Event()

    def wait_for_rows(self) -> None:
        """Return when the first rows have come."""
        assert self.has_rows.wait(60), "no row has come"

    def handle_error(self, *_: Any) -> None:
        """A client that ends cuts its connections off."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def told(self, name: str) -> list[dict[str, Any]]:
        """All that was said in the calls of a name."""
        return [variables for called, variables in self.calls if called == name]

    def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        given = said.get("input", said)

        def place(file: str) -> dict[str, Any]:
            return {
                "id": "F",
                "name": file,
                "displayName": file,
                "storagePath": "S",
                "uploadUrl": f"{self.url}/upload/{file}",
                "uploadHeaders": [],
                "artifact": {"id": "A"},
            }

        manifest = {"artifactManifest": {"id": "M", "file": place("wandb_manifest.json")}}
        bucket = {"id": "R", "name": said.get("name"), "config": "{}", "project": PROJECT}
        nodes = [{"node": place(file["name"])} for file in given.get("artifactFiles", [])]
        files = [place(file) for file in said.get("files", [])]
        new = {"id": "A", "state": "PENDING", "artifactSequence": {"id": "S"}}
        view = {"id": "W", "name": said.get("name"), "spec": said.get("spec"), "project": PROJECT}
        answers: dict[str, Any] = {
            "Viewer": {"viewer": {"id": "V", "entity": "team", "username": "me", "flags": "{}"}},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "RunResumeStatus": {"model": None},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateRunFiles": {
                "createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}
            },
            "ArtifactType": {"project": {"artifact": None}},
            "CreateArtifact": {"createArtifact": {"artifact": new}},
            "CreateArtifactManifest": {"createArtifactManifest": manifest},
            "UpdateArtifactManifest": {"updateArtifactManifest": manifest},
            "CreateArtifactFiles": {"createArtifactFiles": {"files": {"edges": nodes}}},
            "CommitArtifact": {"commitArtifact": {"artifact": {"id": "A", "digest": "D"}}},
            "GetProjects": {
                "models": {
                    "pageInfo": {"__typename": "PageInfo", "hasNextPage": False, "endCursor": ""},
                    "edges": [{"node": PROJECT}],
                }
            },
            "upsertView": {"upsertView": {"view": view, "inserted": True}},
            "UpsertView2": {"upsertView": {"view": view, "inserted": True}},
        }
        return {"data": answers.get(name, {})}


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
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(f"{self.requestline} {content.decode(errors='replace')}")
        return content

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.removeprefix("/upload/")] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("/file_stream"):
            self.take_rows(json.loads(body))
        if self.path != "/graphql":
            self.reply({})
            return
        content = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
        name = found.group(1) if found else ""
        variables = content.get("variables") or {}
        self.server.calls.append((name, variables))
        if name in self.server.refused:
            self.reply({"errors": [{"message": f"{name} is not allowed"}]}, 400)
        else:
            self.reply(self.server.answer(name, variables))

    def take_rows(self, streamed: dict[str, Any]) -> None:
        history = (streamed.get("files") or {}).get("wandb-history.jsonl", {})
        for line in history.get("content", []):
            row = json.loads(line)
            self.server.rows[row["_step"]] = row
            self.server.has_rows.set()

    def log_message(self, *_: Any) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Listen for as long as the context lasts."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
