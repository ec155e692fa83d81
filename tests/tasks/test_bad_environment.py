"""Unusable folders, disks, ports and clocks; and the list of all reliability tests."""

import ctypes
import errno
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from study import dashboard
from tasks.data.cache import cached
from tasks.run.presets import CONFIGS
from tasks.run.run_directory import claim, new_folder
from tasks.vision.data import VisionData

Refused = Callable[..., str]
Train = Callable[..., None]
Data = Callable[..., Path]

SMALL = ("--task", "vision", "--model.width=4", "--trainer.max_epochs=1")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Make a folder that is read-only, also for the superuser."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    library = ctypes.CDLL(None, use_errno=True)
    header = _Header(0x20080522, 0)
    before, without = (_Sets * 2)(), (_Sets * 2)()
    superuser = os.geteuid() == 0
    if superuser:
        assert library.capget(ctypes.byref(header), before) == 0
        library.capget(ctypes.byref(header), without)
        # CAP_DAC_OVERRIDE, only of this thread.
        without[0].effective &= ~(1 << 1)
        assert library.capset(ctypes.byref(header), without) == 0
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    if superuser:
        assert library.capset(ctypes.byref(header), before) == 0


def test_a_run_folder_that_cannot_be_written(refused: Refused, read_only: Path) -> None:
    line = refused(*SMALL, f"--run_dir={read_only / 'run'}")
    assert f"the run's folder '{read_only / 'run'}' cannot be written (Permission denied)" in line
    assert "--run_dir" in line


def test_a_cache_folder_that_cannot_be_written(refused: Refused, read_only: Path) -> None:
    line = refused(*SMALL, f"--data.cache_dir={read_only}")
    assert f"error: data.cache_dir={read_only} cannot be written (Permission denied)" in line
    assert not Path("run").exists()


@pytest.mark.parametrize("folder", ["taken", "taken/run", "a" * 300])
def test_a_run_folder_that_cannot_be(folder: str, refused: Refused) -> None:
    Path("taken").write_text("mine")
    assert "cannot be written" in refused(*SMALL, f"--run_dir={folder}")
    assert Path("taken").read_text() == "mine"


def test_a_file_in_place_of_the_cache(refused: Refused) -> None:
    Path("taken").write_text("mine")
    assert "data.cache_dir=taken cannot be written" in refused(*SMALL, "--data.cache_dir=taken")
    assert Path("taken").read_text() == "mine"


def test_a_run_folder_that_another_run_writes_to(refused: Refused) -> None:
    with claim(Path("run")):
        line = refused(*SMALL)
        assert "another run is writing to run; choose another folder with --run_dir" in line
        assert [file.name for file in Path("run").iterdir()] == ["run.lock"]


def test_a_run_whose_study_holds_the_folder(train: Train) -> None:
    import fcntl

    Path("run").mkdir()
    with Path("run/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        train(*SMALL)
    assert Path("run/metrics.json").exists()


def test_a_finished_run_is_not_written_over(refused: Refused) -> None:
    Path("done").mkdir()
    Path("done/metrics.json").write_text("{}")
    assert "done contains a finished run" in refused(*SMALL, "--run_dir=done")
    assert Path("done/metrics.json").read_text() == "{}"


def test_the_folder_is_free_after_the_run(train: Train, refused: Refused) -> None:
    train(*SMALL, "--no_test", "--trainer.limit_train_batches=1")
    Path("run/validation.json").unlink()
    with claim(Path("run")):
        pass


def test_a_clock_that_stops_or_goes_back_gives_new_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    folders = []
    for _ in range(3):
        folders.append(new_folder("name"))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3
    assert [folder.name[15:] for folder in folders] == ["-123456", "-123456_2", "-123456_3"]


def test_a_clock_that_goes_back_in_a_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    train(*SMALL)
    found = json.loads(Path("run/metrics.json").read_text())
    assert 0 < found["seconds"]["train"] < found["seconds"]["all"] < 600
    assert found["examples_per_second"] > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_the_results_are_written(
    number: int, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert "no space left on the device: run/metrics.json.partial" in refused(*SMALL)
    assert Path("run/best.ckpt").exists()
    assert not Path("run/metrics.json").exists()


def test_a_disk_that_is_full_when_the_cache_is_written(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(built: object, partial: str) -> None:
        Path(partial).write_bytes(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("tasks.data.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    line = refused(*SMALL, "--data.cache_dir=cache")
    assert re.search(r"no space left on the device: .*cache/image-builtin-", line)
    assert list(Path("cache").iterdir()) == []


def test_a_disk_that_becomes_read_only(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_text", gone)
    assert "metrics.json.partial cannot be written: Read-only file system" in refused(*SMALL)


@pytest.mark.parametrize("damage", ["cut", "emptied", "other bytes"])
def test_a_damaged_cache_is_rebuilt(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    file = Path("cache.pt")
    for _ in range(2):
        assert cached(file, lambda: {"values": torch.arange(500)})["values"].sum() == 124_750
    assert not caplog.records
    whole = file.read_bytes()
    # Written to another file and renamed: a memory-mapped file must not be truncated.
    file.unlink()
    file.write_bytes({"cut": whole[:700], "emptied": b"", "other bytes": b"no cache"}[damage])
    assert cached(file, lambda: {"values": torch.arange(500)})["values"].sum() == 124_750
    (record,) = caplog.records
    assert record.message.startswith("cache.pt is damaged (")
    assert [file.name for file in Path().iterdir()] == ["cache.pt"]


def test_a_cache_that_another_run_has_rebuilt_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("cache.pt")
    cached(file, lambda: {"values": torch.arange(3)})
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    load = torch.load

    def late(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(torch, "load", load)
        try:
            return load(*arguments, **options)
        finally:
            # Another run replaces the torn file between this run's reading and deleting of it.
            Path("new").write_bytes(whole)
            Path("new").replace(file)

    monkeypatch.setattr(torch, "load", late)
    read = cached(file, lambda: pytest.fail("it is there already"))
    assert read["values"].tolist() == [0, 1, 2]
    assert [one.name for one in Path().iterdir()] == ["cache.pt"]


def test_runs_that_make_one_cache_at_once(small_data: Data) -> None:
    line = (
        "from tasks.vision.data import VisionData; import logging; logging.basicConfig(level=20); "
        f"VisionData(source={str(small_data('vision'))!r}, cache_dir='cache').setup()"
    )
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", line], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "".join(said).count("prepared 60 images of split train") == 1
    assert len([one for one in Path("cache").iterdir() if one.name.startswith("image-")]) == 1


def test_a_cache_of_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (1, 2):
        monkeypatch.setattr("tasks.data.cache.FORMAT", version)
        VisionData(cache_dir="cache").setup()
    assert len(list(Path("cache").glob("*.pt"))) == 2


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            dashboard.main(["--port", str(port)])
    assert stopped.value.code == 2
    written = capsys.readouterr().err.strip().splitlines()
    assert len(written) == 1
    assert written[0].startswith(f"error: PORT={port} cannot be used (")


@pytest.mark.parametrize("command", ["run", "sweep", "report"])
def test_a_study_of_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "run": ["--task", "vison"],
        "sweep": ["--task", "vision", "--space", "nowhere.yaml"],
        "report": ["--study", "nothing"],
    }
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"study.{command}").main(arguments[command])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def shell(environment: dict[str, str], caches: Path, *further: str) -> list[str]:
    return [
        *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
        *(sys.executable, "-m", "tasks.train", *SMALL, f"--data.cache_dir={caches}"),
        *("--trainer.accelerator=cpu", "--trainer.logger=false", *further),
    ]


def test_a_bare_environment_in_a_folder_of_another_script(caches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "où ça ☃"
    folder.mkdir()
    environment = {
        "LC_ALL": "C",
        "TMPDIR": str(tmp_path / "nowhere"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(CONFIGS.parent),
        "OMP_NUM_THREADS": "1",
    }
    arguments = shell(environment, caches, "--run_dir=ü", "--trainer.limit_train_batches=1")
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (folder / "ü" / "metrics.json").exists()


def test_64_files_at_a_time_are_enough(caches: Path, small_data: Data) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CONFIGS.parent)}
    arguments = shell(environment, caches, "--run_dir=run", f"--data={small_data('vision')}")
    limited = ["bash", "-c", 'ulimit -n 64 && exec "$@"', "bash", *arguments]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("run/metrics.json").exists()


def test_no_folder_for_temporary_files() -> None:
    line = (
        "import runpy, tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']; "
        "runpy.run_module('tasks.train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", line],
        env=os.environ | {"PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: No usable temporary directory found in")
    assert said.endswith("; set TMPDIR to a folder that can be written")


def test_an_output_that_nobody_reads(caches: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CONFIGS.parent)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        shell(environment, caches, "--run_dir=run"),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: the reader of the output")
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_deleted(caches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CONFIGS.parent)}
    command = ["bash", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(folder)]
    done = subprocess.run([*command, *shell(environment, caches)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    # If PyTorch has MKL, MKL reports it first.
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("title", "fewest"), [("Predictions", 10), ("Bad input", 60), ("Hostile input", 60)]
)
def test_every_case_on_record_has_its_test(title: str, fewest: int) -> None:
    root = CONFIGS.parent
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    cases = re.findall(r"^\|.*\| `(test_\w+)::(test_\w+)(?:\[(.+)\])?` \|$", section, re.MULTILINE)
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(cases) == len(rows) - 2
    assert len(set(cases)) >= fewest
    for file, test, case in cases:
        (found,) = (root / "tests").rglob(f"{file}.py")
        text = found.read_text(encoding="utf-8")
        assert f"def {test}(" in text, test
        assert not case or f'"{case}"' in text, (test, case)
