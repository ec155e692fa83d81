"""Plans of studies: their runs, the names of these, and later additions."""

import json
from pathlib import Path

import pytest

from study.plan import Arm, Study, estimate_run_seconds, load_study
from study.run import parse, study_from_options
from study.terminal import duration
from tasks.errors import InputError
from tests.study.conftest import record, right


def study(*arguments):
    return study_from_options(*parse(["--task", "vision", *arguments]))


def test_the_runs_are_all_variants_by_all_seeds_by_all_points():
    made = study(
        *("--variants", "none both", "--seeds", "2"),
        *("--axis", "data.train_fraction=0.1,0.5", "--axis", "model.width=8"),
    )
    names = [job.name for job in made.jobs(threads=1)]
    assert len(names) == len(set(names)) == 8
    # The runs of a seed are adjacent, so that an interrupted study has pairs.
    assert [name[-2:] for name in names] == ["s0"] * 4 + ["s1"] * 4
    command = made.jobs(threads=1)[3].command
    for part in ("--data.train_fraction=0.5", "--model.width=8", "--trainer.callbacks+"):
        assert any(argument.startswith(part) for argument in command)
    assert command[command.index("--reg") + 1] == "both"


def test_seeds_are_a_number_or_a_list():
    assert study("--seeds", "3").seeds == [0, 1, 2]
    assert study("--seeds", "3,5").seeds == [3, 5]


def test_further_arguments_are_for_every_run():
    made = study("--seeds", "1", "--trainer.max_epochs=2")
    assert all("--trainer.max_epochs=2" in job.command for job in made.jobs(threads=1))


def test_runs_log_neither_code_nor_weights_unless_they_are_asked_to():
    given = "--trainer.logger.init_args.log_model=best"
    command = study("--seeds", "1", given).jobs(threads=1)[0].command
    logged = [one for one in command if "init_args.log_" in one]
    # The last value counts.
    assert [one.rpartition(".")[2] for one in logged] == [
        *("log_code=false", "log_model=none", "log_model=best")
    ]


def test_the_loggers_are_those_of_every_run():
    for given, uses_wandb in (([], True), (["--logger", "csv wandb"], True)):
        assert study("--seeds", "1", *given).uses_wandb is uses_wandb
    made = study("--seeds", "1", "--logger", "csv")
    assert not made.uses_wandb
    for job in made.jobs(threads=1):
        assert job.command[job.command.index("--logger") + 1] == "csv"
    # The page shows the arguments as a command.
    assert study("--seeds", "1", "--logger", "csv wandb").arguments == ["--logger", "wandb,csv"]
    with pytest.raises(InputError, match="LOGGER=cvs is not one of wandb, tensorboard, csv"):
        study("--logger", "cvs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "SEEDS=0"),
        (["--seeds", "x"], "SEEDS=x"),
        (["--seeds", "1,1"], "SEEDS=1 1 contains a duplicate"),
        (["--variants", "none nnone"], "REG=nnone is not known"),
        (["--variants", "none none"], "contains a duplicate"),
        (["--variants", ""], "at least one variant"),
        (["--axis", "model.width"], "--axis model.width must have the form KEY=VALUE"),
        (["--axis", "model.width="], "must have the form KEY=VALUE"),
        (["--data", "nowhere", "--task", "sound"], "TASK=sound"),
    ],
)
def test_an_invalid_plan_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        study(*arguments)


def test_a_study_can_grow_but_not_become_another_one():
    study("--variants", "none both", "--seeds", "2").save()
    study("--variants", "none dropout", "--seeds", "0,5").save()
    whole = load_study(Path("runs/studies/vision-builtin"))
    assert whole.variants == ["none", "both", "dropout"]
    assert whole.seeds == [0, 1, 5]
    for other in (["--trainer.max_epochs=2"], ["--variants", "both none"]):
        with pytest.raises(InputError, match=r"exists with a different .* choose another NAME"):
            study(*other).save()
    assert load_study(Path("runs/studies/vision-builtin")) == whole


def test_runs_of_several_studies_can_share_a_wandb_group(tmp_path):
    first = Study("vision", "builtin", ["none"], [100], name="confirm", root=tmp_path, group="mine")
    first.save()
    command = load_study(first.folder).jobs(threads=1)[0].command
    assert "--trainer.logger.init_args.group=mine" in command
    assert "--trainer.logger.init_args.name=mine-none-s100" in command


def test_a_missing_study_is_named_with_the_existing_ones():
    study("--seeds", "1", "--name", "mine").save()
    with pytest.raises(InputError, match="no study in runs/studies/other; choose one of mine"):
        load_study(Path("runs/studies/other"))


def test_a_file_that_is_not_a_study_is_refused():
    Path("broken").mkdir()
    Path("broken/study.yaml").write_text("colour: red")
    with pytest.raises(InputError, match="is not a valid study"):
        load_study(Path("broken"))


def test_an_axis_without_values_is_refused():
    with pytest.raises(InputError, match=r"the axis model\.width has no values"):
        Study("vision", "builtin", ["none"], [0], axes={"model.width": []})


def test_names_of_files_and_values_fit_into_a_folder_name():
    arm = Arm("configs/study/trec/both.yaml", (("data.source", "a/b"),))
    assert arm.title == "both"
    assert "/" not in arm.name


def test_the_time_is_estimated_from_runs_of_the_study_and_else_from_others(planted):
    for seconds, run in ((10.0, "a"), (30.0, "b")):
        folder = Path("runs") / run / "time"
        folder.mkdir(parents=True)
        content = record(0, right(5, 10), data="mine", seconds={"train": 1.0, "all": seconds})
        content["config"] = {"trainer": {}}
        (folder / "metrics.json").write_text(json.dumps(content))
    mine = Study("vision", "mine", ["none"], [0])
    assert estimate_run_seconds(mine) == (20.0, "the median of 2 runs of vision on mine")
    content["seconds"]["all"] = 7.0
    own = mine.folder / "none-s0"
    own.mkdir(parents=True)
    (own / "metrics.json").write_text(json.dumps(content))
    assert estimate_run_seconds(mine) == (7.0, "the median of 1 runs of this study")
    assert estimate_run_seconds(Study("nlp", "nothing", ["none"], [0])) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_readable(seconds, said):
    assert duration(seconds) == said
