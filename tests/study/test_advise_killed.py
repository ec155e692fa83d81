"""`make advise` killed at any moment: the same command goes on, and each run is done once."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study import advise, launch
from study.advising import arms
from study.advising.page import write_page
from study.advising.records import ADVICES, Advice, load_advice
from study.launch import Job, Processes
from tests.study.conftest import record, right
from tests.study.test_tuning import known_config

FAKE = Path(__file__).with_name("fake_training.py")
KILLS = 10


def drive(marks: dict[str, str], arguments: Sequence[str]) -> None:
    """Run the command with fake trainings, in a process of its own."""
    start = launch.start_job

    def start_fake(job: Job, gpu: str | None, processes: Processes, *inherited: int) -> int:
        fake = replace(job, command=[str(FAKE), *job.command[2:]])
        return start(fake, gpu, processes, *inherited)

    def write_last_page(advice: Advice, folder: Path, under_way: bool) -> None:
        # A page takes a second.
        if not under_way:
            write_page(advice, folder, under_way)

    def resolve(task: str, reg: str, data: str, arguments: list[str]) -> dict[str, Any]:
        return known_config(task, reg, data, tuple(arguments))

    arms.resolved_config = resolve
    launch.start_job = start_fake
    advise.write_page = write_last_page
    os.environ.update(marks)
    with Path("driver.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        advise.main(arguments)


def test_killed_ten_times_it_ends_with_each_run_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = record(0, right(50, 100))
    (tmp_path / "record.json").write_text(json.dumps(made))
    marks = {name: str(tmp_path / name) for name in ("BEGUN", "MAY_END")}
    marks |= {"RECORD": str(tmp_path / "record.json")}
    ends = {}
    for name in ("BEGUN", "MAY_END"):
        os.mkfifo(marks[name])
        # Both ends, so that opening never blocks and no end of file is read.
        ends[name] = os.open(marks[name], os.O_RDWR)
    command = ["--task", "vision", "--arms", "none both", "--budget", "10m", "--jobs", "1"]
    command += ["--precision", "9", "--logger", "csv"]
    for reg in ("none", "both"):
        # Before the first start, for all of them: it takes half a second.
        known_config("vision", reg, "builtin", ("--logger", "csv"))
    fork: Any = multiprocessing.get_context("fork")
    kills = begun = 0
    with os.fdopen(ends["BEGUN"], "r") as lines:
        while True:
            driver = fork.Process(target=drive, args=(marks, command))
            driver.start()
            killed = False
            while not killed:
                training = _next_training(lines, driver)
                if training is None:
                    break
                begun += 1
                if begun % 3 == 0 and kills < KILLS:
                    kills += 1
                    # In turn: the training alone, the driver alone, both.
                    if kills % 3 != 1:
                        driver.kill()
                        driver.join()
                        killed = True
                    if kills % 3 != 2:
                        with suppress(ProcessLookupError):
                            os.killpg(training, signal.SIGKILL)
                        continue
                os.write(ends["MAY_END"], b"x")
            if not killed:
                break
    driver.join()
    os.close(ends["MAY_END"])
    assert driver.exitcode == 0, Path("driver.txt").read_text()[-2000:]
    assert kills == KILLS
    folder = ADVICES / "vision-builtin"
    found = load_advice(folder)
    assert found.recommendation is not None
    assert found.recommendation.arm == "both"
    runs = [file.parent for file in folder.rglob("lock") if file.parent != folder]
    assert len(runs) > 20
    for run in runs:
        assert (run / "completed").read_text() == "once\n", run
    assert (folder / "recommended.yaml").is_file()
    assert (folder / "advice.html").is_file()


def _next_training(lines: Any, driver: Any) -> int | None:
    """Wait for the next training to begin; None if the driver has ended."""
    while True:
        ready = multiprocessing.connection.wait([lines, driver.sentinel])
        if lines in ready:
            return int(lines.readline())
        return None
