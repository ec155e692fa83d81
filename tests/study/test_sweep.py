"""Searches: search spaces, selection of the best trial, and trials as separate runs."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from study import sweep
from study.response import encode, fit_response
from study.search_space import Space, distribution, read_space
from study.sweep_page import write_page
from study.sweep_trial import Reporter
from study.sweep_trial import main as trial_main
from tasks.errors import InputError
from tasks.run.presets import CONFIGS, config_stack
from tests.study.logged import check_panel, panels_of, read_logged

SPACES = sorted((CONFIGS / "sweep").glob("*.yaml"))
TINY = [
    *("--model.arch=mlp", "--model.width=8", "--model.depth=1", "--trainer.max_epochs=3"),
    *("--data.cache_dir=cache", "--trainer.enable_progress_bar=False"),
]


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ({"min": 0.0, "max": 0.8}, FloatDistribution(0.0, 0.8)),
        ({"min": 1, "max": 8}, IntDistribution(1, 8)),
        ({"values": [0.0, "x"]}, CategoricalDistribution((0.0, "x"))),
        (
            {"distribution": "log_uniform_values", "min": 0.01, "max": 1},
            FloatDistribution(0.01, 1.0, log=True),
        ),
        (
            {"distribution": "q_uniform", "min": 0, "max": 0.8, "q": 0.1},
            FloatDistribution(0.0, 0.8, step=0.1),
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 0.002, "max": 0.8, "q": 0.01},
            FloatDistribution(0.002, 0.8, log=True),
        ),
    ],
)
def test_an_entry_of_wandb_is_the_same_for_optuna(entry: Any, meant: Any) -> None:
    assert distribution(entry) == meant


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no parameters"),
        ("parameters: {}", "has no parameters"),
        ("parameters: {a: {value: 1}}", "only fixed values"),
        ("parameters: {a: {min: 0.0}}", "a: 'max' is missing"),
        ("parameters: {a: 3}", "a: 3 must be a mapping"),
        ("parameters: {a: {min: 2, max: 1}}", "a: "),
        ("parameters: {a: {distribution: unifrom, min: 0, max: 1}}", "did you mean uniform"),
        ("parameters: {a: {distribution: q_uniform, min: 0, max: 1}}", "a: 'q' is missing"),
        (
            "parameters: {a: {distribution: q_log_uniform_values, min: 0.1, max: 1}}",
            "a: 'q' is missing",
        ),
        (
            "parameters: {a: {distribution: q_log_uniform_values, min: 0.1, max: 1, q: 0}}",
            "a: q must be positive, not 0",
        ),
        (
            "parameters: {a: {distribution: q_log_uniform_values, min: 0.0, max: 1, q: 0.1}}",
            "a: `low > 0` must hold",
        ),
        ("a: [", "SPACE=space.yaml is not YAML: "),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(content: str, said: str) -> None:
    Path("space.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        read_space(Path("space.yaml"))


def test_a_missing_space_is_named() -> None:
    with pytest.raises(InputError, match=r"SPACE=none\.yaml"):
        read_space(Path("none.yaml"))


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_a_shipped_space_is_one_for_wandb_too(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    assert content["metric"] == {"name": "val/best_acc", "goal": "maximize"}
    assert content["command"][-1] == "${args}"
    assert "--no_test" in content["command"]
    assert content["method"] == "bayes"
    # Its first lines have a command that uses it, with the name of the file.
    assert f"SPACE=configs/sweep/{file.name}" in file.read_text()
    # With more dropout a network learns more slowly, so no trial is pruned.
    assert "early_terminate" not in content


def drawn(file: Path, count: int) -> list[dict[str, Any]]:
    """Draw from a space as a search does before its first results."""
    space = read_space(file)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(count)]


# Without regularizers; a learning rate of zero would train nothing.
@pytest.mark.parametrize(
    "file", [file for file in SPACES if file.stem != "lr"], ids=lambda file: file.stem
)
def test_a_shipped_space_has_zero_for_everything_and_its_whole_range(file: Path) -> None:
    rows = drawn(file, 300)
    space = read_space(file)
    assert set(space.values(space.lowest()).values()) == {0}
    for key in rows[0]:
        values = [row[key] for row in rows]
        assert 0 in values
        entry = yaml.safe_load(file.read_text())["parameters"][key]
        high = entry["max"] if "max" in entry else max(entry["values"])
        assert 0.8 * high < max(values) <= high
        # W&B rounds in this way, and draws integers if q is 1.
        if "q" in entry:
            assert {type(value) for value in values} == {type(entry["q"])}
            multiples = [value / entry["q"] for value in values]
            assert multiples == pytest.approx([round(one) for one in multiples])


@pytest.mark.parametrize("name", ["dropout", "dropout-text"])
def test_low_rates_at_all_sites_are_drawn_often(name: str) -> None:
    rows = drawn(CONFIGS / "sweep" / f"{name}.yaml", 400)
    mild = sum(all(rate <= 0.1 for rate in row.values()) for row in rows)
    heavy = sum(any(rate >= 0.3 for rate in row.values()) for row in rows)
    assert mild > 0.15 * 400
    assert heavy > 0.15 * 400


def searched(space: Space, values: list[tuple[dict[str, Any], float]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for parameters, value in values:
        study.add_trial(
            create_trial(params=parameters, distributions=space.parameters, value=value)
        )
    return study


def test_the_best_is_selected_after_smoothing() -> None:
    space = Space({"p": FloatDistribution(0.0, 1.0)}, {})
    # A response with its maximum at 0.3, and a high outlier far from it.
    rows = [({"p": p / 20}, 0.8 - (p / 20 - 0.3) ** 2 + 0.004 * (-1) ** p) for p in range(21)]
    rows[18] = ({"p": 0.9}, 0.803)
    study = searched(space, rows)
    response = fit_response(study, space)
    assert response.best["p"] == pytest.approx(0.3, abs=0.11)
    values, mean, half = response.curves["p"]
    assert (values[0], values[-1]) == (0.0, 1.0)
    inside = abs(mean - (0.8 - (values - 0.3) ** 2)) < 2 * half + 0.03
    assert inside[:45].all()


def test_pruned_trials_do_not_count_for_the_response() -> None:
    space = Space({"p": FloatDistribution(0.0, 1.0)}, {})
    study = searched(space, [({"p": p / 5}, 0.5 + 0.1 * p / 5) for p in range(6)])
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"p": 0.0},
            distributions=space.parameters,
            value=0.99,
        )
    )
    assert fit_response(study, space).best["p"] > 0.5


def test_importance_is_that_of_what_matters_and_the_page_shows_it() -> None:
    space = Space(
        {
            "a": FloatDistribution(0.001, 1.0, log=True),
            "b": IntDistribution(0, 4),
            "c": CategoricalDistribution(("x", "y")),
        },
        {},
    )
    rows = [
        ({"a": 10.0 ** -(k % 4), "b": k % 5, "c": "xy"[k % 2]}, 0.5 + 0.1 * (k % 5))
        for k in range(30)
    ]
    study = searched(space, rows)
    response = fit_response(study, space)
    assert max(response.importance, key=lambda key: response.importance[key]) == "b"
    assert response.best["b"] == 4
    assert set(response.curves) == {"a", "b"}
    write_page(Path("sweep.html"), "mine", study, space, response)
    assert "importance" in Path("sweep.html").read_text()
    assert encode(space, [{"a": 1.0, "b": 0, "c": "y"}]).tolist() == [[1.0, 0.0, 0.0, 1.0]]


class Trial:
    """The part of a trial that the reporter uses."""

    def __init__(self) -> None:
        self.reported: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> None:
        self.reported.append((value, step))

    def should_prune(self) -> bool:
        return True


class Trainer:
    """The part of a trainer that the pruner uses."""

    sanity_checking = False
    should_stop = False
    current_epoch = 0
    callback_metrics: dict[str, float]


def test_the_search_gets_the_best_so_far_and_no_trial_is_pruned() -> None:
    trial, trainer = Trial(), Trainer()
    reporter = Reporter(trial, 0, [0])  # type: ignore[arg-type]
    for epoch, accuracy in enumerate((0.5, 0.7, 0.6)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val/acc": accuracy}
        reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert trial.reported == [(0.5, 0), (0.7, 1), (0.7, 2)]
    assert not trainer.should_stop


def begun(space: str, trials: int = 9) -> sweep.Search:
    """Start or resume a search, without a trial."""
    Path("space.yaml").write_text(space)
    given = ["--task", "vision", "--space", "space.yaml", "--name", "mine"]
    return sweep.Search(*sweep.parse([*given, "--trials", str(trials)]))


RATES = (
    "parameters: {model.reg.dropout: {distribution: q_log_uniform_values, min: 0.002, max: 0.5,"
    " q: 0.01}, model.training.weight_decay: {min: 0.1, max: 1.0}}"
)


def test_the_lowest_values_are_tried_first_once_and_again_if_they_failed() -> None:
    search = begun(RATES)
    lowest = {"model.reg.dropout": 0.0, "model.training.weight_decay": 0.1}
    first = search.study.ask()
    assert search.space.suggest(first) == lowest
    # A second search at the same time, or a resumed one, does not add it again.
    assert begun(RATES).space.suggest(begun(RATES).study.ask()) != lowest
    search.study.tell(first, state=TrialState.FAIL)
    again = begun(RATES).study.ask()
    assert search.space.suggest(again) == lowest
    search.study.tell(again, 0.5)
    assert begun(RATES).space.suggest(begun(RATES).study.ask()) != lowest


def test_the_response_sees_the_values_that_were_trained_with() -> None:
    space = Space({"p": FloatDistribution(0.002, 0.5, log=True)}, {}, {"p": 0.01})
    draws = [0.002, 0.003, 0.004, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    study = searched(space, [({"p": draw}, 0.7 - draw) for draw in draws])
    response = fit_response(study, space)
    assert response.best == {"p": 0.0}
    values, mean, _ = response.curves["p"]
    # All values that are rounded to 0 are the same network.
    assert len(set(mean[values < 0.005].tolist())) == 1
    assert encode(space, [{"p": 0.0}, {"p": 0.5}]).tolist() == [[0.0], [1.0]]
    write_page(Path("sweep.html"), "mine", study, space, response)
    assert "below 0.005 it is trained as 0" in Path("sweep.html").read_text()


def search(*arguments: str) -> None:
    sweep.main(["--task", "vision", "--jobs", "2", "--name", "mine", *arguments, *TINY])


def test_a_search_resumes_and_writes_a_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    Path("space.yaml").write_text(
        "parameters: {model.reg.head_dropout:"
        " {distribution: q_log_uniform_values, min: 0.02, max: 0.8, q: 0.1},"
        " model.training.weight_decay: {value: 0.01}}"
    )
    given = ["--space", "space.yaml", "--reg", "batchnorm"]
    search(*given, "--trials", "2")
    search(*given, "--trials", "3")
    assert "3 of 3 trials" in capsys.readouterr().out
    folder = Path("runs/sweeps/mine")
    content = json.loads((folder / "trials.json").read_text())
    ended = content["trials"]
    assert [trial["state"] for trial in ended] == ["complete"] * 3
    # The comparison includes the network without the searched regularization.
    assert content["trials"][0]["parameters"] == {"model.reg.head_dropout": 0}
    # Each trial is a separate W&B run, and none has read the test split.
    assert len(list(folder.glob("trial-*/wandb/offline-run-*"))) == 3
    assert not list(folder.glob("trial-*/metrics.json"))
    # All that the panels of the search show is logged by its runs.
    runs = [read_logged(trial) for trial in folder.glob("trial-*")]
    for view in ("workspace", "report"):
        spec = json.loads((folder / f"wandb-{view}.json").read_text())
        shown = list(panels_of(spec))
        assert {panel["viewType"] for _, panel in shown} >= {
            *("Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot"),
        }
        for _, panel in shown:
            check_panel(panel, runs)
    for trial in content["trials"]:
        assert trial["value"] == pytest.approx(max(trial["intermediate"].values()))
    # The preset is the one of the search, with the values that it found.
    preset = yaml.safe_load(config_stack("vision", str(folder / "best.yaml"), "builtin")[-1])
    reg = preset["model"]["reg"]
    assert reg["normalization"] == "batch"
    assert preset["model"]["training"]["weight_decay"] == 0.01
    tried = [trial["parameters"]["model.reg.head_dropout"] for trial in ended]
    # Steps are added in binary: 0.7000000000000001 is written as 0.7.
    assert any(reg["head_dropout"] == pytest.approx(value) for value in tried)
    assert len(str(reg["head_dropout"])) <= 3
    with pytest.raises(SystemExit):
        search("--space", "space.yaml", "--reg", "none", "--trials", "3")
    assert "exists with a different reg" in capsys.readouterr().err
    database = sqlite3.connect(folder / "trials.db")
    assert database.execute("select count(*) from trials").fetchone() == (3,)


def test_a_search_without_wandb_logs_nothing_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    Path("space.yaml").write_text("parameters: {model.reg.head_dropout: {min: 0.0, max: 0.5}}")
    search("--space", "space.yaml", "--trials", "1", "--logger", "csv")
    folder = Path("runs/sweeps/mine")
    assert len(list(folder.glob("trial-0/csv/metrics.csv"))) == 1
    assert not list(folder.rglob("*wandb*"))
    with pytest.raises(SystemExit):
        search("--space", "space.yaml", "--trials", "1", "--logger", "wandbb")
    assert "LOGGER=wandbb is not one of wandb" in capsys.readouterr().err


def test_a_search_whose_trials_all_fail_ends_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    Path("space.yaml").write_text("parameters: {model.reg.head_droput: {min: 0.0, max: 0.5}}")
    with pytest.raises(SystemExit) as ended:
        search("--space", "space.yaml", "--trials", "9")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "3 trials in a row failed" in said
    assert "head_droput" in said


def test_a_database_that_cannot_be_opened_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text("parameters: {model.reg.dropout: {min: 0.0, max: 0.5}}")
    with pytest.raises(SystemExit) as ended:
        search("--space", "space.yaml", "--storage", "sqlite:////nowhere/at/all.db")
    assert ended.value.code == 2
    assert "STORAGE=sqlite:////nowhere/at/all.db cannot be opened" in capsys.readouterr().err
    with pytest.raises(InputError):
        trial_main(
            [
                *("--storage", "nothing://", "--name", "x", "--space", "space.yaml"),
                *("--seeds", "0", "--folder", "folder"),
            ]
        )
