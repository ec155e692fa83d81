"""Forked runs behave as processes that Python has started."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from study import warm
from study.launch import Job, Local, Processes, execute
from tasks import train
from tasks.run.safe_loading import read_checkpoint
from tests.study.test_launch import wait_until

# A module that the template can run: it reports on its process, and then does what it is told.
MODULE = """
import atexit, json, os, pathlib, signal, sys, time
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
print("first", flush=True)
print("error", file=sys.stderr)
print("at exit", end="")
atexit.register(lambda: print(", after exit"))
facts = {
    "spec": sys.modules["__main__"].__spec__.name,
    "file": sys.argv[0] == __file__,
    "path": sys.path[0],
    "folder": os.getcwd(),
    "session": os.getsid(0) == os.getpid(),
    "stdin": sys.stdin.read(),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "threads": os.environ["OMP_NUM_THREADS"],
    "pid": os.getpid(),
    "parent": os.getppid(),
    "descriptors": len(os.listdir("/proc/self/fd")),
}
(folder / "facts.json").write_text(json.dumps(facts))
deadline = time.monotonic() + 60
if what.startswith("wait"):
    while not (folder.parent / what).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
if what == "fail":
    sys.exit("the data is gone")
if what == "interrupted":
    raise KeyboardInterrupt
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
with open(folder.parent / "ended.txt", "a") as ended:
    ended.write(folder.name + chr(10))
(folder / "partial").write_text("{}")
(folder / "partial").replace(folder / "metrics.json")
"""


@pytest.fixture(autouse=True)
def _no_templates_left():
    yield
    warm.TEMPLATES.close()


@pytest.fixture
def module(monkeypatch):
    """Let templates run a small module in the current folder, and import nothing more."""
    Path("small.py").write_text(MODULE)
    monkeypatch.setattr(warm, "MODULES", ("small",))
    monkeypatch.setattr(warm, "IMPORTS", ("json",))


def job(name, what="", **options):
    folder = Path(name).resolve()
    return Job(name, folder, ["-m", "small", str(folder), what], **options)


def facts(name):
    return json.loads(Path(name, "facts.json").read_text())


def template():
    assert warm.TEMPLATES.template is not None
    return warm.TEMPLATES.template.process.pid


@pytest.mark.usefixtures("module")
def test_a_forked_run_has_what_a_process_of_its_own_has(monkeypatch):
    monkeypatch.setattr("study.launch.gpus_here", lambda: ["5"])
    list(Local(1).run([job("forked", threads=3)]))
    assert execute(job("plain", threads=3), "5")
    made, expected = facts("forked"), facts("plain")
    assert made.pop("parent") == template()
    assert expected.pop("parent") == os.getpid()
    assert made.pop("pid") != expected.pop("pid")
    assert made == expected
    assert made["gpus"] == "5"
    assert made["session"]
    assert sorted(Path("forked/log.txt").read_text().splitlines()) == sorted(
        Path("plain/log.txt").read_text().splitlines()
    )
    assert "at exit, after exit" in Path("forked/log.txt").read_text()


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("what", "code"), [("fail", 1), ("interrupted", -signal.SIGINT), ("killed", -signal.SIGKILL)]
)
def test_a_forked_run_has_the_exit_code_of_a_process(what, code):
    broken = job("broken", what)
    assert list(Local(1).run([broken])) == [broken]
    assert facts("broken")["parent"] == template()
    error = Path("broken/error.txt").read_text()
    assert error.startswith(f"exit code {code}\nfirst\n")
    assert ("the data is gone" in error) == (what == "fail")
    # The template has closed its copy of the lock, so that the run can start again.
    (broken.folder / "facts.json").unlink()
    assert list(Local(1).run([broken])) == [broken]
    assert facts("broken")["parent"] == template()


@pytest.mark.usefixtures("module")
def test_runs_share_a_template_until_the_environment_changes(monkeypatch):
    list(Local(2).run([job("one"), job("two")]))
    assert facts("one")["parent"] == facts("two")["parent"] == template()
    monkeypatch.setenv("OTHER", "1")
    list(Local(2).run([job("three")]))
    assert facts("three")["parent"] == template() != facts("one")["parent"]


@pytest.mark.usefixtures("module")
def test_a_forked_run_is_in_the_current_folder_of_the_study(monkeypatch):
    list(Local(1).run([job("one")]))
    Path("other").mkdir()
    monkeypatch.chdir("other")
    Path("small.py").write_text(MODULE)
    list(Local(1).run([job("two")]))
    found = facts("two")
    assert found["parent"] == template()
    assert found["folder"] == found["path"] == str(Path.cwd())


@pytest.mark.usefixtures("module")
def test_a_killed_template_is_replaced_and_its_runs_continue():
    first = job("one", "wait")
    first.folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with Path("log.txt").open("w") as log:
        forked = Processes(warm=True).start(first.command, environment, log.fileno())
    assert isinstance(forked, warm.ForkedRun)
    os.kill(template(), signal.SIGKILL)
    Path("wait").touch()
    assert forked.wait(60) == -signal.SIGKILL
    assert first.done
    old = template()
    second = job("two")
    list(Local(1).run([second]))
    assert second.done
    assert facts("two")["parent"] == template() != old


@pytest.mark.usefixtures("module")
def test_a_killed_template_is_seen_while_another_of_its_runs_continues():
    jobs = [job("one", "wait-one"), job("two", "wait-two")]
    processes = Processes(warm=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    forked = []
    with Path("log.txt").open("w") as log:
        for one in jobs:
            one.folder.mkdir()
            forked.append(processes.start(one.command, environment, log.fileno()))
    os.kill(template(), signal.SIGKILL)
    Path("wait-one").touch()
    assert forked[0].wait(60) == -signal.SIGKILL
    assert jobs[0].done
    assert not jobs[1].done
    Path("wait-two").touch()
    assert forked[1].wait(60) == -signal.SIGKILL


@pytest.mark.usefixtures("module")
def test_without_a_template_runs_are_plain_processes(monkeypatch):
    monkeypatch.setattr(warm, "IMPORTS", ("no_such_module",))
    jobs = [job("one"), job("two")]
    list(Local(1).run(jobs))
    assert [facts(one.name)["parent"] for one in jobs] == [os.getpid()] * 2
    assert warm.TEMPLATES.template is None


def study(jobs):
    """Run jobs, and so start their template, in a new process."""

    def carry_out():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        list(Local(2).run(jobs))

    process = multiprocessing.get_context("fork").Process(target=carry_out)
    process.start()
    return process


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("module")
def test_runs_of_a_killed_study_finish_and_the_template_ends_after_them():
    jobs = [job("one", "wait-1"), job("two", "wait-2")]
    process = study(jobs)
    wait_until(lambda: all((one.folder / "facts.json").exists() for one in jobs), process)
    process.kill()
    process.join()
    parent = facts("one")["parent"]
    Path("wait-1").touch()
    # A restarted study waits for its runs, and repeats none.
    again = study(jobs)
    wait_until(lambda: jobs[0].done, again)
    assert alive(parent)
    Path("wait-2").touch()
    again.join(60)
    assert again.exitcode == 0
    assert sorted(Path("ended.txt").read_text().split()) == ["one", "two"]
    while alive(parent):
        pass


@pytest.mark.usefixtures("module")
def test_an_interrupted_study_ends_forked_runs():
    jobs = [job("one", "wait"), job("two", "wait")]
    process = study(jobs)
    wait_until(lambda: all((one.folder / "facts.json").exists() for one in jobs), process)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode
    assert not any(alive(facts(one.name)["pid"]) for one in jobs)
    assert not list(Path().glob("*/error.txt"))


TINY = [
    *("--task", "vision", "--model.arch=mlp", "--model.width=8", "--model.depth=1"),
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=False"),
]
TIMES = ("seconds", "examples_per_second", "peak_memory_bytes", "name", "arguments")


def test_a_forked_training_is_bitwise_that_of_a_process_of_its_own(caches):
    command = [*TINY, f"--data.cache_dir={caches}"]
    train.main([*command, "--run_dir=run"])
    plain = Path("run").rename("plain")
    forked = Job("run", Path("run"), ["-m", "tasks.train", *command, "--run_dir=run"])
    list(Local(1).run([forked]))
    status = Path(f"/proc/{template()}/status").read_text()
    # Threads do not survive a fork, and may hold locks.
    assert "\nThreads:\t1\n" in status
    assert forked.done, Path("run/log.txt").read_text()
    made, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (Path("run"), plain)
    )
    for key in expected.keys() - set(TIMES):
        assert made[key] == expected[key], key
    weights = [
        read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (Path("run"), plain)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
