"""Plans of studies: which runs there are, under which names, and what may be added later."""

import json
from pathlib import Path

import pytest

from study.plan import Arm, Study, load_study, seconds_a_run
from study.run import duration, parse, planned
from tasks.errors import InputError
from tests.study.conftest import record, right


def study(*arguments):
    return planned(*parse(["--task", "vision", *arguments]))


def test_the_runs_are_all_variants_by_all_seeds_by_all_points():
    made = study(
        *("--variants", "none both", "--seeds", "2"),
        *("--axis", "data.train_fraction=0.1,0.5", "--axis", "model.width=8"),
    )
    names = [job.name for job in made.jobs(threads=1)]
    assert len(names) == len(set(names)) == 8
    # All of one seed stand together, so that a study that is stopped has pairs.
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "SEEDS=0"),
        (["--seeds", "x"], "SEEDS=x"),
        (["--seeds", "1,1"], "SEEDS=1 1 names one of them twice"),
        (["--variants", "none nnone"], "REG=nnone is not known"),
        (["--variants", "none none"], "names one of them twice"),
        (["--variants", ""], "at least one variant"),
        (["--axis", "model.width"], "--axis model.width is not of the form KEY=VALUE"),
        (["--axis", "model.width="], "not of the form KEY=VALUE"),
        (["--data", "nowhere", "--task", "sound"], "TASK=sound"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        study(*arguments)


def test_a_study_can_grow_but_not_become_another_one():
    study("--variants", "none both", "--seeds", "2").save()
    study("--variants", "none dropout", "--seeds", "0,5").save()
    whole = load_study(Path("runs/studies/vision-builtin"))
    assert whole.variants == ["none", "both", "dropout"]
    assert whole.seeds == [0, 1, 5]
    for other in (["--trainer.max_epochs=2"], ["--variants", "both none"]):
        with pytest.raises(InputError, match=r"begun with another .* NAME of its own"):
            study(*other).save()
    assert load_study(Path("runs/studies/vision-builtin")) == whole


def test_a_study_that_is_not_there_is_named_with_those_that_are():
    study("--seeds", "1", "--name", "mine").save()
    with pytest.raises(InputError, match="no study in runs/studies/other; there are mine"):
        load_study(Path("runs/studies/other"))


def test_a_file_that_is_none_of_a_study_is_refused():
    Path("broken").mkdir()
    Path("broken/study.yaml").write_text("colour: red")
    with pytest.raises(InputError, match="is none of a study"):
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
    assert seconds_a_run(mine) == (20.0, "the median of 2 runs of vision on mine")
    content["seconds"]["all"] = 7.0
    own = mine.folder / "none-s0"
    own.mkdir(parents=True)
    (own / "metrics.json").write_text(json.dumps(content))
    assert seconds_a_run(mine) == (7.0, "the median of 1 runs of this study")
    assert seconds_a_run(Study("nlp", "nothing", ["none"], [0])) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
