"""The command `make advise`: its errors, its question, and its lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from study import advise
from study.advising.display import changes, short_values
from study.advising.records import ADVICES
from tests.study.advised import plant_advice


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "30"], "BUDGET=30 must be a time such as 90s, 30m or 2h"),
        (["--budget", "nanh"], "BUDGET=nanh must be a time"),
        (["--precision", "0"], "PRECISION=0 must be a number of points"),
        (["--arms", "none dropuot"], "ARMS: dropuot is not known; did you mean dropout"),
        (["--arms", "none none"], "ARMS=none none contains a duplicate"),
        (["--arms", ""], "ARMS= is empty; the first arm is the baseline"),
        (["--task", "vison"], "TASK=vison is not known; did you mean vision?"),
        (["--name", "a/b"], "NAME='a/b' leads to another folder"),
        (["--logger", "wandbb"], "LOGGER=wandbb is not one of"),
        (["--jobs", "0"], "JOBS=0 must be auto or a whole number"),
        (["--model.reg.dropot=0.1"], "unrecognized arguments: --model.reg.dropot=0.1"),
    ],
)
def test_an_error_is_one_line_before_anything_runs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        advise.main(["--task", "vision", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not list(Path().glob("**/log.txt"))


def test_another_question_needs_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    plant_advice(ADVICES, phase="tuning")
    given = ["--task", "vision", "--name", "vision-builtin"]
    with pytest.raises(SystemExit):
        advise.main([*given, "--arms", "none dropout", "--data.train_fraction=0.5"])
    assert "exists with a different arms and arguments" in capsys.readouterr().err
    # A larger budget and a smaller precision continue it.
    options, further = advise.parse([*given, "--budget", "9h", "--precision", "0.1"])
    asked = advise.question_from_options(options, further)
    known = advise.open_advice(asked, ADVICES / asked.name)
    assert len(known.tuning) == 4
    assert (known.question.budget, known.question.precision) == (32400.0, 0.1)


def test_plain_lines_tell_what_is_new(tmp_path: Path) -> None:
    known, _ = plant_advice(tmp_path / "planted")
    arm = known.tuning[1]
    trial = arm.trials[-1]
    before = replace(
        known,
        tuning=[known.tuning[0], replace(arm, trials=arm.trials[:-1]), *known.tuning[2:]],
    )
    result = trial.results[0]
    assert changes(before, known) == [
        f"dropout, trial {trial.number}, seed 0: {100 * result.accuracy:.2f} %; "
        f"{short_values(trial.parameters)}"
    ]
