"""Equal tuning: the same trials and steps for each arm, finalists, and going on after a kill."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.advising import arms
from study.advising.arms import LENGTH, RATE
from study.advising.budget import load_plan
from study.advising.records import Advice, Confirmation, Question
from study.advising.resolving import resolved_config
from study.advising.tuning import tune
from study.advising.work import Work
from study.designs import design_presets
from study.launch import Job
from tasks.errors import InputError

EPOCH, STEP_SECONDS, START_SECONDS = 20, 0.01, 2.0
ARMS = ["none", "dropout", "batchnorm"]


def arguments_of(job: Job) -> dict[str, str]:
    """Return the last value of each configuration key in the command of a training."""
    pairs = (one.removeprefix("--").partition("=") for one in job.command if "=" in one)
    return {key: value for key, _, value in pairs}


Outcome = Callable[[dict[str, str], Path], float | None]


def learned(arguments: dict[str, str], folder: Path) -> float | None:
    """Return an accuracy that is best at a learning rate of 0.002, and higher with dropout."""
    rate = float(arguments.get(RATE, "0.003"))
    head = float(arguments.get("model.reg.head_dropout", "0"))
    return 0.8 - abs(rate - 0.002) * 10 + 0.1 * min(head, 0.3)


@dataclass(frozen=True)
class FakeWork(Work):
    """Trainings that take simulated time only.

    Args:
        outcome: Accuracy of a training; None if it fails.
        error: The error of those that fail.
        clock: The simulated time.
        started: The trainings that were started.
    """

    outcome: Outcome = learned
    error: str = "planted"
    clock: list[float] = field(default_factory=lambda: [0.0])
    started: list[Path] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.clock[0]

    def run(self, next_job: Callable[[], Job | None]) -> Iterator[tuple[Job, bool]]:
        while (job := next_job()) is not None:
            if not job.done:
                self.started.append(job.folder)
                job.folder.mkdir(parents=True, exist_ok=True)
                self._train(job)
            yield job, job.done

    def _train(self, job: Job) -> None:
        arguments = arguments_of(job)
        steps = EPOCH * int(arguments.get("trainer.max_epochs", "0").replace("null", "0"))
        steps = steps or int(arguments[LENGTH])
        training = STEP_SECONDS * steps
        self.clock[0] += (START_SECONDS + training) / self.at_a_time
        accuracy = self.outcome(arguments, job.folder)
        if accuracy is None:
            (job.folder / "error.txt").write_text(f"exit code 2\nerror: {self.error}\n")
            return
        epoch = {"step": steps, "val/acc": accuracy, "val/loss": 1 - accuracy, "reg/gap_acc": 0.1}
        content = {
            "best": epoch,
            "last": epoch,
            "at_chance": accuracy < 0.2,
            "history": [epoch | {"step": EPOCH, "epoch": 0}],
            "steps": steps,
            "seconds": {"train": training, "all": training + 0.5},
            "examples": {"validation": 100},
        }
        (job.folder / job.results).write_text(json.dumps(content))


def question(arms: Sequence[str] = ARMS, budget: float = 1000.0, **changes: Any) -> Advice:
    asked = Question("mine", "vision", "builtin", list(arms), budget, 0.5)
    return Advice(replace(asked, **changes))


@functools.cache
def known_config(task: str, reg: str, data: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Resolve a configuration once for all tests; it takes half a second."""
    return resolved_config(task, reg, data, list(arguments))


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def resolve(task: str, reg: str, data: str, arguments: list[str]) -> dict[str, Any]:
        return known_config(task, reg, data, tuple(arguments))

    monkeypatch.setattr(arms, "resolved_config", resolve)


def tuned(advice: Advice, work: Work) -> Advice:
    """Tune to the end."""
    *_, last = tune(advice, Path.cwd(), work, lambda line: None)
    return last


def test_each_arm_gets_the_same_trials_and_at_most_the_same_steps() -> None:
    found = tuned(question(), FakeWork(1000, 2, 1))
    plan = load_plan(Path.cwd())
    assert plan is not None
    assert plan.trials >= 6
    for arm in found.tuning:
        assert [trial.number for trial in arm.trials] == list(range(plan.trials))
        assert sum(trial.results[0].steps for trial in arm.trials) <= plan.trials * plan.steps
        assert len(arm.finalists) == plan.finalists
        assert all({*arm.trials[number].results} == {0, 1, 2} for number in arm.finalists)


def test_the_first_trial_is_trained_once_and_only_the_baseline_can_choose_it() -> None:
    def best_without(arguments: dict[str, str], folder: Path) -> float:
        return 0.9 if folder.parent.name == "trial-0" else 0.5

    work = FakeWork(1000, 2, 1, outcome=best_without)
    found = tuned(question(), work)
    assert [file for file in work.started if file.parent.name == "trial-0"].count(
        Path.cwd() / "tune" / "none" / "trial-0" / "seed-0"
    ) == 1
    assert {file.parent.parent.name for file in work.started if "trial-0" in str(file)} == {"none"}
    assert [arm.trials[0].origin for arm in found.tuning] == ["without"] * 3
    assert [arm.chosen == 0 for arm in found.tuning] == [True, False, False]


def test_the_first_trials_that_are_drawn_are_alike_in_all_arms() -> None:
    found = tuned(question(budget=3000.0), FakeWork(3000, 2, 1))
    drawn = [
        [
            (trial.parameters[RATE], trial.parameters[LENGTH])
            for trial in arm.trials
            if trial.origin == "sampled"
        ][:4]
        for arm in found.tuning
    ]
    assert len({*drawn[0]}) == 4
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_winner_is_chosen_by_further_seeds_and_not_by_luck() -> None:
    def lucky(arguments: dict[str, str], folder: Path) -> float:
        trial, seed = folder.parent.name, folder.name
        if trial == "trial-2":
            return 0.9 if seed == "seed-0" else 0.5
        return 0.7 if trial == "trial-3" else 0.4

    found = tuned(question(), FakeWork(1000, 2, 1, outcome=lucky))
    for arm in found.tuning:
        assert arm.finalists[:2] == [2, 3]
        assert arm.chosen == 3


def test_an_interrupted_tuning_trains_nothing_twice_and_ends_the_same() -> None:
    work = FakeWork(1000, 2, 1)
    while True:
        # Each start ends after four trainings.
        steps = tune(question(), Path.cwd(), work, lambda line: None)
        for _ in range(4):
            found = next(steps, None)
        if found is None:
            break
        steps.close()  # type: ignore[attr-defined]
    assert len(work.started) == len({*work.started})
    resumed = {file: file.read_text() for file in Path("tuned").iterdir()}
    trials = {file: file.read_text() for file in Path("tune").rglob("trial.json")}
    assert resumed.keys() == {Path("tuned") / f"{arm}.yaml" for arm in ARMS}
    for number, file in enumerate(sorted(trials)):
        assert json.loads(file.read_text())["parameters"], number


def test_an_arm_that_stays_at_chance_is_not_chosen() -> None:
    def flat(arguments: dict[str, str], folder: Path) -> float:
        return 0.1 if "batchnorm" in str(folder) else 0.8

    found = tuned(question(), FakeWork(1000, 2, 1, outcome=flat))
    assert [arm.never_trained for arm in found.tuning] == [False, False, True]
    assert found.tuning[2].chosen is None
    assert not Path("tuned/batchnorm.yaml").exists()


def test_a_failed_trial_keeps_its_error_and_three_in_a_row_end_it() -> None:
    def fails(arguments: dict[str, str], folder: Path) -> float | None:
        return None if str(folder).endswith("dropout/trial-2/seed-0") else 0.8

    found = tuned(question(), FakeWork(1000, 2, 1, outcome=fails))
    assert found.tuning[1].trials[2].error == "planted"
    assert 2 not in found.tuning[1].finalists

    def all_fail(arguments: dict[str, str], folder: Path) -> float | None:
        return 0.8 if folder.name == "probe" else None

    for file in Path.cwd().iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    work = FakeWork(1000, 2, 1, outcome=all_fail)
    with pytest.raises(InputError, match=r"3 trainings in a row failed; .*planted"):
        tuned(question(), work)
    assert len(work.started) == 1 + 3


def test_a_tuned_preset_trains_with_the_chosen_values() -> None:
    found = tuned(question(), FakeWork(1000, 2, 1)).tuning[1]
    assert found.chosen is not None
    config = resolved_config("vision", found.preset, "builtin", [])
    for key, value in found.trials[found.chosen].parameters.items():
        assert arms.value_at(config, key) == value
    assert config["model"]["optim"]["epochs"] == 1
    assert [*yaml.safe_load(Path(found.preset).read_text())] == ["vision"]


def test_a_short_budget_gives_shorter_trainings_or_is_refused() -> None:
    said: list[str] = []
    work = FakeWork(120, 1, 1)
    *_, found = tune(question(budget=120.0), Path.cwd(), work, said.append)
    plan = load_plan(Path.cwd())
    assert plan is not None
    assert plan.trials >= 3
    assert plan.steps < plan.preset_steps
    assert any("The budget is short" in line for line in said)
    assert work.seconds <= plan.until
    assert all(arm.chosen is not None for arm in found.tuning)
    (Path.cwd() / "plan.json").unlink()
    with pytest.raises(InputError, match=r"BUDGET=30 s is too short: .* need about BUDGET=\d+m"):
        tuned(question(budget=30.0), FakeWork(30, 1, 1))


def test_what_the_arguments_set_is_not_tuned() -> None:
    fixed = ["--model.optim.lr=0.004", "--trainer.max_epochs=2", "--model.reg.dropout=0.1"]
    work = FakeWork(1000, 2, 1)
    found = tuned(question(arguments=fixed), work)
    keys = {key for arm in found.tuning for trial in arm.trials for key in trial.parameters}
    assert keys
    assert not keys & {RATE, LENGTH, "model.reg.dropout"}


def test_a_confirmation_that_has_begun_ends_the_tuning() -> None:
    begun = replace(question(), confirmation=Confirmation("dropout", "none", [5]))
    assert not [*tune(begun, Path.cwd(), FakeWork(1000, 2, 1), lambda line: None)]


def test_no_trial_repeats_the_preset_or_another_trial() -> None:
    """The preset for texts is what the literature says: head dropout of 0.5."""
    found = tuned(question(["none", "dropout", "weight_decay"], task="nlp"), FakeWork(1000, 2, 1))
    for arm in found.tuning:
        own = [trial for trial in arm.trials if trial.origin != "without"] or arm.trials
        values = [trial.parameters for trial in own]
        assert all(one not in values[:index] for index, one in enumerate(values)), arm.arm
    origins = [trial.origin for trial in found.tuning[1].trials]
    assert origins[:4] == ["without", "default", "literature", "sampled"]


def test_options_that_a_task_does_not_have_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(["none", "augment"]).question
    [_, arm] = arms.read_arms(asked)
    assert "model.augment.cutout" in arm.own.parameters
    config = {
        **arm.config,
        "model": {k: v for k, v in arm.config["model"].items() if k != "augment"},
    }
    monkeypatch.setattr(arms, "resolved_config", lambda *_: config)
    assert arms.read_arms(asked)[1].own.parameters == {}


def test_an_arm_of_a_design_tunes_what_its_preset_has_left() -> None:
    """In the ranges of the recipe; a removed regularizer would come back by its rate."""
    files = design_presets("kinds", "speech", "builtin", "full", Path.cwd())
    asked = question(files, task="speech", design="kinds", recipe="full").question
    tuned = {arm.name: {*arm.own.parameters} for arm in arms.read_arms(asked)}
    whole = tuned["full"]
    assert "model.augment.time_mask" in whole
    dropout = {"model.reg.dropout", "model.reg.head_dropout"}
    augmentation = {key for key in whole if ".augment." in key}
    decay, smoothing = "model.training.weight_decay", "model.training.label_smoothing"
    assert tuned == {
        "full": {*dropout, *augmentation, decay, smoothing},
        "without-dropout": whole - dropout,
        "without-normalization": whole,
        "without-weight_decay": whole - {decay},
        "without-label_smoothing": whole - {smoothing},
        "without-augmentation": whole - augmentation,
        "without-dropout-and-normalization": whole - dropout,
        "none": set(),
    }


def test_an_own_task_and_an_own_preset_are_tuned() -> None:
    task = f"{Path(__file__).parents[2] / 'examples/own_task/task.py'}:TableTask"
    Path("mine.yaml").write_text("TableTask: {model: {reg: {dropout: 0.4}}}\n")
    found = tuned(question(["none", "dropout", "mine.yaml"], task=task), FakeWork(1000, 2, 1))
    assert [arm.arm for arm in found.tuning] == ["none", "dropout", "mine"]
    tried = [{*trial.parameters} for arm in found.tuning[1:] for trial in arm.trials[1:]]
    assert {"model.reg.input_dropout", RATE, LENGTH} <= tried[0]
    assert tried[-1] == {RATE, LENGTH}
    for arm in found.tuning:
        config = resolved_config(task, arm.preset, "builtin", [])
        assert arms.value_at(config, RATE) == arm.trials[arm.chosen or 0].parameters[RATE]


def test_a_place_that_the_model_lacks_ends_the_tuning_with_what_to_do() -> None:
    def lacks(arguments: dict[str, str], folder: Path) -> float | None:
        return None if float(arguments.get("model.reg.input_dropout", "0")) else 0.8

    said = "input_dropout=0.2 drops inputs, and this model has none"
    work = FakeWork(1000, 2, 1, outcome=lacks, error=said)
    with pytest.raises(InputError, match=r'ARGS="--model.reg.input_dropout=0.0" and another NAME'):
        tuned(question(), work)
    fixed = question(arguments=["--model.reg.input_dropout=0.0"])
    shutil.rmtree("tune")
    assert all(arm.chosen is not None for arm in tuned(fixed, FakeWork(1000, 2, 1)).tuning)
