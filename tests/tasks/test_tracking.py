"""The W&B run is online only if the server responds in time."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import wandb

from tasks.errors import InputError
from tasks.run import tracking
from tasks.run.tracking import RunLogger, wandb_mode
from tests.loopback import PATIENCE
from tests.offline import last_offline_run

KEY = "0123456789" * 4
# Metrics of a validation, on the validation split and on training examples.
PARTS = ("val", "train_eval")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Remove all logins and the W&B session."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server() -> Iterator[str]:
    """Answer all requests with 404, as a server does for an unknown path."""

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
    """An address without a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_without_a_login_the_run_is_offline() -> None:
    assert wandb_mode() == "offline"


def test_wandb_mode_has_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


def test_with_a_login_and_a_server_the_run_is_online(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", PATIENCE)
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
    assert f"W&B at {server} did not open the run" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_waits_for_a_server_add_up_to_less_than_20_seconds() -> None:
    bounds = "REACH", "INIT", "MEDIA", "FINISH"
    assert sum(getattr(tracking, f"{name}_TIMEOUT") for name in bounds) < 20


@pytest.mark.parametrize(
    ("job_type", "given", "expected"),
    [
        ("train", {}, (tracking.INIT_TIMEOUT, tracking.FINISH_TIMEOUT)),
        ("report", {}, (tracking.INIT_TIMEOUT, 120)),
        ("report", {"INIT": "30", "FINISH": "400"}, (30, 400)),
    ],
)
def test_a_run_is_opened_with_its_timeouts_or_those_of_the_user(
    job_type: str,
    given: dict[str, str],
    expected: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: dict[str, tuple[float, float]] = {}

    def init(mode: str, settings: wandb.Settings, **_: object) -> None:
        opened[mode] = settings.init_timeout, settings.finish_timeout
        raise wandb.errors.CommError("no answer")

    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}_TIMEOUT", value)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(tracking, "wandb_mode", lambda: "online")
    with pytest.raises(wandb.errors.CommError):
        _ = RunLogger(save_dir="run", job_type=job_type).experiment
    assert opened["online"] == expected
    # Offline, no server is involved; a busy machine has time.
    assert min(opened["offline"]) >= 60


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", value)
    with pytest.raises(InputError, match=rf"WANDB_INIT_TIMEOUT={value} is not a number of seconds"):
        tracking.seconds("WANDB_INIT_TIMEOUT", 1.0)


def test_the_summary_has_the_best_values_of_a_validation(tmp_path: Path) -> None:
    logger = RunLogger(name="a-run", save_dir=str(tmp_path / "run"))
    for step, accuracy in enumerate((0.25, 0.75, 0.5)):
        metrics = {"acc": accuracy, "loss": 1 - accuracy, "ece": 1 - accuracy}
        named = {f"{part}/{name}": value for part in PARTS for name, value in metrics.items()}
        logger.log_metrics(named | {"train/loss": 1 - accuracy, "test/acc": accuracy}, step=step)
    logger.close()
    run = last_offline_run(tmp_path / "run")
    for part in PARTS:
        assert run.summary[f"{part}/acc"] == {"max": 0.75, "last": 0.5}
        assert run.summary[f"{part}/loss"] == {"min": 0.25, "last": 0.5}
        assert run.summary[f"{part}/ece"] == {"min": 0.25, "last": 0.5}
    # A test has one value.
    assert run.summary["test/acc"] == run.summary["train/loss"] == 0.5
    axes = {metric.get("name", metric.get("glob_name")): metric for metric in run.of("metric")}
    assert axes["*"]["step_metric"] == axes["val/acc"]["step_metric"] == "trainer/global_step"


def test_a_sweep_optimizes_the_validation_accuracy_that_selects_the_weights(
    train: Callable[..., None], small_data: Callable[..., Path]
) -> None:
    # At a high constant learning rate the best epoch is not the last one.
    train(
        *("--task", "vision", "--data", str(small_data("vision", train=120)), "--model.width=8"),
        *("--model.depth=2", "--data.batch_size=16", "--trainer.max_epochs=5", "--reg", "none"),
        *("--model.optim.schedule=constant", "--model.optim.lr=0.2", "--no_test"),
        "--model.optim.optimizer=sgd",
        logger=True,
    )
    run = last_offline_run()
    accuracies = [row["val/acc"] for row in run.rows if "val/acc" in row]
    highest = [row["val/best_acc"] for row in run.rows if "val/best_acc" in row]
    assert len(accuracies) == 5
    assert accuracies[-1] < max(accuracies)
    assert highest == [max(accuracies[: epoch + 1]) for epoch in range(5)]
    # Known without a test, and at the top level of the summary, where a sweep reads it.
    assert run.summary["val/best_acc"] == run.summary["val/acc"]["max"] == max(accuracies)
    assert run.summary["best"]["epoch"] == accuracies.index(max(accuracies))
    assert run.summary["best"]["val/acc"] == max(accuracies)
