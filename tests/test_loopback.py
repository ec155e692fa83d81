"""The W&B server of the tests, called by wandb itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.loopback import Server, log_in, wandb_server, wandb_session


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with wandb_server() as listening, wandb_session(monkeypatch, tmp_path):
        log_in(monkeypatch, listening)
        for name, value in {
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(tmp_path / "data"),
        }.items():
            monkeypatch.setenv(name, value)
        yield listening


def test_a_run_is_kept_as_it_was_logged_and_read_back(server: Server) -> None:
    Path("weights.txt").write_text("three")
    with wandb.init(project="regain", group="g", job_type="train", config={"lr": {"of": 1}}) as run:
        run.define_metric("acc", summary="max")
        for step in range(3):
            run.log({"acc": [0.1, 0.7, 0.4][step], "step": step})
        run.summary["best"] = 5
        data = wandb.Artifact("numbers", "dataset", metadata={"rows": 3})
        data.add_reference("https://example.org/numbers", checksum=False)
        run.use_artifact(data)
        model = wandb.Artifact("net", "model")
        model.add_file("weights.txt")
        run.log_artifact(model, aliases=["best"])
        run.link_artifact(model, "wandb-registry-model/nets", aliases=["first"])
        print("a line of output")
        name = run.id
    kept = server.runs[name]
    assert (kept.group, kept.job_type, kept.state, kept.exit_code) == ("g", "train", "finished", 0)
    assert kept.config == {"lr": {"of": 1}}
    assert [row["acc"] for row in kept.history] == [0.1, 0.7, 0.4]
    assert kept.summary["acc"] == {"max": 0.7}
    assert "a line of output" in kept.console
    assert [(one.name, one.type) for one in kept.used] == [("numbers", "dataset")]
    assert kept.used[0].metadata == {"rows": 3}
    [logged] = [one for one in kept.logged if one.type == "model"]
    assert logged.files == {"weights.txt": b"three"}
    assert set(logged.aliases["regain/net"]) == {"latest", "best"}
    assert set(logged.aliases["wandb-registry-model/nets"]) == {"latest", "first"}

    found = wandb.Api().run(f"team/regain/{name}")
    assert found.config == {"lr": {"of": 1}}
    assert found.summary["best"] == 5
    assert [row["acc"] for row in found.history(keys=["acc"], pandas=False)] == [0.1, 0.7, 0.4]
    assert [row["acc"] for row in found.scan_history(keys=["acc"])] == [0.1, 0.7, 0.4]
    assert [one.name for one in found.used_artifacts()] == ["numbers:v0"]
    found.summary.update({"gain/test_acc": 0.02})
    assert kept.summary["gain/test_acc"] == 0.02
    assert kept.summary["best"] == 5
    assert [one.id for one in wandb.Api().runs("team/regain", {"group": "g"})] == [name]
    assert len(wandb.Api().runs("team/regain", {"group": "h"})) == 0
    for name in ("net:best", "net:v0", "net:latest"):
        folder = wandb.Api().artifact(f"team/regain/{name}").download(root=f"read/{name}")
        assert Path(folder, "weights.txt").read_text() == "three"


def test_a_resumed_run_goes_on(server: Server) -> None:
    for part in range(2):
        with wandb.init(project="regain", id="one", resume="allow", config={"part": part}) as run:
            run.log({"acc": part})
    assert [row["acc"] for row in server.runs["one"].history] == [0, 1]
    assert [row["_step"] for row in server.runs["one"].history] == [0, 1]
    assert server.runs["one"].config == {"part": 1}


def test_an_alias_moves_to_the_next_version(server: Server) -> None:
    for content in ("first", "second", "second"):
        Path("weights.txt").write_text(content)
        with wandb.init(project="regain") as run:
            model = wandb.Artifact("net", "model")
            model.add_file("weights.txt")
            run.log_artifact(model, aliases=["best"])
        if content == "second":
            assert server.artifacts[0].aliases == {"regain/net": []}
    _, second = server.artifacts
    assert set(second.aliases["regain/net"]) == {"latest", "best"}
    assert second.version == 1


def test_a_view_is_changed_under_its_id(server: Server) -> None:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    report = reports.Report(project="regain", entity="team", title="one")
    report.save()
    again = reports.Report.from_url(report.url)
    again.title = "two"
    again.save()
    space = workspaces.Workspace(entity="team", project="regain", name="mine")
    space.save()
    changed = workspaces.Workspace.from_url(space.url)
    changed.sections = [workspaces.Section(name="Gain")]
    changed.save()
    kept, kept_space = server.views.values()
    assert (kept.type, kept.display_name, len(kept.specs)) == ("runs", "two", 2)
    assert (kept_space.type, len(kept_space.specs)) == ("project-view", 2)
    assert "Gain" in json.dumps(kept_space.spec)


def test_an_agent_fetches_trials_until_there_are_none(server: Server) -> None:
    def train() -> None:
        with wandb.init() as run:
            run.log({"acc": run.config["rate"]})

    config: Any = {"method": "random", "parameters": {"rate": {"min": 0.0, "max": 1.0}}}
    name = wandb.sweep(config, project="regain", entity="team")
    sweep = server.sweeps[name]
    sweep.waiting = [{"rate": 0.25}, {"rate": 0.5}]
    wandb.agent(name, function=train, project="regain", entity="team")
    assert [server.runs[run].config for run in sweep.runs] == [{"rate": 0.25}, {"rate": 0.5}]
    assert [server.runs[run].summary["acc"] for run in sweep.runs] == [0.25, 0.5]
    assert {server.runs[run].sweep for run in sweep.runs} == {name}
    assert sweep.state == "FINISHED"


def test_an_unknown_call_ends_the_test_with_its_name() -> None:
    from urllib.request import Request, urlopen

    def ask() -> None:
        with wandb_server() as server:
            call = {"query": "query Weather { weather { rain } }"}
            request = Request(f"{server.url}/graphql", json.dumps(call).encode())
            with pytest.raises(OSError, match="400"):
                urlopen(request)

    with pytest.raises(AssertionError, match="Weather: Cannot query field 'weather'"):
        ask()
