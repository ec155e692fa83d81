"""The command `make advise`: its errors, its question, and its lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from study import advise
from study.advising.commands import advise_command
from study.advising.design_page import design_study, write_design_page
from study.advising.display import changes, short_values
from study.advising.page import write_page as write_advice_page
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
        (["--design", "ablations"], "DESIGN=ablations is not known"),
        (["--reg", "full"], "REG=full is the recipe of a design; set DESIGN=ablation, or list"),
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


@pytest.mark.parametrize(
    ("design", "reg", "arms"),
    [
        ("kinds", "both", ["none", "both", "without-normalization", "without-dropout"]),
        ("factorial", "", ["none", "dropout", "normalization", "both"]),
        # Of one part, the recipe without it is the baseline.
        ("ablation", "batchnorm", ["without-normalization", "batchnorm"]),
    ],
)
def test_the_arms_of_a_design_begin_with_the_baseline(
    design: str, reg: str, arms: list[str]
) -> None:
    given = ["--task", "vision", "--design", design, "--reg", reg]
    asked = advise.question_from_options(*advise.parse(given))
    assert [Path(file).stem for file in asked.arms] == arms
    assert asked.name == f"vision-builtin-{design}-{reg or 'both'}"
    command = advise_command(asked)
    assert f"DESIGN={design} REG={reg or 'both'} NAME=" in command
    assert "ARMS" not in command


def test_the_confirmation_of_a_design_has_a_page_of_contributions() -> None:
    """The recipe comes first there; in the advice, the baseline does."""
    arms = ["none", "both", "without-dropout", "without-normalization"]
    advice, folder = plant_advice(ADVICES, arms)
    assert design_study(advice, folder) is None
    asked = replace(advice.question, design="kinds", recipe="both")
    advice = replace(advice, question=asked)
    made = design_study(advice, folder)
    assert made is not None
    assert [Path(file).stem for file in made.variants] == [
        *("both", "none", "without-dropout", "without-normalization")
    ]
    # A run of the last round has not ended.
    (folder / "confirm" / "none-s105" / "metrics.json").unlink()
    made = design_study(advice, folder)
    assert made is not None
    assert made.seeds == [100, 101, 102, 103, 104]
    file = write_design_page(advice, folder)
    assert file == folder / "confirm" / "study.html"
    page = file.read_text()
    assert "normalization contributes +7.80 points (+6.44 to +9.16)" in page
    assert "Missing: " not in page
    assert "Main effects and interaction" in page
    assert "VARIANTS=" in page
    write_advice_page(advice, folder, under_way=False)
    assert '<a href="confirm/study.html">' in (folder / "advice.html").read_text()
    # Only the primary contrast was confirmed.
    asked = replace(asked, arms=[*arms, "without-weight_decay"])
    assert write_design_page(replace(advice, question=asked), folder) is None


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
