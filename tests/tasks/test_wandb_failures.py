"""Failures of W&B: training ends with the same weights, with bounded delay, and no row is lost."""

import json
import os
import re
import signal
import socket
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

from tasks.run import tracking
from tasks.train import parse, train
from tests.loopback import Server, wait_long, wandb_server, wandb_session

KEY = "5ec4e7" * 6 + "abcd"
# Longest total time that a run waits for W&B, also on a busy machine. Without its bounds, wandb
# waits for minutes, or without end.
DELAY = 60.0
# Failures of the test server.
FAILURES = [500, 429, 401, "silent", "gone"]

Data = Callable[..., Path]
Run = Callable[..., None]
Rows = list[dict[str, Any]]


class Moment(Callback):
    """Calls a function when an epoch, or the test, has ended."""

    def __init__(self, when: int | str, what: Callable[[], None]) -> None:
        self.when = when
        self.what = what

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.when:
            self.what()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        # The last test, that of the best checkpoint.
        if self.when == "test" and pl_module.tested == "test":
            self.what()


def kill_core() -> None:
    """Kill wandb's own process, the child process that runs wandb-core."""
    ours = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [core] = [pid for pid in ours if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(core), signal.SIGKILL)


def arguments(data: Path, caches: Path, folder: str) -> list[str]:
    return [
        *("--task", "vision", "--data", str(data), f"--run_dir={folder}"),
        *("--model.width=8", "--model.depth=2", "--data.batch_size=16", "--trainer.max_epochs=4"),
        *(f"--data.cache_dir={caches}", "--trainer.accelerator=cpu"),
        "--trainer.log_every_n_steps=1",
        "--trainer.logger.init_args.log_code=false",
    ]


@pytest.fixture(autouse=True)
def own_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Log in with a key; W&B's files are in the test's folder."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    # Send rows to the server during the run, instead of every 15 seconds.
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    wait_long(monkeypatch)
    with wandb_session(monkeypatch, tmp_path):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as listening:
        monkeypatch.setenv("WANDB_BASE_URL", listening.url)
        yield listening


@pytest.fixture
def run(small_data: Data, caches: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run in this process, call a function at a moment, and check the total delay."""
    data = small_data("vision")
    spent: list[float] = []

    def time_calls(place: Any, name: str) -> None:
        function = getattr(place, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        monkeypatch.setattr(place, name, call)

    time_calls(tracking, "wandb_mode")
    time_calls(tracking.RunLogger, "_open")
    time_calls(tracking.RunLogger, "log_media")
    time_calls(tracking.RunLogger, "close")

    def started(folder: str = "run", moment: Moment | None = None) -> None:
        train(*parse(arguments(data, caches, folder)), [moment] if moment else [])
        began = time.perf_counter()
        wandb.teardown()  # As at process exit.
        spent.append(time.perf_counter() - began)
        assert sum(spent) < DELAY
        spent.clear()

    return started


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def undisturbed(kept: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Path:
    """Train once without a server; return the run's folder and its rows."""
    if not (kept / "rows.json").exists():
        with monkeypatch.context() as offline:
            offline.setenv("WANDB_MODE", "offline")
            run(str(kept))
        for name in ("WANDB_DATA_DIR", "WANDB_ERROR_REPORTING"):
            monkeypatch.delenv(name)
        (kept / "rows.json").write_text(json.dumps(synced(capfd.readouterr().out)))
    return kept


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("best", "last")
        for key, value in torch.load(folder / f"{name}.ckpt", weights_only=False)[
            "state_dict"
        ].items()
    }


def command_in(printed: str) -> str:
    [command] = re.findall(r"or publish it: (wandb sync .*)", printed)
    assert isinstance(command, str)
    return command


def synced(printed: str) -> Rows:
    """Run the printed command with a working server; return the rows that it received."""
    with wandb_server() as later:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"WANDB_BASE_URL": later.url, "PATH": path}
        subprocess.run(command_in(printed), shell=True, env=env, check=True, capture_output=True)
        return [later.rows[step] for step in sorted(later.rows)]


def same_each_time(rows: Rows) -> Rows:
    """Remove times and files, which differ between runs."""
    return [
        {"_step": row["_step"]}
        | {
            key: value
            for key, value in row.items()
            if not key.startswith(("speed/", "_")) and isinstance(value, int | float)
        }
        for row in rows
    ]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "tasks.run.tracking"]


def assert_the_same_training(undisturbed: Path) -> None:
    ours, theirs = weights(Path("run")), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    found, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (Path("run"), undisturbed)
    )
    assert found["predictions"] == expected["predictions"]
    assert len(found["history"]) == 4


def assert_the_same_rows(undisturbed: Path, rows: Rows) -> None:
    expected = json.loads((undisturbed / "rows.json").read_text())
    assert len(expected) > 4
    assert same_each_time(rows) == same_each_time(expected)
    assert any("test/worst_mistakes" in row for row in rows)


def assert_no_key(*texts: str) -> None:
    """Check that the key is in no text and no file of this test: runs, logs, W&B's folders."""
    assert not [text for text in texts if KEY in text]
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert any(file.name == "debug-internal.log" for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def assert_nothing_lost(undisturbed: Path, printed: str) -> None:
    assert_the_same_training(undisturbed)
    assert_the_same_rows(undisturbed, synced(printed))
    assert_no_key(printed)


@pytest.mark.parametrize("page", ["failing", "answering"])
@pytest.mark.parametrize("fails", FAILURES)
def test_a_server_that_fails_at_the_start(
    fails: int | str,
    page: str,
    server: Server,
    run: Run,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    server.fails = fails
    server.healthy_paths = {"/"} if page == "answering" else set()
    caplog.clear()
    run()
    [warning] = warnings_in(caplog)
    assert server.url in warning
    assert "offline" in warning
    assert_nothing_lost(undisturbed, capfd.readouterr().out)


def test_an_address_without_a_server(
    run: Run,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    caplog.clear()
    run()
    [warning] = warnings_in(caplog)
    assert url in warning
    assert_nothing_lost(undisturbed, capfd.readouterr().out)


@pytest.mark.parametrize(
    ("fails", "moment"), [*((fails, 1) for fails in FAILURES), (500, "test"), (401, "test")]
)
def test_a_server_that_fails_during_the_run(
    fails: int | str,
    moment: int | str,
    server: Server,
    run: Run,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")

    def fail() -> None:
        server.wait_for_rows()
        server.fails = fails

    caplog.clear()
    run(moment=Moment(moment, fail))
    [warning] = warnings_in(caplog)
    printed = capfd.readouterr().out
    assert server.url in warning
    assert command_in(printed) in warning
    assert_no_key(warning, *server.received)
    assert_nothing_lost(undisturbed, printed)


@pytest.mark.parametrize("moment", [1, "test"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_process_of_wandb_is_killed(
    moment: int | str,
    mode: str,
    server: Server,
    run: Run,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    caplog.clear()
    run(moment=Moment(moment, kill_core))
    [warning] = warnings_in(caplog)
    assert "process ended" in warning
    # Both folders have the same run id. Their names are KIND-TIME-ID, with a number if they started
    # in the same second.
    names = [folder.name for folder in Path("run/wandb").glob("*run-*")]
    assert len(names) == 2
    assert len({name.partition("run-")[2].split("-")[1] for name in names}) == 1
    monkeypatch.delenv("WANDB_MODE")
    assert_nothing_lost(undisturbed, capfd.readouterr().out)


def test_a_folder_that_cannot_be_written(
    server: Server,
    run: Run,
    undisturbed: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("run").mkdir()
    Path("run/wandb").write_text("a file")
    caplog.clear()
    run()
    [warning] = warnings_in(caplog)
    assert "cannot write to run" in warning
    assert_the_same_training(undisturbed)
    assert_the_same_rows(undisturbed, [server.rows[step] for step in sorted(server.rows)])


def finished(data: Path, caches: Path, *start: str) -> subprocess.CompletedProcess[str]:
    """Run a training in a new process."""
    command = [sys.executable, *start, *arguments(data, caches, "run")]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_command_line_sends_all_data_and_not_the_key(
    server: Server, small_data: Data, caches: Path, undisturbed: Path
) -> None:
    done = finished(small_data("vision"), caches, "-m", "tasks.train")
    assert done.returncode == 0, done.stderr
    assert "look at it on your W&B page" in done.stdout
    assert "wandb" not in done.stderr
    assert_the_same_training(undisturbed)
    assert_the_same_rows(undisturbed, [server.rows[step] for step in sorted(server.rows)])
    assert_no_key(done.stdout, done.stderr, *server.received)


def test_a_process_whose_wandb_was_killed_ends_well(
    server: Server, small_data: Data, caches: Path, undisturbed: Path
) -> None:
    program = """
import sys
from tasks.train import parse, train
from tests.tasks.test_wandb_failures import Moment, kill_core
train(*parse(sys.argv[1:]), [Moment(1, kill_core)])
"""
    done = finished(small_data("vision"), caches, "-c", program)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("process ended") == 1
    assert_nothing_lost(undisturbed, done.stdout)
