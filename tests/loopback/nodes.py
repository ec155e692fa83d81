"""What the server keeps, in the form of W&B's schema; functions are called when they are asked."""

import fnmatch
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.loopback.state import Artifact, Run, Sweep, View

if TYPE_CHECKING:
    from tests.loopback.answers import Answers

Node = dict[str, Any]
TIME = "2026-01-01T00:00:00"
LAST_PAGE = {"hasNextPage": False, "endCursor": None}


def connection(found: list[Any]) -> Node:
    """A list, as one page."""
    edges = [{"node": node, "cursor": str(index)} for index, node in enumerate(found)]
    return {"edges": edges, "pageInfo": LAST_PAGE, "totalCount": len(found)}


def user() -> Node:
    teams = connection([{"name": "team"}])
    return {
        "id": "user",
        "name": "Me",
        "username": "me",
        "email": "me@example.org",
        "admin": False,
        "flags": "{}",
        "entity": "team",
        "deletedAt": None,
        "apiKeys": connection([]),
        "teams": teams,
        "organizations": [],
    }


def entity(server: "Answers", name: str) -> Node:
    return {
        "id": f"entity-{name}",
        "name": name,
        "isTeam": True,
        "available": False,
        "xxhashDigestsEnabled": False,
        "user": None,
        # The registry's entity has the name of the organization.
        "organization": lambda _: {"name": "org", "orgEntity": {"name": "org-entity"}},
        "project": lambda _, name=None, of=name: project(server, of, name),
    }


def project(server: "Answers", of: str, name: str) -> Node:
    def members() -> list[Run]:
        return [run for run in server.runs.values() if run.project == name]

    def found(_: Any, name: str, **__: Any) -> Node | None:
        return run(server, server.runs[name]) if name in server.runs else None

    def chosen(_: Any, filters: str | None = None, **__: Any) -> Node:
        return connection([run(server, one) for one in members() if matches(one, filters)])

    def with_name(_: Any, name: str, project: str = name) -> Node | None:
        one = server.found_artifact(project, name)
        return None if one is None else artifact(server, one)

    def member(_: Any, name: str, project: str = name) -> Node | None:
        one = server.found_artifact(project, name)
        return None if one is None else membership(server, one, project, name.split(":")[0])

    def views(_: Any, viewType: str, viewName: str | None = None, **__: Any) -> Node:
        return connection(
            [
                view(server, one)
                for one in server.views.values()
                if one.project == name and one.type == viewType and viewName in (None, one.name)
            ]
        )

    return {
        "id": f"project-{name}",
        "internalId": "1",
        "name": name,
        "entityName": of,
        "createdAt": TIME,
        "isBenchmark": False,
        "readOnly": False,
        "user": None,
        "entity": lambda _: entity(server, of),
        "runCount": lambda _, filters=None: sum(matches(one, filters) for one in members()),
        "runs": chosen,
        "run": found,
        "bucket": found,
        "sweep": lambda _, sweepName: (
            sweep(server, server.sweeps[sweepName]) if sweepName in server.sweeps else None
        ),
        "artifact": with_name,
        "artifactType": lambda _, name, project=name: artifact_type(server, project, name),
        "artifactCollection": lambda _, name, project=name: collection(server, project, name),
        "artifactCollectionMembership": member,
        "allViews": views,
    }


def matches(one: Run, filters: str | None) -> bool:
    """Whether a run has the given group, type, name, state or sweep."""
    values = {
        "group": one.group,
        "jobType": one.job_type,
        "name": one.name,
        "display_name": one.display_name,
        "state": one.state,
        "sweep": one.sweep,
    }

    def fulfilled(key: str, wanted: Any) -> bool:
        if key in ("$and", "$or"):
            parts = [all(fulfilled(*item) for item in part.items()) for part in wanted]
            return all(parts) if key == "$and" else any(parts)
        if isinstance(wanted, dict):
            return values[key] in wanted["$in"] if "$in" in wanted else values[key] != wanted["$ne"]
        return bool(values[key] == wanted)

    return all(fulfilled(*item) for item in json.loads(filters or "{}").items())


def run(server: "Answers", one: Run) -> Node:
    history, events = "wandb-history.jsonl", "wandb-events.jsonl"

    def sampled(_: Any, specs: list[str]) -> list[list[Node]]:
        """The rows that have all keys of each specification."""
        wanted = [set(json.loads(spec).get("keys", [])) for spec in specs]
        rows = one.history
        return [
            [{key: row[key] for key in keys or row} for row in rows if keys <= row.keys()]
            for keys in wanted
        ]

    def files(_: Any, names: Any = None, pattern: str | None = None, **__: Any) -> Node:
        return connection(
            [
                file(server, one, name)
                for name in one.files
                if not names or name in names
                if pattern is None or fnmatch.fnmatch(name, pattern.replace("%", "*"))
            ]
        )

    def rows(_: Any, minStep: Any = 0, maxStep: Any = None, **__: Any) -> list[str]:
        end = float("inf") if maxStep is None else int(maxStep)
        lines = one.streamed(history)
        return [line for line in lines if int(minStep) <= json.loads(line)["_step"] < end]

    def keys(_: Any) -> Node:
        found = sorted({key for row in one.history for key in row})
        counts = {key: {"typeCounts": [{"type": "number", "count": 1}]} for key in found}
        last = one.history[-1]["_step"] if one.history else -1
        return {"keys": counts, "lastStep": last, "sets": []}

    def tail(name: str) -> Callable[[Any], str]:
        return lambda _: json.dumps(one.streamed(name)[-1:])

    return {
        "id": one.id,
        "name": one.name,
        "projectId": "1",
        "displayName": one.display_name,
        "description": "",
        "notes": one.notes,
        "tags": one.tags,
        "group": one.group,
        "jobType": one.job_type,
        "commit": None,
        "state": one.state,
        "sweepName": one.sweep,
        "readOnly": False,
        "createdAt": TIME,
        "heartbeatAt": TIME,
        "user": user(),
        "exitcode": one.exit_code,
        "stopped": False,
        "shouldStop": False,
        "failed": one.state == "failed",
        "running": one.state == "running",
        "project": lambda _: project(server, one.entity, one.project),
        "config": lambda _: json.dumps(one.raw_config),
        "wandbConfig": lambda _, **__: json.dumps(one.raw_config.get("_wandb", {}).get("value")),
        "summaryMetrics": lambda _: json.dumps(one.summary),
        "systemMetrics": lambda _: (one.streamed(events) or ["{}"])[-1],
        "historyKeys": keys,
        "historyLineCount": lambda _: len(one.streamed(history)),
        "eventsLineCount": lambda _: len(one.streamed(events)),
        "logLineCount": lambda _: len(one.streamed("output.log")),
        "historyTail": tail(history),
        "eventsTail": tail(events),
        "history": rows,
        "sampledHistory": sampled,
        "events": lambda _, **__: one.streamed(events),
        "parquetHistory": lambda _, **__: {"parquetUrls": [], "liveData": one.history},
        "files": files,
        "fileCount": len(one.files),
        "inputArtifacts": lambda _, **__: connection([artifact(server, a) for a in one.used]),
        "outputArtifacts": lambda _, **__: connection([artifact(server, a) for a in one.logged]),
    }


def file(server: "Answers", owner: Run | Artifact, name: str) -> Node:
    """A file of a run or of an artifact that can be read."""
    size = len(owner.files.get(name, b""))
    return {
        "id": f"{owner.id}/{name}",
        "name": name,
        "displayName": name,
        "sizeBytes": size,
        "mimetype": None,
        "md5": None,
        "digest": None,
        "updatedAt": TIME,
        "storagePath": f"storage/{owner.id}/{name}",
        "url": lambda _, **__: server.address(owner, name),
        "directUrl": lambda _: server.address(owner, name),
    }


def artifact_type(server: "Answers", of: str, name: str) -> Node:
    return {
        "id": f"type-{name}",
        "name": name,
        "artifactCollection": lambda _, name: collection(server, of, name),
    }


def collection(server: "Answers", of: str, name: str) -> Node | None:
    """The versions of an artifact, or a list of artifacts that are linked to it."""
    found = server.versions(of, name)
    if not found:
        return None
    own = found[0].project == of and found[0].name == name

    def member(_: Any, aliasName: str) -> Node | None:
        one = server.found_artifact(of, f"{name}:{aliasName}")
        return None if one is None else membership(server, one, of, name)

    return {
        "__typename": "ArtifactSequence" if own else "ArtifactPortfolio",
        "id": f"collection-{of}/{name}",
        "name": name,
        "description": None,
        "createdAt": TIME,
        "updatedAt": TIME,
        "tags": connection([]),
        "digestAlgorithm": None,
        "project": lambda _: project(server, "team", of),
        "defaultArtifactType": {"id": "type", "name": found[0].type},
        "latestArtifact": lambda _: artifact(server, found[-1]),
        "aliases": lambda _, **__: connection(
            [alias for one in found for alias in aliases(server, one, of, name)]
        ),
        "artifactMembership": member,
    }


def aliases(server: "Answers", one: Artifact, of: str, name: str) -> list[Node]:
    return [
        {
            "id": f"{one.id}:{alias}",
            "alias": alias,
            "artifactCollection": lambda _: collection(server, of, name),
        }
        for alias in one.aliases[f"{of}/{name}"]
    ]


def membership(server: "Answers", one: Artifact, of: str, name: str) -> Node:
    return {
        "id": f"{one.id}@{of}/{name}",
        "createdAt": TIME,
        "versionIndex": server.versions(of, name).index(one),
        "aliases": lambda _: aliases(server, one, of, name),
        "artifactCollection": lambda _: collection(server, of, name),
        "artifact": lambda _: artifact(server, one),
        "files": lambda _, names=None, **__: artifact_files(server, one, names),
    }


def artifact_files(server: "Answers", one: Artifact, names: list[str] | None = None) -> Node:
    return connection([file(server, one, name) for name in names or one.files])


def artifact(server: "Answers", one: Artifact) -> Node:
    def latest(_: Any) -> Node | None:
        versions = server.versions(one.project, one.name)
        return artifact(server, versions[-1]) if versions else None

    def requested(_: Any, entries: list[Node], **__: Any) -> Node:
        return artifact_files(server, one, [entry["name"] for entry in entries])

    places = [tuple(key.split("/", 1)) for key in one.aliases]
    return {
        "id": one.id,
        "versionIndex": one.version,
        "state": one.state,
        "digest": one.digest,
        "description": one.description,
        "metadata": json.dumps(one.metadata),
        "tags": [],
        "ttlDurationSeconds": -2,
        "ttlIsInherited": True,
        "historyStep": None,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": "0" * 20,
        "createdAt": TIME,
        "updatedAt": TIME,
        "fileCount": len(one.files),
        "size": sum(len(content) for content in one.files.values()),
        "artifactType": {"id": f"type-{one.type}", "name": one.type},
        "artifactSequence": lambda _: {
            **(collection(server, one.project, one.name) or {"id": "new", "name": one.name}),
            "latestArtifact": latest,
        },
        "aliases": lambda _: [a for place in places for a in aliases(server, one, *place)],
        "artifactMemberships": lambda _: connection(
            [membership(server, one, *place) for place in places]
        ),
        "currentManifest": lambda _: {
            "id": f"manifest-{one.id}",
            "file": {"directUrl": server.address(one, "wandb_manifest.json")},
        },
        "createdBy": lambda _: run(server, server.runs[one.created_by]),
        "usedBy": lambda _: connection([run(server, server.runs[name]) for name in one.used_by]),
        "files": lambda _, names=None, **__: artifact_files(server, one, names),
        "filesByManifestEntries": requested,
    }


def view(server: "Answers", one: View) -> Node:
    return {
        "id": one.id,
        "name": one.name,
        "type": one.type,
        "displayName": one.display_name,
        "description": one.description,
        "spec": one.specs[-1],
        "user": user(),
        "createdAt": TIME,
        "updatedAt": TIME,
        "project": lambda _: project(server, one.entity, one.project),
    }


def sweep(server: "Answers", one: Sweep) -> Node:
    return {
        "id": f"sweep-{one.name}",
        "name": one.name,
        "displayName": one.name,
        "method": "bayes",
        "state": one.state,
        "description": None,
        "config": one.config,
        "createdAt": TIME,
        "heartbeatAt": TIME,
        "updatedAt": TIME,
        "bestLoss": None,
        "earlyStopJobRunning": False,
        "controller": None,
        "scheduler": None,
        "runCount": len(one.runs),
        "runCountExpected": None,
        "runs": lambda _: connection(
            [run(server, server.runs[name]) for name in one.runs if name in server.runs]
        ),
        "project": lambda _: project(server, one.entity, one.project),
    }
