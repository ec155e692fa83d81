"""CPU cores: the number of threads, and the log of the time spent waiting for a core."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tasks.run import cores
from tasks.run.cores import CoreMonitor, limit_threads, usable_cores

SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.skipif(
    not list((Path(torch.__file__).parent / "lib").glob("libgomp*")),
    reason="torch without GNU OpenMP",
)
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_threads_that_wait_spin_briefly_or_as_the_user_says(
    chosen: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING}
    ended = subprocess.run(
        [sys.executable, "-c", "import tasks"],
        # OpenMP prints its settings when it is loaded.
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"} | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in ended.stderr


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_there_are_no_more_threads_than_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    limit_threads()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("threads")
def test_a_chosen_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    limit_threads()
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_usable_cores_are_those_of_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


class Times:
    """Thread counters as Linux writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **threads: tuple[int, int]) -> None:
        for name, (ran, waited) in threads.items():
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name / "schedstat").write_text(f"{ran} {waited} 7\n")


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Times:
    monkeypatch.setattr(cores, "THREADS", tmp_path)
    return Times(tmp_path)


class Trainer(SimpleNamespace):
    """The part of a trainer that the monitor uses."""

    def __init__(self) -> None:
        logged: list[tuple[dict[str, float], int]] = []
        log = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((metrics, step)))
        super().__init__(loggers=[log], global_step=5, logged=logged)


def epoch(monitor: CoreMonitor, trainer: Trainer, times: Times, **after: tuple[int, int]) -> None:
    monitor.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    times.write(**after)
    monitor.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]


def test_the_wait_for_a_core_is_logged_with_one_warning(
    times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, trainer = CoreMonitor(), Trainer()
    times.write(a=(1_000, 1_000), b=(0, 0))
    with caplog.at_level(logging.WARNING, logger="tasks.run.cores"):
        # Thread `c` starts within the epoch, so its counters at the start are unknown.
        epoch(monitor, trainer, times, a=(1_500, 1_200), b=(100, 0), c=(9_000, 9_000))
        epoch(monitor, trainer, times, a=(1_600, 1_300))
    assert trainer.logged == [
        ({"speed/core_wait": 200 / 800}, 5),
        ({"speed/core_wait": 100 / 200}, 5),
    ]
    (record,) = caplog.records
    assert "25 %" in record.message


def test_an_idle_machine_causes_no_warning(times: Times, caplog: pytest.LogCaptureFixture) -> None:
    monitor, trainer = CoreMonitor(), Trainer()
    times.write(a=(0, 0))
    with caplog.at_level(logging.WARNING, logger="tasks.run.cores"):
        epoch(monitor, trainer, times, a=(1_000, 10))
    assert len(trainer.logged) == 1
    assert not caplog.records


def test_a_system_without_counters_logs_nothing(times: Times) -> None:
    monitor, trainer = CoreMonitor(), Trainer()
    epoch(monitor, trainer, times)
    assert not trainer.logged
