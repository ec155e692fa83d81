"""Answers to the calls, from what the server keeps: a method for each field of the roots."""

import base64
import json
from typing import Any

from tests.loopback import nodes
from tests.loopback.graph import given
from tests.loopback.state import Artifact, Run, Sweep, View

ENTITY = "team"
MANIFEST = "wandb_manifest.json"


class Answers:
    """The state of the server, and its answers.

    Args:
        url: Address of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.views: dict[str, View] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.features: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        # What an upload belongs to: a run or an artifact, and its name there.
        self.uploading: dict[str, tuple[Run | Artifact, str]] = {}

    # Reads

    def viewer(self, info: Any) -> Any:
        return nodes.user()

    def serverInfo(self, info: Any) -> Any:
        return {"features": [{"name": name, "isEnabled": True} for name in self.features]}

    def project(self, info: Any, name: str | None = None, entityName: str | None = None) -> Any:
        return nodes.project(self, entityName or ENTITY, name or "uncategorized")

    model = project

    def models(self, info: Any, **_: Any) -> Any:
        # A project exists as soon as something is in it; this project's own one always.
        names = {run.project for run in self.runs.values()} | {"regain"}
        return nodes.connection([nodes.project(self, ENTITY, name) for name in sorted(names)])

    def entity(self, info: Any, name: str) -> Any:
        return nodes.entity(self, name)

    def organization(self, info: Any, name: str) -> Any:
        return {"name": name, "orgEntity": nodes.entity(self, name), "featureFlags": []}

    def artifact(self, info: Any, id: str) -> Any:
        return nodes.artifact(self, self.artifact_with(id))

    def view(self, info: Any, id: str) -> Any:
        return nodes.view(self, self.views[id]) if id in self.views else None

    def clientIDMapping(self, info: Any, clientID: str) -> Any:
        found = [one.id for one in self.artifacts if one.client_id == clientID]
        return {"serverID": found[0]} if found else None

    # Runs

    def upsertBucket(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        name = values.get("name") or values["id"].removeprefix("run-")
        new = name not in self.runs
        run = self.runs.setdefault(
            name,
            Run(name, values.get("entityName", ENTITY), values.get("modelName", "uncategorized")),
        )
        names = {
            "displayName": "display_name",
            "groupName": "group",
            "jobType": "job_type",
            **{same: same for same in ("sweep", "tags", "notes", "state")},
        }
        for key in names.keys() & values.keys():
            setattr(run, names[key], values[key])
        if "config" in values:
            run.raw_config = json.loads(values["config"])
        if "summaryMetrics" in values:
            run.summary = json.loads(values["summaryMetrics"])
        return {"bucket": nodes.run(self, run), "inserted": new}

    def createRunFiles(self, info: Any, input: dict[str, Any]) -> Any:
        run = self.runs[input["runName"]]
        files = [{"name": name, **self.place(run, name)} for name in input["files"]]
        return {"runID": run.id, "uploadHeaders": [], "files": files}

    def markRunFilesUploaded(self, info: Any, input: dict[str, Any]) -> Any:
        return {"success": True}

    def stopRun(self, info: Any, input: dict[str, Any]) -> Any:
        return {"success": True}

    def upsertModel(self, info: Any, input: dict[str, Any]) -> Any:
        project = self.project(info, input.get("name"), input.get("entityName"))
        return {"model": project, "project": project, "inserted": False}

    # Uploads

    def place(self, owner: Run | Artifact, name: str) -> dict[str, Any]:
        """Where a file is to be uploaded."""
        key = str(len(self.uploading))
        self.uploading[key] = (owner, name)
        return {"uploadUrl": f"{self.url}/upload/{key}/{name}", "uploadHeaders": []}

    def take_upload(self, key: str, content: bytes) -> None:
        """Take the content of a file."""
        owner, name = self.uploading[key]
        if isinstance(owner, Artifact) and name == MANIFEST:
            owner.manifest = json.loads(content)
        else:
            owner.files[name] = content
        if isinstance(owner, Run) and name == "wandb-summary.json":
            owner.summary = json.loads(content)

    def address(self, owner: Run | Artifact, name: str) -> str:
        """Where a file can be read."""
        manifest = isinstance(owner, Artifact) and name == MANIFEST
        key = f"{owner.id}/{name}"
        self.blobs[key] = json.dumps(owner.manifest).encode() if manifest else owner.files[name]  # type: ignore[union-attr]
        return f"{self.url}/blob/{key}"

    # Artifacts

    def artifact_with(self, id: str) -> Artifact:
        return next(one for one in self.artifacts if one.id == id)

    def versions(self, project: str, name: str) -> list[Artifact]:
        """The committed versions in a collection."""
        key = f"{project}/{name}"
        return [one for one in self.artifacts if key in one.aliases and one.state == "COMMITTED"]

    def found_artifact(self, project: str, name: str) -> Artifact | None:
        """The version with a name such as `model:best` or `model:v0`."""
        collection, _, alias = name.partition(":")
        for one in self.versions(project, collection):
            aliases = one.aliases[f"{project}/{collection}"]
            if (alias or "latest") in (*aliases, f"v{one.version}"):
                return one
        return None

    def createArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        names = values.get("artifactCollectionNames") or [values["artifactCollectionName"]]
        project, name = values["projectName"], names[0]
        earlier = [one for one in self.versions(project, name) if one.digest == values["digest"]]
        aliases = [alias["alias"] for alias in values.get("aliases", [])]
        run = self.runs.get(values.get("runName", ""))
        if earlier:
            one = earlier[0]
            self.give(one, project, name, aliases)
        else:
            one = Artifact(
                f"artifact-{len(self.artifacts)}",
                project,
                name,
                values["artifactTypeName"],
                values["digest"],
                values.get("clientID", ""),
                values.get("description"),
                json.loads(values.get("metadata", "{}")),
                run.name if run else "",
                {f"{project}/{name}": aliases},
            )
            self.artifacts.append(one)
        if run is not None and one not in run.logged:
            run.logged.append(one)
        return {"artifact": nodes.artifact(self, one)}

    def createArtifactManifest(self, info: Any, input: dict[str, Any]) -> Any:
        one = self.artifact_with(input["artifactID"])
        place = self.place(one, MANIFEST)
        manifest = {"id": f"manifest-{one.id}", "file": {"id": f"{one.id}/{MANIFEST}", **place}}
        return {"artifactManifest": manifest}

    def updateArtifactManifest(self, info: Any, input: dict[str, Any]) -> Any:
        of = input["artifactManifestID"].removeprefix("manifest-")
        return self.createArtifactManifest(info, {"artifactID": of})

    def createArtifactFiles(self, info: Any, input: dict[str, Any]) -> Any:
        def file(entry: dict[str, Any]) -> dict[str, Any]:
            one = self.artifact_with(entry["artifactID"])
            return {
                "id": f"{one.id}/{entry['name']}",
                "name": entry["name"],
                "displayName": entry["name"],
                "storagePath": f"storage/{one.id}/{entry['name']}",
                "artifact": {"id": one.id},
                **self.place(one, entry["name"]),
            }

        return {"files": nodes.connection([file(entry) for entry in input["artifactFiles"]])}

    def commitArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        one = self.artifact_with(input["artifactID"])
        one.version = len(self.versions(one.project, one.name))
        one.state = "COMMITTED"
        self.give(one, one.project, one.name, ["latest", *one.aliases[f"{one.project}/{one.name}"]])
        return {"artifact": nodes.artifact(self, one)}

    def give(self, one: Artifact, project: str, name: str, aliases: list[str]) -> None:
        """Give aliases to a version in a collection, and take them from the others there."""
        for other in self.versions(project, name):
            kept = other.aliases[f"{project}/{name}"]
            other.aliases[f"{project}/{name}"] = [alias for alias in kept if alias not in aliases]
        had = one.aliases.get(f"{project}/{name}", [])
        one.aliases[f"{project}/{name}"] = list(dict.fromkeys([*had, *aliases]))

    def updateArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        one = self.artifact_with(values["artifactID"])
        if "metadata" in values:
            one.metadata = json.loads(values["metadata"])
        one.description = values.get("description", one.description)
        return {"artifact": nodes.artifact(self, one)}

    def useArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        one, run = self.artifact_with(input["artifactID"]), self.runs[input["runName"]]
        if one not in run.used:
            run.used.append(one)
            one.used_by.append(run.name)
        return {"artifact": nodes.artifact(self, one)}

    def linkArtifact(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        one = next(
            one
            for one in self.artifacts
            if one.id == values.get("artifactID") or one.client_id == values.get("clientID")
        )
        project, name = values["projectName"], values["artifactPortfolioName"]
        aliases = [alias["alias"] for alias in values.get("aliases", [])]
        self.give(one, project, name, ["latest", *aliases])
        index = self.versions(project, name).index(one)
        membership = nodes.membership(self, one, project, name)
        return {"versionIndex": index, "artifactMembership": membership}

    def addAliases(self, info: Any, input: dict[str, Any]) -> Any:
        one = self.artifact_with(input["artifactID"])
        for alias in input["aliases"]:
            project = alias.get("projectName", one.project)
            self.give(one, project, alias["artifactCollectionName"], [alias["alias"]])
        return {"success": True}

    def deleteAliases(self, info: Any, input: dict[str, Any]) -> Any:
        one = self.artifact_with(input["artifactID"])
        for alias in input["aliases"]:
            project = alias.get("projectName", one.project)
            one.aliases[f"{project}/{alias['artifactCollectionName']}"].remove(alias["alias"])
        return {"success": True}

    # Reports, workspaces and charts

    def upsertView(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        known = values.get("id")
        if known is None:
            # Reports are found by the end of their address, which is in base 64.
            new = base64.b64encode(f"View:{len(self.views)}".encode()).decode()
            self.views[new] = View(
                new,
                values["type"],
                values.get("entityName", ENTITY),
                values["projectName"],
                values.get("name"),
                values.get("displayName"),
                values.get("description"),
                [values["spec"]],
            )
            return {"view": nodes.view(self, self.views[new]), "inserted": True}
        view = self.views[known]
        view.display_name = values.get("displayName", view.display_name)
        view.description = values.get("description", view.description)
        view.specs.append(values["spec"])
        return {"view": nodes.view(self, view), "inserted": False}

    def createCustomChart(self, info: Any, input: dict[str, Any]) -> Any:
        name = f"{input['entity']}/{input['name']}"
        self.charts[name] = dict(input)
        return {"chart": {"id": name}}

    # Sweeps

    def upsertSweep(self, info: Any, input: dict[str, Any]) -> Any:
        values = given(input)
        if "id" in values:
            sweep = self.sweeps[values["id"].removeprefix("sweep-")]
            sweep.state = values.get("state", sweep.state)
        else:
            name = f"sweep{len(self.sweeps)}"
            sweep = Sweep(
                name,
                values.get("entityName") or ENTITY,
                values.get("projectName") or "uncategorized",
                values["config"],
            )
            self.sweeps[name] = sweep
        return {"sweep": nodes.sweep(self, sweep), "configValidationWarnings": []}

    def createAgent(self, info: Any, input: dict[str, Any]) -> Any:
        self.sweeps[input["sweep"]].state = "RUNNING"
        return {"agent": {"id": f"agent-{input['sweep']}"}}

    def agentHeartbeat(self, info: Any, input: dict[str, Any]) -> Any:
        """Start the next trial if none is running; end the agent after the last one."""
        sweep = self.sweeps[input["id"].removeprefix("agent-")]
        commands: list[dict[str, Any]] = []
        if not json.loads(input["runState"]):
            if sweep.waiting:
                name = f"{sweep.name}trial{len(sweep.runs)}"
                sweep.runs.append(name)
                args = {key: {"value": value} for key, value in sweep.waiting.pop(0).items()}
                commands = [{"type": "run", "run_id": name, "args": args, "program": None}]
            else:
                sweep.state = "FINISHED"
                commands = [{"type": "exit"}]
        return {"agent": {"id": input["id"]}, "commands": json.dumps(commands)}
