"""A W&B session of a test's own, and the login to a server of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wandb

from tests.loopback.server import Server

# Seconds that a busy machine may take for what takes less than one otherwise.
PATIENCE = "120"


@contextmanager
def wandb_session(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Keep W&B's files in a folder, and end W&B's process before and after.

    Args:
        monkeypatch: It restores the environment, also variables that a run sets.
        folder: Folder of the files.
    """
    for name in ("WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "")  # So that variables that a run sets are restored.
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "wandb-cache"))
    wandb.teardown()
    yield
    wandb.teardown()


def log_in(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Log in to a server; tests that expect data there wait long for them.

    Processes that the test starts inherit both.
    """
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wait_long(monkeypatch)


def wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give W&B time to open a run, to answer and to take the last data."""
    for name in ("INIT", "HTTP", "FINISH"):
        monkeypatch.setenv(f"WANDB_{name}_TIMEOUT", PATIENCE)
