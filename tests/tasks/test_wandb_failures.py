"""W&B that fails: the training ends with the same weights, soon, and no row is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.callbacks import Callback

from tests.loopback import Server, wandb_server

KEY = "5ec4e7" * 6 + "abcd"
# What a run may wait for W&B, at its start and its end together.
DELAY = 20.0

Data = Callable[..., Path]
Rows = list[dict[str, Any]]


class Moment(Callback):
    """Does something when an epoch, or the test, has ended."""

    def __init__(self, when: int | str, what: Callable[[], None]) -> None:
        self.when = when
        self.what = what

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.when:
            self.what()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        if self.when == "test":
            self.what()


class Stopwatch(Callback):
    """Measures the time from the first batch to the end of the test: no opening, no closing."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.began = time.perf_counter()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def kill_core() -> None:
    """Kill wandb's own process, the child of this one that runs wandb-core."""
    ours = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [core] = [pid for pid in ours if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(core), signal.SIGKILL)


def arguments(data: Path, caches: Path, folder: str) -> list[str]:
    return [
        *("--task", "vision", "--data", str(data), f"--run_dir={folder}"),
        *("--model.width=8", "--model.depth=2", "--data.batch_size=16", "--trainer.max_epochs=4"),
        *(f"--data.cache_dir={caches}", "--trainer.accelerator=cpu"),
        "--trainer.log_every_n_steps=1",
    ]


@pytest.fixture(autouse=True)
def own_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Log in with a key; what W&B keeps lies in the test's folder."""
    monkeypatch.delenv("WANDB_MODE")
    for name in ("WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # Rows come to the server while the run goes on, not each quarter of a minute.
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as listening:
        monkeypatch.setenv("WANDB_BASE_URL", listening.url)
        yield listening


def weights(folder: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("best", "last")
        for key, value in torch.load(f"{folder}/{name}.ckpt")["state_dict"].items()
    }


def told(rows: Rows) -> Rows:
    """What rows say that is the same each time: neither times nor files."""
    return [
        {
            key: value
            for key, value in row.items()
            if not key.startswith(("speed/", "_")) and isinstance(value, int | float)
        }
        | {"_step": row["_step"]}
        for row in rows
    ]


def rows_of(run: Path) -> Rows:
    """Read the history that lies on the disk."""
    wandb_program = Path(sys.executable).parent / "wandb"
    shown = subprocess.run(
        [wandb_program, "leet", "inspect", "--json", run], capture_output=True, text=True
    )
    return [json.loads(line) for line in shown.stdout.splitlines()]


def same_each_time(rows: Rows) -> Rows:
    """Leave out times and files, which differ from run to run."""
    return [
        {"_step": row["_step"]}
        | {
            key: value
            for key, value in row.items()
            if not key.startswith(("speed/", "_")) and isinstance(value, int | float)
        }
        for row in rows
    ]


def synced(printed: str) -> Rows:
    """Run the printed command, with a server that answers again; return the rows that it got."""
    [command] = re.findall(r"or publish it: (wandb sync .*)", printed)
    with wandb_server() as later:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"WANDB_BASE_URL": later.url, "PATH": path}
        done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [later.rows[step] for step in sorted(later.rows)]


Run = Callable[..., None]


@pytest.fixture
def run(small_data: Data, caches: Path) -> Run:
    """Run in this process, do something at a moment of it, and hold it to the promised delay."""
    data = small_data("vision")

    def started(folder: str = "run", moment: Moment | None = None) -> None:
        watch = Stopwatch()
        began = time.perf_counter()
        train(*parse(arguments(data, caches, folder)), [watch, *([moment] if moment else [])])
        # As at the end of the process.
        wandb.teardown()
        outside = time.perf_counter() - began - watch.seconds
        # What the opening and the closing of a run take without W&B is in it too.
        assert outside < DELAY

    return started


@pytest.fixture
def undisturbed(run: Run, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Rows:
    """Train into the folder `undisturbed`, offline; return the rows."""
    with monkeypatch.context() as offline:
        offline.setenv("WANDB_MODE", "offline")
        run("undisturbed")
    for name in ("WANDB_DATA_DIR", "WANDB_ERROR_REPORTING"):
        os.environ.pop(name)
    return same_each_time(synced(capfd.readouterr().out))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("tasks")]


def assert_nothing_lost(undisturbed: Rows, printed: str) -> None:
    ours, theirs = weights("run"), weights("undisturbed")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    found, expected = (
        json.loads(Path(folder, "metrics.json").read_text()) for folder in ("run", "undisturbed")
    )
    assert found["predictions"] == expected["predictions"]
    assert len(found["history"]) == 4
    assert len(undisturbed) > 4
    assert same_each_time(synced(printed)) == undisturbed


@pytest.mark.parametrize("fails", [500, 429, 401, "silent", "gone", "nobody"])
@pytest.mark.parametrize("page", ["failing", "answering"])
def test_a_server_that_fails_at_the_start(
    fails: int | str,
    page: str,
    server: Server,
    run: Run,
    undisturbed: Rows,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if fails == "nobody":
        if page == "answering":
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
    else:
        url = server.url
        server.fails = fails
        server.healthy_paths = {"/"} if page == "answering" else set()
    caplog.clear()
    run()
    [warning] = warnings_in(caplog)
    assert url in warning
    assert "offline" in warning
    assert_nothing_lost(undisturbed, capfd.readouterr().out)
