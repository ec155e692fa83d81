"""Searches with several seeds per trial: the mean, its certainty, interruptions and failures."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from study import sweep, sweep_trial
from study.response import fit_response
from study.search_space import Space
from study.sweep_trial import Reporter, run_seeds, storage_at
from study.sweep_trial import main as trial_main
from study.trial_results import FAILED, RESULTS, accuracies, save_result
from tasks.errors import InputError
from tasks.run.checkpoints import LAST, Stopped
from tasks.run.safe_loading import read_checkpoint
from tests.offline import last_offline_run

RATE = "model.reg.head_dropout"
TINY = [
    *("--task=vision", "--reg=none", "--data=builtin", "--no_test", "--model.arch=mlp"),
    *("--model.width=8", "--model.depth=1", "--trainer.max_epochs=2", "--model.optim.lr=0.01"),
    "--trainer.accelerator=cpu",
]


@pytest.fixture
def search() -> optuna.Study:
    """An empty search in a database, and its space in a file."""
    Path("space.yaml").write_text(f"parameters: {{{RATE}: {{min: 0.1, max: 0.5}}}}")
    return optuna.create_study(
        study_name="mine", storage=storage_at("sqlite:///trials.db"), direction="maximize"
    )


def test_a_trial_trains_with_each_seed_and_its_value_is_the_mean(
    search: optuna.Study, caches: Path
) -> None:
    trial = search.ask({RATE: FloatDistribution(0.1, 0.5)})
    folder = Path("mine/trial-0")
    folder.mkdir(parents=True)
    further = [f"--data.cache_dir={caches}", f"--{RATE}=0.25", "--logger=wandb,tensorboard"]
    value = run_seeds(trial, [3, 5], folder, [*TINY, *further])
    found = accuracies(search.trials[0])
    assert value == pytest.approx((found[3] + found[5]) / 2)
    assert found[3] != found[5]
    for seed in (3, 5):
        saved = read_checkpoint(folder / f"seed-{seed}" / LAST)
        assert max(epoch["val/acc"] for epoch in saved["results"]["history"]) == found[seed]
        assert saved["run"]["config"]["seed_everything"] == seed
        assert saved["run"]["config"]["trainer"]["logger"]["init_args"]["name"] == (
            f"mine-trial-0-s{seed}"
        )
    # Each seed has a validation split of its own.
    sets = [result["validation_set"] for result in search.trials[0].user_attrs[RESULTS].values()]
    assert len(set(sets)) == 2
    first, last = (last_offline_run(folder / f"seed-{seed}") for seed in (3, 5))
    assert "sweep/val_acc_mean" not in first.summary
    shown = last.summary
    assert shown["sweep/val_acc_mean"] == pytest.approx(value)
    assert shown["sweep/val_acc_sd"] == pytest.approx(abs(found[3] - found[5]) / 2**0.5)
    events = EventAccumulator(str(folder / "seed-5/tensorboard"))
    events.Reload()
    [mean] = events.Scalars("sweep/val_acc_mean")
    assert mean.value == pytest.approx(value)
    # A trial of a new database finds the complete runs in its folder.
    again = search.ask({RATE: FloatDistribution(0.1, 0.5)})
    assert run_seeds(again, [3, 5], folder, [*TINY, *further]) == value
    assert search.trials[1].user_attrs[RESULTS] == search.trials[0].user_attrs[RESULTS]


Trainings = list[argparse.Namespace]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainings]:
    """Replace the training by one that has a given accuracy or error for each seed."""

    def replace(results: dict[str, float | BaseException]) -> Trainings:
        done: Trainings = []

        def train(options: argparse.Namespace, arguments: list[str], further: Any) -> None:
            done.append(options)
            result = results[options.seed]
            if isinstance(result, BaseException):
                raise result
            [reporter] = further
            save_result(reporter.trial, reporter.seed, result, 100, options.seed)

        monkeypatch.setattr(sweep_trial.train, "train", train)
        return done

    return replace


def attempt(name: str) -> None:
    """Run a trial as the search starts it."""
    folder = Path("mine") / name
    folder.mkdir(parents=True)
    trial_main(
        [
            *("--storage", "sqlite:///trials.db", "--name", "mine", "--space", "space.yaml"),
            *("--seeds", "0,1,2", "--folder", str(folder), "--task", "vision", "--no_test"),
        ]
    )


def test_a_stopped_trial_goes_on_with_the_seeds_that_are_missing(
    search: optuna.Study, trainings: Callable[..., Trainings]
) -> None:
    trainings({"0": 0.5, "1": Stopped()})
    with pytest.raises(SystemExit) as stopped:
        attempt("trial-0")
    assert stopped.value.code == 143
    done = trainings({"1": 0.6, "2": 0.7})
    attempt("trial-1")
    # In the folders of the first attempt, from their checkpoints.
    assert [(run.seed, run.run_dir, run.resume) for run in done] == [
        ("1", "mine/trial-0/seed-1", "auto"),
        ("2", "mine/trial-0/seed-2", "auto"),
    ]
    failed, complete = search.trials
    assert (failed.state, complete.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert failed.params == complete.params
    assert complete.value == pytest.approx(0.6)


def test_a_trial_without_one_of_its_seeds_has_no_value(
    search: optuna.Study,
    trainings: Callable[..., Trainings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainings({"0": 0.5, "1": InputError("the loss of step 2 is NaN")})
    with pytest.raises(SystemExit) as stopped:
        attempt("trial-0")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: seed 1: the loss of step 2 is NaN\n"
    [trial] = search.trials
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    assert trial.user_attrs[FAILED] == {"seed": 1, "error": "the loss of step 2 is NaN"}
    assert accuracies(trial) == {0: 0.5}
    # The next trial has other values.
    trainings({"0": 0.5, "1": 0.5, "2": 0.5})
    attempt("trial-1")
    assert search.trials[1].params != trial.params


def test_a_resumed_seed_remembers_its_best_epoch() -> None:
    class Trainer:
        class state:  # noqa: N801 - As in Lightning.
            fn = "fit"

        sanity_checking = False
        current_epoch = 2
        callback_metrics = {"val/acc": 0.6}  # noqa: RUF012

    class Trial:
        def report(self, value: float, step: int) -> None:
            assert value == 0.7

    reporter = Reporter(Trial(), 0, [0])  # type: ignore[arg-type]
    history = [{"val/acc": 0.7}, {"val/acc": 0.5}]
    checkpoint = {"results": {"history": history}}
    reporter.on_load_checkpoint(Trainer(), None, checkpoint)  # type: ignore[arg-type]
    reporter.on_validation_end(Trainer(), None)  # type: ignore[arg-type]
    assert reporter.best == 0.7


def response_of(results: list[dict[int, float]], examples: int, shared: bool) -> Any:
    """The response of a search with these accuracies of seeds in each trial."""
    space = Space({"p": FloatDistribution(0.0, 1.0)})
    study = optuna.create_study(direction="maximize")
    for index, found in enumerate(results):
        saved = {
            str(seed): {
                "accuracy": value,
                "examples": examples,
                "validation_set": "all" if shared else str(seed),
            }
            for seed, value in found.items()
        }
        study.add_trial(
            create_trial(
                params={"p": index / len(results)},
                distributions=space.parameters,
                value=sum(found.values()) / len(found),
                user_attrs={RESULTS: saved},
            )
        )
    return fit_response(study, space)


def test_the_interval_of_one_seed_has_the_error_of_the_validation_set() -> None:
    # Trials that agree say nothing of other examples.
    response = response_of([{0: 0.96}] * 5, examples=339, shared=True)
    assert response.smoothing < 0.001
    assert response.expected[1] == pytest.approx(0.0209, abs=0.0005)
    assert "± 2.09 from the choice of 339 validation examples" in str(response)
    assert "one seed per trial: the variation between seeds is not measured" in str(response)


@pytest.mark.parametrize(("trials", "quantile"), [(2, 4.303), (5, 2.571)])
def test_the_interval_of_several_seeds_has_their_variation(trials: int, quantile: float) -> None:
    # Seeds differ by 0.2, that is a standard deviation of 0.1414, or 0.1 of the mean of two.
    response = response_of([{0: 0.7, 1: 0.9}] * trials, examples=1000, shared=True)
    assert response.spread == pytest.approx(0.1414, abs=0.0001)
    # Student's t with one degree of freedom per trial.
    assert response.expected[1] == pytest.approx(quantile * 0.1, abs=0.001)
    assert response.examples == 1000
    assert "standard deviation of 14.14" in str(response)


def test_seeds_with_own_validation_examples_add_to_their_number() -> None:
    alike = response_of([{0: 0.8, 1: 0.8}] * 5, examples=1000, shared=False)
    assert alike.examples == 2000
    assert alike.expected[1] == pytest.approx(1.96 * (0.16 / 2000) ** 0.5, abs=0.0005)


@pytest.mark.parametrize(("seed", "seeds"), [("x", "1"), ("0", "0"), ("0", "two"), ("0", "1,1")])
def test_invalid_seeds_are_refused(seed: str, seeds: str) -> None:
    with pytest.raises(InputError, match=r"SEEDS?="):
        sweep.seeds_of(seed, seeds)


def test_a_search_prints_its_budget_and_keeps_its_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], search: optuna.Study
) -> None:
    given = ["--task", "vision", "--space", "space.yaml", "--name", "mine", "--jobs", "3"]

    def begin(*further: str) -> sweep.Search:
        return sweep.Search(*sweep.parse([*given, "--trials", "4", *further]))

    monkeypatch.setattr(sweep, "run_jobs", lambda *_: iter(()))
    begin("--seeds", "2").run()
    assert capsys.readouterr().out == "4 of 4 trials with 2 seeds each: 8 runs, 3 at a time\n"
    with pytest.raises(InputError, match="exists with a different seeds"):
        begin("--seeds", "3")
    # Searches of earlier versions have one seed.
    begun = begin("--seeds", "2").study
    begun.set_user_attr("given", {**begun.user_attrs["given"], "seed": "7"})
    begin("--seed", "7")
    with pytest.raises(InputError, match="exists with a different seeds"):
        begin("--seed", "8")


def test_a_search_says_which_seed_of_a_trial_failed(search: optuna.Study) -> None:
    given = ["--task", "vision", "--space", "space.yaml", "--name", "mine"]
    begun = sweep.Search(*sweep.parse([*given, "--seeds", "2", "--storage", "sqlite:///trials.db"]))
    good, bad = (begun.study.ask({RATE: FloatDistribution(0.1, 0.5)}) for _ in range(2))
    for trial in (good, bad):
        save_result(trial, 0, 0.5, 100, "all")
    save_result(good, 1, 0.7, 100, "all")
    bad.set_user_attr(FAILED, {"seed": 1, "error": "no memory"})
    begun.study.tell(good, 0.6)
    begun.study.tell(bad, state=TrialState.FAIL)
    begun.write()
    content = json.loads((begun.folder / "trials.json").read_text())
    assert content["trials"][0]["accuracies"] == {"0": 0.5, "1": 0.7}
    assert content["trials"][1]["failed"] == {"seed": 1, "error": "no memory"}
    assert content["trials"][1]["value"] is None
    assert content["seed_spread"] == pytest.approx(0.1414, abs=0.0001)
    page = (begun.folder / "sweep.html").read_text()
    assert '60.00 <span class="soft">(seeds: 50.00, 70.00)' in page
    assert "from the choice of 100 validation examples" in page
