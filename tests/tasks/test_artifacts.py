"""Data, code and weights of a run are artifacts with lineage, online and by a later sync."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from tasks.train import main, parse, train
from tests.loopback import Server, log_in, wandb_server, wandb_session
from tests.offline import OfflineRun, last_offline_run

ROOT = Path(__file__).parents[2]
DATA, MODEL, CODE = "data-vision-builtin", "model-vision-builtin-none", "source-regain"
REGISTRY = "--trainer.logger.init_args.registry=wandb-registry-model/digits"


def arguments(caches: Path, *further: str) -> list[str]:
    return [
        *("--task", "vision", "--run_dir=run", f"--data.cache_dir={caches}", "--reg", "none"),
        *("--model.width=4", "--model.depth=2", "--data.train_fraction=0.1"),
        *("--data.batch_size=18", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
        *further,
    ]


@pytest.fixture(autouse=True)
def own_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B's files are in the test's folder."""
    with wandb_session(monkeypatch, tmp_path):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as listening:
        log_in(monkeypatch, listening)
        yield listening


@pytest.fixture
def online(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("WANDB_MODE", "online")
    return server


def run_id() -> str:
    return Path("run/wandb_id.txt").read_text()


def names(artifacts: list[Any]) -> list[str]:
    return sorted(one.name for one in artifacts)


def assert_lineage(server: Server) -> None:
    """Check that the server has the data as input, and code and weights as outputs of the run."""
    kept = server.runs[run_id()]
    assert names(kept.used) == [DATA]
    assert set(names(kept.logged)) >= {MODEL, CODE}
    [data] = kept.used
    assert data.type == "dataset"
    assert data.metadata["classes"] == [str(digit) for digit in range(10)]
    assert data.metadata["splits"]["train"]["examples"] == 898
    # The examples are not in it.
    assert data.files.keys() == {"data.json"}
    [model] = [one for one in kept.logged if one.type == "model"]
    assert model.files == {"best.ckpt": Path("run/best.ckpt").read_bytes()}
    [aliases] = [given for name, given in model.aliases.items() if name == f"regain/{MODEL}"]
    assert set(aliases) == {"latest", "best", "seed-0", f"run-{run_id()}"}
    assert model.metadata["reg"] == "none"
    assert 0 <= model.metadata["test/acc"] <= 1
    [code] = [one for one in kept.logged if one.type == "code"]
    assert code.files["tasks/train.py"] == (ROOT / "tasks/train.py").read_bytes()
    assert {name.split("/")[0] for name in code.files} == {"modules", "tasks", "study", "configs"}
    assert kept.raw_config["_wandb"]["value"]["code_path"].startswith(CODE)


def test_an_online_run_has_lineage(
    online: Server, caches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(caches, REGISTRY))
    assert_lineage(online)
    assert "weights linked to wandb-registry-model/digits" in capsys.readouterr().out
    [model] = [one for one in online.artifacts if one.type == "model"]
    assert "wandb-registry-model/digits" in model.aliases
    kept = online.runs[run_id()]
    assert kept.config["run"]["variant"] == "none"
    assert kept.summary["val/best_acc"] == kept.summary["val/acc"]["max"]
    assert kept.summary["best"]["val/acc"] == kept.summary["val/best_acc"]


def test_a_synced_run_has_lineage(
    server: Server, caches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(caches, REGISTRY))
    assert not server.calls
    printed = capsys.readouterr().out
    # The weights are not copied: the checkpoint is uploaded from the run's folder.
    large = Path("run/best.ckpt").stat().st_size
    copies = [file for file in Path("run").glob("artifacts/**/*") if file.stat().st_size >= large]
    assert not copies
    [line] = [line for line in printed.splitlines() if line.startswith("link the weights")]
    assert f"regain/{MODEL}:run-{run_id()}" in line
    [folder] = Path("run/wandb").glob("offline-run-*")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path}
    del env["WANDB_MODE"]
    subprocess.run(["wandb", "sync", folder], env=env, check=True, capture_output=True)
    assert_lineage(server)
    # The printed command.
    command = line.partition("published: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, env=env, check=True, capture_output=True)
    [model] = [one for one in server.artifacts if one.type == "model"]
    assert "wandb-registry-model/digits" in model.aliases


class Interruption(Callback):
    """Ends the run in its last epoch."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("interrupted")


def interrupted_and_resumed(caches: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        train(*parse(arguments(caches)), [Interruption()])
    main(arguments(caches, "--resume=auto"))


def test_a_resumed_run_logs_no_artifact_twice(online: Server, caches: Path) -> None:
    interrupted_and_resumed(caches)
    assert_lineage(online)
    versions = [(one.name, one.version) for one in online.artifacts if one.type != "run_table"]
    assert sorted(versions) == [(DATA, 0), (MODEL, 0), (CODE, 0)]


def test_the_last_folder_of_a_resumed_offline_run_has_all_artifacts(caches: Path) -> None:
    interrupted_and_resumed(caches)
    parts = [OfflineRun(one) for one in sorted(Path("run/wandb").glob("offline-run-*"))]
    assert [names_in(one) for one in parts] == [[DATA, CODE], [DATA, MODEL, CODE]]


def names_in(run: OfflineRun) -> list[str]:
    # The media of a test are artifacts too.
    return sorted(one["name"] for one in run.of("artifact") if one["type"] != "run_table")


def test_runs_on_the_same_data_use_the_same_version(
    online: Server, caches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--no_test"]
    quick += [f"--trainer.logger.init_args.{key}" for key in ("log_model=none", "log_code=false")]
    for seed in ("0", "1"):
        main([*arguments(caches, *quick, "--seed", seed), f"--run_dir=run{seed}"])
    assert [(one.name, one.version, len(one.used_by)) for one in online.artifacts] == [(DATA, 0, 2)]
    # wandb warns that there is no new version; no data are missing.
    assert capsys.readouterr().out.count("look at it on your W&B page") == 2


def test_a_run_without_a_test_logs_its_weights(caches: Path) -> None:
    main(arguments(caches, "--no_test", "--trainer.max_epochs=1"))
    assert names_in(last_offline_run()) == [DATA, MODEL, CODE]


def test_artifacts_that_a_server_rejects_are_published_later(
    online: Server,
    caches: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    online.refused = {"CreateArtifact"}
    main(arguments(caches))
    printed = capsys.readouterr().out
    assert f"W&B at {online.url} did not get the weights of this run" in caplog.text
    online.refused = set()
    command = printed.partition("publish it: ")[2].splitlines()[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, env=os.environ | {"PATH": path}, check=True)
    assert_lineage(online)
