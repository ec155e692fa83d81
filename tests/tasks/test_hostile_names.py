"""Untrusted names: of runs, studies, searches, classes and files."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from study import report, run, sweep
from study.plan import STUDIES, Study, load_study
from tasks import train
from tasks.errors import InputError
from tasks.run.folder_names import check_folder_name
from tasks.run.plain_text import printable, spreadsheet_text
from tasks.run.presets import CONFIGS
from tasks.run.results import _wandb_media
from tasks.run.run_directory import new_folder, run_folder
from tasks.vision.data import VisionData
from tests.conftest import png

Refused = Callable[..., str]

OUTSIDE = ["../../x", "..", ".", "a/b", "/dev/null/x", "a\nb", "\x1b[2J", "x" * 256]


def stopped(main: Callable[[list[str]], None], arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    written = capsys.readouterr().err.strip().splitlines()
    assert len(written) == 1
    assert written[0].startswith("error: ")
    return written[0]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_study_stays_in_its_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(run.main, ["--task", "vision", "--seeds", "1", "--name", name]) == 2
    assert "error: NAME=" in one_line(capsys)
    assert list(Path().rglob("*")) == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_search_stays_in_its_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    space = str(CONFIGS / "sweep" / "dropout.yaml")
    assert stopped(sweep.main, ["--task", "vision", "--space", space, "--name", name]) == 2
    assert "error: NAME=" in one_line(capsys)
    assert list(Path().rglob("*")) == []


@pytest.mark.parametrize("named", ["../..", "..", "runs/studies/../..", "/", "other"])
def test_a_report_stays_in_its_folder(named: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("inner/runs").mkdir(parents=True)
    Path("other").mkdir()
    study = Study("vision", "builtin", ["none"], [0], root=Path(), name="other")
    study.save()
    before = sorted(Path().rglob("*"))
    assert stopped(report.main, ["--study", named]) == 2
    said = one_line(capsys)
    assert "is outside runs" in said or "there is no study in runs/studies/other" in said
    assert sorted(Path().rglob("*")) == before


def test_a_file_of_a_study_cannot_send_its_pages_elsewhere() -> None:
    study = Study("vision", "builtin", ["none"], [0])
    study.save()
    file = study.folder / "study.yaml"
    file.write_text(file.read_text().replace("name: vision-builtin", "name: ../../../x"))
    with pytest.raises(InputError, match=r"NAME='\.\./\.\./\.\./x' leads to another folder"):
        load_study(study.folder)


@pytest.mark.parametrize("axis", ["../../x=1,2", "model.width=" + "8" * 260])
def test_an_axis_stays_in_the_folder_of_its_study(
    axis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(run.main, ["--task", "vision", "--seeds", "1", "--axis", axis]) == 2
    one_line(capsys)
    assert list(Path().rglob("*")) == []


def test_two_runs_of_a_study_share_no_folder() -> None:
    with pytest.raises(InputError, match="would share the folder none,data"):
        Study("vision", "builtin", ["none"], [0], axes={"data.source": ["a/b", "a_b"]})


def test_a_run_stays_in_its_folder(refused: Refused) -> None:
    with pytest.raises(InputError, match="leads to another folder"):
        new_folder("vision-x-s../../../x")
    assert "seed" in refused("--task", "vision", "--seed", "../../../x", "--run_dir=run")
    assert not Path("run").exists()


@pytest.mark.parametrize("data", ["..", "../..", "../x", "/", "/etc", "a/../.."])
def test_no_name_of_data_leads_elsewhere(data: str) -> None:
    study = Study("vision", data, ["none"], [0])
    assert study.folder.parent == STUDIES
    assert ".." not in study.folder.parts
    (job,) = study.jobs(1)
    assert job.folder.parent == study.folder
    options, rest = train.parse(["--task", "vision", "--data", data])
    space = CONFIGS / "sweep" / "dropout.yaml"
    search = sweep.Search(*sweep.parse(["--task", "vision", "--data", data, "--space", str(space)]))
    assert search.folder.parent == Path("runs/sweeps")
    assert ".." not in search.folder.parts
    name = f"vision-{Path(data).name}-both-s0"
    folder = run_folder(options, name)
    assert not rest
    assert folder.parent.parent == Path("runs")
    assert ".." not in folder.parts


def pictures(folder: str) -> str:
    for name in "ab":
        Path(folder, name).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((3, 3), 100 * "ab".index(name) + number, np.uint8)
            Path(folder, name, f"{number}.png").write_bytes(png(pixels))
    return folder


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120])
def test_data_of_a_long_name_have_a_cache(name: str) -> None:
    VisionData(source=pictures(name), cache_dir="cache").setup()
    assert len([file for file in Path("cache").iterdir() if file.suffix == ".pt"]) == 1


def test_a_line_break_in_the_name_of_data_breaks_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    VisionData(source=pictures("p\nq"), cache_dir="cache").setup()
    assert caplog.records
    assert not [one for one in caplog.records if "\n" in one.message]


def test_a_text_in_a_table_of_wandb_is_no_formula() -> None:
    assert _wandb_media("=1+1") == "'=1+1"
    assert _wandb_media("1+1") == "1+1"


def test_a_name_of_many_scripts_is_a_folder_name() -> None:
    for name in ("étude 1", "שלום", "👩‍🔬", "x" * 255, "...", "-", "a=b,c"):
        check_folder_name(name, "NAME")
        assert printable(name) == name
    assert sys.getfilesystemencoding() == "utf-8"


def test_a_spreadsheet_formula_is_text() -> None:
    for text in ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\uff1d1+1"):
        assert spreadsheet_text(text) == f"'{text}"
    for text in ("", "a=1", "cat", "-0.5", "+12.00", "'=1"):
        assert spreadsheet_text(text) == text
