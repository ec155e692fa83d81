"""The W&B run is online only where that works at once."""

import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import wandb

from tasks.tracking import RunLogger, wandb_mode

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Forget every login, and the session that remembers it."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server() -> Iterator[str]:
    """Answer every request with 404, as a server does on a path that it does not have."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_without_a_login_the_run_is_offline() -> None:
    assert wandb_mode() == "offline"


def test_what_the_user_asks_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


def test_with_a_login_and_a_server_the_run_is_online(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert wandb_mode() == "online"


def test_an_unreachable_server_means_offline_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, nobody: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", nobody)
    with caplog.at_level(logging.WARNING, logger="tasks"):
        logger = RunLogger(name="a-run", save_dir=str(tmp_path))
        logger.log_metrics({"val/acc": 0.5}, step=3)
        wandb.finish()
    warnings = [record.message for record in caplog.records if record.name.startswith("tasks")]
    assert len(warnings) == 1
    assert nobody in warnings[0]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_server_that_opens_no_run_means_offline(
    monkeypatch: pytest.MonkeyPatch, server: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    with caplog.at_level(logging.WARNING, logger="tasks"):
        logger = RunLogger(name="a-run", save_dir=str(tmp_path))
        logger.log_metrics({"val/acc": 0.5}, step=3)
        wandb.finish()
    assert f"W&B at {server} opens no run" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
