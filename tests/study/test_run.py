"""A study from the command line, on learnable data."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from study import report, results, run
from study.gain_table import gain_tables
from study.launch import Job
from study.plan import load_study
from study.results import collect
from tasks.run.presets import CONFIGS
from tests.study.conftest import record, right

TINY = [
    *("--model.arch=mlp", "--model.width=16", "--model.depth=1", "--trainer.max_epochs=2"),
    *("--data.cache_dir=cache", "--data.batch_size=16", "--model.optim.lr=0.01"),
]


@pytest.fixture
def study(small_data, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    data = small_data("vision")

    def call(*arguments):
        run.main(["--task", "vision", "--data", str(data), "--jobs", "2", *arguments, *TINY])

    return call


@pytest.mark.parametrize(("loggers", "recorded"), [("csv", False), ("csv wandb", True)])
def test_gains_are_recorded_in_wandb_only_if_the_runs_are(loggers, recorded, monkeypatch):
    class Launcher:
        def run(self, jobs):
            return iter(jobs)

    calls = []
    monkeypatch.setattr(run, "make_launcher", lambda *_: Launcher())
    monkeypatch.setattr(run.LiveGains, "update", lambda self, tables: calls.append(tables))
    given = ["--task", "vision", "--variants", "none", "--seeds", "1", "--logger", loggers]
    run.run(*run.parse(given), Console(file=io.StringIO()))
    assert bool(calls) is recorded


def test_a_study_executes_missing_runs_and_prints_the_gain(study, capsys):
    study("--variants", "none both", "--seeds", "2")
    said = capsys.readouterr().out
    assert "2 variants x 2 seeds = 4 runs" in said
    assert "[4/4]" in said
    assert "a confidence interval needs at least 3" in said
    folder = Path("runs/studies/vision-small")
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}
    assert len(before) == 4
    study("--variants", "none both", "--seeds", "0,1")
    assert "all runs are done" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}
    # Only one more seed of each variant.
    study("--variants", "none both", "--seeds", "0,1,2")
    assert "4 done, 2 missing" in capsys.readouterr().out
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}
    assert {file.parent.name for file in after.keys() - before.keys()} == {"none-s2", "both-s2"}
    assert before.items() <= after.items()
    # A report reads the new seed too.
    assert load_study(folder).seeds == [0, 1, 2]
    assert "<!doctype html>" in (folder / "study.html").read_text()
    assert (folder / "wandb-workspace.json").exists()
    # The runs are paired: a seed has the same test examples and initial weights in all variants.
    collection = collect(load_study(folder))
    found = [result for seeds in collection.results.values() for result in seeds.values()]
    assert len({result.test_set for result in found}) == 1
    # The tables read the results that the runs wrote.
    for result in found:
        assert result.last_accuracy == result.record["test_last"]["acc"]
        assert result.at_chance is result.record["at_chance"]
    for file in before:
        record = json.loads(file.read_text())
        assert record["steps"] > 0
        assert record["peak_memory_bytes"] > 1_000_000
        assert record["config"]["trainer"]["logger"]["init_args"]["group"] == "vision-small"
        shift = any(key.startswith("reg/variance_shift/") for key in record["history"][-1])
        assert shift == (record["reg"] == "both")
    report.main(["--study", "vision-small"])
    report.main(["--study", str(folder)])
    assert "page of the study" in capsys.readouterr().out


def test_a_run_that_fails_is_recorded_and_the_study_says_so(study, capsys):
    broken = {"vision": {"model": {"reg": {"dropout": 2.0}}}}
    Path("broken.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(SystemExit) as ended:
        study("--variants", "none broken.yaml", "--seeds", "1")
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "failed: runs/studies/vision-small/broken-s0: error: " in said.err
    assert "[1/2] none-s0" in said.out
    assert (
        "Missing: 1 of 2 runs, 1 of them failed."
        in Path("runs/studies/vision-small/study.html").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variants", "noone"], "REG=noone is not known"),
        (["--seeds", "none"], "SEEDS=none"),
        (["--launcher", "ray", "--launcher_option", "address"], "KEY=VALUE"),
        (["--jobs", "many"], "JOBS=many"),
    ],
)
def test_a_mistake_is_one_line(study, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        study(*arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_report_of_no_study_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        report.main(["--study", "nothing"])
    assert ended.value.code == 2
    assert "there is no study in runs/studies/nothing" in capsys.readouterr().err


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def test_the_display_computes_its_tables_only_when_a_run_has_ended(gaining, monkeypatch):
    computed = []

    def counted(collection):
        computed.append(collection.done)
        return gain_tables(collection)

    monkeypatch.setattr(run, "gain_tables", counted)
    read = []
    whole = results.read_result
    monkeypatch.setattr(
        results, "read_result", lambda file: read.append(file.parent.name) or whole(file)
    )
    (gaining.folder / "both-s2/metrics.json").rename("later.json")
    progress = run.Progress(gaining, 9, 1, console := terminal())
    with progress.live():
        assert progress.display.refresh_per_second <= 1
        for _ in range(20):
            progress.display.refresh()
        Path("later.json").rename(gaining.folder / "both-s2/metrics.json")
        progress.update(Job("both-s2", gaining.folder / "both-s2", []))
        for _ in range(20):
            progress.display.refresh()
    assert computed == [8, 9]
    # Each result file is read once.
    assert len(read) == len(set(read)) == 9
    shown = console.file.getvalue()
    assert "8 of 9 runs done" in shown
    assert "9 of 9 runs done" in shown
    assert "+12.00" in shown


def lines(table, width):
    console = terminal(width)
    console.print(run.terminal_table(table, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_terminal_of_80_columns_shows_the_main_figures_whole(planted):
    def arm(name, counts, stuck=False):
        last = {"acc": 0.1, "loss": 1.0, "ece": 0.1}
        return [
            record(s, right(count, 100), name, test_last=last, at_chance=stuck and s == 0)
            for s, count in enumerate(counts)
        ]

    arms = {"none": arm("none", [60, 62, 58]), "weight_decay": arm("weight_decay", [40, 62, 30])}
    head, _, row = lines(gain_tables(collect(planted(arms)))[0], 80)
    assert head.split() == "variant seeds test % gain 95 % interval p (Holm) last NLL".split()
    assert row.split()[-2:] == ["+0.00", "+0.000"]
    assert max(map(len, (head, row))) <= 80
    # A wide terminal shows more columns.
    table = gain_tables(collect(planted(arms, name="wide")))[0]
    assert all(name in lines(table, 200)[0] for name in ("memory", "incl. test examples"))
    # A narrow terminal does not cut cells.
    assert lines(table, 12)[0].split() == ["variant"]
    assert "..." not in "".join(lines(table, 40))
    # It includes the number of runs that did not learn.
    arms["weight_decay"] = arm("weight_decay", [33, 62, 30], stuck=True)
    row = lines(gain_tables(collect(planted(arms, name="stuck")))[0], 80)[-1]
    assert "3, 1 at chance" in row
    assert len(row) <= 80


def test_a_run_at_chance_level_says_so(planted):
    made = [record(0, right(33, 100), at_chance=True)]
    study = planted({"none": made})
    progress = run.Progress(study, 1, 1, Console(file=io.StringIO()))
    said = progress.line(Job("none-s0", study.run_folder(next(study.arms()), 0), []))
    assert said.startswith("[1/1] none-s0: 33.00 %, training stayed at chance accuracy")
