"""Studies on other machines: Ray with failing nodes, and Slurm arrays through submitit."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from study import cluster
from study.launch import Job
from tasks.errors import InputError

ROOT = Path(__file__).parents[2]
RUN = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
print(os.environ["OMP_NUM_THREADS"])
(folder / "metrics.json").write_text("{}")
"""


def jobs(*names, code=RUN, **options):
    return [
        Job(name, Path(name), ["-c", code, str(Path(name).resolve())], **options) for name in names
    ]


@pytest.fixture
def ray_here(monkeypatch):
    """Ray on this machine alone."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install -e '.[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


# The first attempt of this run waits to be killed; the second one succeeds.
WAITS = """
import os, pathlib, sys, time
tried = pathlib.Path(sys.argv[1]).parent / "tried"
if not tried.exists():
    tried.with_suffix(".new").write_text(f"{os.getppid()} {os.getpid()}")
    tried.with_suffix(".new").replace(tried)
    time.sleep(600)
"""


def test_ray_repeats_runs_of_failed_nodes(ray_here):
    launcher = cluster.Ray({})
    assert launcher.at_a_time == 2
    (dying,) = jobs("dying", code=WAITS + RUN, threads=2)

    def machine_dies():
        deadline = time.monotonic() + 240
        while not Path("tried").exists() and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        # If a machine fails, all its processes end: first Ray's worker, then the run.
        for pid in map(int, Path("tried").read_text().split()):
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=machine_dies)
    thread.start()
    assert [job.name for job in launcher.run([dying])] == ["dying"]
    thread.join()
    assert dying.done
    assert Path("dying/log.txt").read_text() == "2\n"
    broken, good = jobs("broken", code="raise SystemExit('no')") + jobs("good")
    assert {job.name for job in launcher.run([broken, good])} == {"broken", "good"}
    assert good.done
    assert Path("broken/error.txt").read_text() == "exit code 1\nno\n"


def test_slurm_gets_an_array_of_runs(monkeypatch):
    pytest.importorskip("submitit", reason="submitit is an extra: pip install -e '.[slurm]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # submitit's local executor, which supports arrays too.
    launcher = cluster.Slurm(Path("slurm"), "2", {"cluster": "local", "timeout_min": "3"})
    runs = [*jobs("one", "two", threads=3), *jobs("broken", code="raise SystemExit('no')")]
    assert {job.name for job in launcher.run(runs)} == {"one", "two", "broken"}
    assert [job.done for job in runs] == [True, True, False]
    assert Path("one/log.txt").read_text() == "3\n"
    assert Path("broken/error.txt").exists()
    assert list(launcher.run([])) == []


def test_without_slurm_the_launcher_says_so(monkeypatch):
    pytest.importorskip("submitit", reason="submitit is an extra: pip install -e '.[slurm]'")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="LAUNCHER=slurm: "):
        cluster.Slurm(Path("slurm"), "auto", {})


def test_an_unknown_slurm_parameter_is_named():
    pytest.importorskip("submitit", reason="submitit is an extra: pip install -e '.[slurm]'")
    with pytest.raises(InputError, match=r"LAUNCHER=slurm: .*colour"):
        cluster.Slurm(Path("slurm"), "auto", {"cluster": "local", "colour": "red"})


@pytest.mark.parametrize(("extra", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_launcher_says_how_to_install_it(extra, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"LAUNCHER={extra} needs .*\.\[{extra}\]"):
        cluster.Ray({}) if extra == "ray" else cluster.Slurm(Path("slurm"), "auto", {})
