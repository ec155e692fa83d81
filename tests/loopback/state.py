"""What the server keeps: runs, artifacts, views and sweeps."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Artifact:
    """A version of an artifact; `aliases` says which ones each of its collections gives it."""

    id: str
    project: str
    name: str
    type: str
    digest: str
    client_id: str
    description: str | None
    metadata: dict[str, Any]
    created_by: str
    # Collection, as PROJECT/NAME, to aliases; the first one is its own.
    aliases: dict[str, list[str]]
    state: str = "PENDING"
    version: int | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    # Content by path in the artifact.
    files: dict[str, bytes] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)


@dataclass
class Run:
    """A run, with everything that a client has sent about it."""

    name: str
    entity: str
    project: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    state: str = "running"
    exit_code: int | None = None
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    # Lines of each streamed file, by the name of the file and their number.
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    # Content of uploaded files.
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[Artifact] = field(default_factory=list)
    logged: list[Artifact] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"run-{self.name}"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, without wandb's own part."""
        return {key: entry["value"] for key, entry in self.raw_config.items() if key != "_wandb"}

    def streamed(self, file: str) -> list[str]:
        """The lines of a streamed file."""
        lines = self.lines.get(file, {})
        return [lines[number] for number in sorted(lines)]

    @property
    def history(self) -> list[dict[str, Any]]:
        """All logged rows."""
        return [json.loads(line) for line in self.streamed("wandb-history.jsonl")]

    @property
    def console(self) -> str:
        """The output of the run."""
        return "".join(self.streamed("output.log"))

    def stream(self, files: dict[str, Any]) -> None:
        """Take parts of streamed files."""
        for name, part in files.items():
            lines = self.lines.setdefault(name, {})
            for number, line in enumerate(part["content"], start=part["offset"]):
                lines[number] = line
            if name == "wandb-summary.json":
                self.summary = json.loads(part["content"][-1])

    def end(self, exit_code: int) -> None:
        """Take the exit code."""
        self.exit_code = exit_code
        self.state = "failed" if exit_code else "finished"


@dataclass
class View:
    """A report or a workspace; `specs` are all that it has had, the last one being the present."""

    id: str
    type: str
    entity: str
    project: str
    name: str | None
    display_name: str | None
    description: str | None
    specs: list[str]

    @property
    def spec(self) -> dict[str, Any]:
        """The present content."""
        found: dict[str, Any] = json.loads(self.specs[-1])
        return found


@dataclass
class Sweep:
    """A sweep, whose trials have the parameters that the test chose."""

    name: str
    entity: str
    project: str
    config: str
    state: str = "PENDING"
    # Parameters that agents have not fetched yet, and the runs of those that they have.
    waiting: list[dict[str, Any]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
