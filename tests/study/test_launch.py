"""Each run is executed exactly once, also if the study is interrupted."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from study.launch import Job, Local, execute, gpus_here, jobs_at_a_time
from tasks.errors import InputError

# A run that writes its results atomically, and counts how often it completed.
RUN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
time.sleep(float(sys.argv[2]))
with open(folder.parent / "ended.txt", "a") as ended:
    ended.write(folder.name + chr(10))
(folder / "partial").write_text("{}")
(folder / "partial").replace(folder / "metrics.json")
"""


def job(name, seconds=0.0, code=RUN, **options):
    folder = Path(name).resolve()
    return Job(name, folder, ["-c", code, str(folder), str(seconds)], **options)


def test_a_complete_run_is_not_repeated():
    assert execute(job("one"))
    assert execute(job("one"))
    assert Path("ended.txt").read_text() == "one\n"


# A run that is killed at the first attempt, after it has saved a checkpoint.
KILLED_ONCE = """
import os, pathlib, signal, sys
saved = pathlib.Path(sys.argv[1]) / "last.ckpt"
if not saved.exists():
    saved.write_text("half a run")
    os.kill(os.getpid(), signal.SIGNAL)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_killed_run_is_resumed(name):
    assert execute(job("one", code=KILLED_ONCE.replace("SIGNAL", name) + RUN))
    assert Path("one/last.ckpt").read_text() == "half a run"
    assert Path("ended.txt").read_text() == "one\n"
    assert not Path("one/error.txt").exists()


def test_a_run_that_is_killed_repeatedly_has_failed():
    code = "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    assert not execute(job("one", code=code))
    assert Path("one/error.txt").read_text().splitlines() == ["exit code -9", *["so far"] * 3]


def test_files_of_an_interrupted_run_are_kept_and_those_of_a_failed_run_deleted():
    for name in ("interrupted", "failed"):
        Path(name, "wandb").mkdir(parents=True)
        Path(name, "wandb/old").write_text("half a run")
    Path("failed/error.txt").write_text("exit code 1")
    for name in ("interrupted", "failed"):
        assert execute(job(name))
    made = {"lock", "log.txt", "metrics.json"}
    assert {file.name for file in Path("failed").iterdir()} == made
    assert {file.name for file in Path("interrupted").iterdir()} == made | {"wandb"}


def test_a_failed_run_keeps_its_error_and_the_others_continue():
    broken = job("broken", code="print('so far'); raise SystemExit('the data is gone')")
    jobs = [job("one"), broken, job("two")]
    assert {ended.name for ended in Local(2).run(jobs)} == {"one", "broken", "two"}
    assert [one.done for one in jobs] == [True, False, True]
    error = Path("broken/error.txt").read_text()
    assert error == "exit code 1\nso far\nthe data is gone\n"
    # The second attempt succeeds, and deletes the error.
    assert execute(job("broken"))
    assert not Path("broken/error.txt").exists()


def test_a_run_without_results_is_not_complete():
    assert not execute(job("empty", code="print('nothing')"))


def test_the_number_of_parallel_runs_is_limited():
    code = RUN.replace(
        "time.sleep(float(sys.argv[2]))",
        "mark = folder.parent / f'now-{folder.name}'; mark.touch(); time.sleep(0.3);"
        "open(folder.parent / 'most.txt', 'a')"
        ".write(f\"{len(list(folder.parent.glob('now-*')))} \"); mark.unlink()",
    )
    list(Local(2).run([job(f"run-{index}", code=code) for index in range(5)]))
    assert max(map(int, Path("most.txt").read_text().split())) == 2


def test_a_run_has_its_threads_and_its_gpu(monkeypatch):
    monkeypatch.setattr("study.launch.gpus_here", lambda: ["3", "5"])
    code = (
        "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']);" + RUN
    )
    jobs = [job(f"run-{index}", 0.3, code, threads=4) for index in range(2)]
    list(Local(2).run(jobs))
    assert {Path(f"run-{index}/log.txt").read_text() for index in range(2)} == {"4 3\n", "4 5\n"}


def test_the_gpus_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_here() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,2")
    assert gpus_here() == ["GPU-7", "2"]
    assert jobs_at_a_time("auto", threads=1) == 2


def test_runs_at_a_time_follow_from_cores_and_threads(monkeypatch):
    monkeypatch.setattr("study.launch.gpus_here", list)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert jobs_at_a_time("auto", threads=1) == 8
    assert jobs_at_a_time("auto", threads=3) == 2
    assert jobs_at_a_time("auto", threads=99) == 1
    assert jobs_at_a_time("5", threads=99) == 5


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_an_invalid_number_of_jobs_is_refused(asked):
    with pytest.raises(InputError, match=f"JOBS={asked} must be auto or"):
        jobs_at_a_time(asked, 1)


def study(jobs):
    """Execute runs in a new process; forked, since imports take longer than the runs."""

    def carry_out():
        # Worker processes of pytest-xdist ignore the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        list(Local(2).run([one for one in jobs if not one.done]))

    process = multiprocessing.get_context("fork").Process(target=carry_out)
    process.start()
    return process


def wait_until(reached, process):
    """Wait until a condition holds, for at most a minute."""
    deadline = time.monotonic() + 60
    while not reached() and process.is_alive() and time.monotonic() < deadline:
        process.join(0.01)


def test_a_study_killed_ten_times_does_each_run_exactly_once():
    jobs = [job(f"run-{index}", 0.1 * (index % 4)) for index in range(24)]
    # Random moments, with a fixed seed.
    moments = random.Random(0)
    left_behind = 0
    for _ in range(10):
        begun = len(list(Path().glob("*/lock")))
        process = study(jobs)
        wait_until(lambda before=begun: len(list(Path().glob("*/lock"))) > before, process)
        process.join(moments.uniform(0.0, 0.3))
        # The processes that it started continue, and one of the runs may be about to complete.
        process.kill()
        process.join()
        left_behind += sum(not one.done for one in jobs if (one.folder / "lock").exists())
    assert left_behind
    process = study(jobs)
    process.join()
    assert process.exitcode == 0
    assert all(one.done for one in jobs)
    assert sorted(Path("ended.txt").read_text().split()) == sorted(one.name for one in jobs)


SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def test_an_interrupted_study_ends_its_runs():
    jobs = [job(f"run-{index}", code=SLEEPER) for index in range(2)]
    process = study(jobs)
    logs = [one.folder / "log.txt" for one in jobs]
    wait_until(
        lambda: all(log.exists() and log.read_text().endswith("\n") for log in logs), process
    )
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)
    # An interrupted run has not failed.
    assert not list(Path().glob("*/error.txt"))
