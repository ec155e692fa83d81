"""A run that is killed and resumed ends like an uninterrupted run, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import Moment, in_process

from tasks.errors import InputError
from tasks.run.checkpoints import LAST, PREVIOUS
from tasks.run.resume import config_differences, resumable

Data = Callable[..., Path]

# 3 epochs of 7 steps, with all options that have a state: dropout, batch norm, augmentation,
# a moving average, early stopping, a dropout schedule.
COMMON = [
    *("--data.batch_size=16", "--data.validation_fraction=0.2", "--trainer.max_epochs=3"),
    *("--trainer.accelerator=cpu", "--trainer.logger=false", "--reg=full"),
    *("--model.optim.ema=0.9", "--model.training.early_stopping=2"),
    *("--model.reg.dropout=0.2", "--model.training.dropout_schedule=linear"),
]
TASKS = {
    "vision": [
        *("--model.arch=resnet", "--model.width=4", "--model.reg.drop_path=0.2"),
        "--model.training.sam=0.05",
    ],
    "speech": ["--model.width=8", "--model.training.max_norm=2"],
    "nlp": ["--model.width=16", "--data.vocabulary=100", "--model.training.norm_recompute=2"],
}
HOOKS = [
    *("on_train_batch_start", "on_after_backward", "on_before_zero_grad", "on_train_batch_end"),
    *("on_validation_start", "on_validation_batch_end", "on_validation_end"),
    *("on_train_epoch_end", "on_save_checkpoint"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Callable[..., Any]:
    """Create the data and an uninterrupted run of a task, once; return data and outcome."""
    root = tmp_path_factory.mktemp("alone")
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(task: str, small_data: Data) -> tuple[Path, dict[str, Any]]:
        if task not in made:
            data = small_data(task, train=140).rename(root / task)
            folder = root / f"{task}-run"
            assert in_process(command(task, data, caches, folder)) == 0, log()
            made[task] = data, outcome(folder)
        return made[task]

    return run


def command(task: str, data: Path, cache: Path, folder: Path) -> list[str]:
    return [
        *("--task", task, "--data", str(data), "--run_dir", str(folder), "--resume=auto"),
        *(f"--data.cache_dir={cache}", *COMMON, *TASKS[task]),
    ]


def log() -> str:
    return Path("log.txt").read_text(errors="replace")


def outcome(folder: Path) -> dict[str, Any]:
    """Return the results and checkpoints of a run, without times and paths."""
    results = json.loads((folder / "metrics.json").read_text())
    tested = ("test", "test_last", "predictions", "predictions_last", "steps", "at_chance")
    return {
        "history": without_speed(results["history"]),
        **{name: results[name] for name in (*tested, "confusion", "test_set")},
        **{name: timeless(folder, name) for name in ("best.ckpt", "last.ckpt")},
    }


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in epoch.items() if not name.startswith("speed/")}
        for epoch in history
    ]


def timeless(folder: Path, name: str) -> dict[str, Any]:
    """Return a checkpoint without the parts that may differ between runs."""
    found: dict[str, Any] = torch.load(folder / name, weights_only=True)
    # Without the seconds; examples and steps must be equal.
    del found["speed"][0]
    results = found["results"]
    assert results.pop("interruptions") >= 0
    for seconds in ("seconds", "epoch_seconds"):
        del results[seconds]
    results["history"] = without_speed(results["history"])
    # That of the working tree, which may have changed meanwhile.
    del found["run"]["facts"]["git_commit"]
    # The current and the previous path of the run's folder.
    for key in ("default_root_dir", "logger"):
        del found["run"]["config"]["trainer"][key]
    for path in (folder, Path("run")):
        found["callbacks"] = relative(found["callbacks"], str(path.resolve()))
    return found


def relative(value: Any, folder: str) -> Any:
    """Make paths in a folder relative to it, in nested values."""
    if isinstance(value, str):
        return value.removeprefix(folder)
    if isinstance(value, dict):
        return {relative(key, folder): relative(part, folder) for key, part in value.items()}
    return value


def assert_same(here: Any, there: Any, path: str = "") -> None:
    """Compare nested values, tensors bit for bit."""
    if isinstance(here, torch.Tensor):
        assert torch.equal(here, there), path
    elif isinstance(here, dict):
        assert isinstance(there, dict), path
        assert here.keys() == there.keys(), path
        for name in here:
            assert_same(here[name], there[name], f"{path}.{name}")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), path
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_same(one, other, f"{path}[{number}]")
    else:
        assert here == there, path


@pytest.mark.parametrize("number", range(20))
def test_a_killed_run_ends_with_the_same_checkpoints(
    number: int, alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    task = list(TASKS)[number % 3]
    data, left_alone = alone(task, small_data)
    chance = random.Random(number)
    folder = Path("run")
    arguments = command(task, data, caches, folder)
    # Checkpoints at the end of each epoch, or after every step.
    long = chance.choice([600.0, -1.0])
    step = 0
    for _ in range(chance.choice([1, 1, 2, 3])):
        step = chance.randrange(step, 21)
        moment = Moment(chance.choice(HOOKS), step)
        assert in_process(arguments, moment, long) in (-signal.SIGKILL, 0), log()
    if not (folder / "metrics.json").exists():
        assert in_process(arguments) == 0, log()
    assert_same(outcome(folder), left_alone)


def test_the_best_epoch_so_far_survives_a_kill_and_another_folder(
    alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    data, left_alone = alone("vision", small_data)
    best = left_alone["best.ckpt"]["epoch"]
    assert best < 2
    # After the best epoch, so that no later epoch has a better score.
    code = in_process(
        command("vision", data, caches, Path("run")), Moment("on_train_batch_start", 7 * best + 8)
    )
    assert code == -signal.SIGKILL, log()
    Path("run").rename("moved")
    assert in_process(command("vision", data, caches, Path("moved"))) == 0, log()
    assert_same(outcome(Path("moved")), left_alone)


@pytest.mark.parametrize("hook", ["on_after_backward", "on_validation_start"])
def test_sigterm_saves_the_step_and_ends_with_143(
    hook: str, alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    data, left_alone = alone("vision", small_data)
    arguments = command("vision", data, caches, Path("run"))
    code = in_process(arguments, Moment(hook, 9, signal.SIGTERM))
    assert code == 128 + signal.SIGTERM, log()
    assert "with RESUME=auto to resume" in log()
    saved = torch.load("run/last.ckpt", weights_only=True)
    # The current step is completed; after the validation starts, the epoch is.
    assert saved["global_step"] == {"on_after_backward": 10, "on_validation_start": 14}[hook]
    assert in_process(arguments) == 0, log()
    assert json.loads(Path("run/metrics.json").read_text())["interruptions"] == 1
    assert_same(outcome(Path("run")), left_alone)


@pytest.fixture
def interrupted(alone: Callable[..., Any], small_data: Data, caches: Path) -> list[str]:
    """Create an unfinished run with two checkpoints; return its command line."""
    data, _ = alone("vision", small_data)
    arguments = command("vision", data, caches, Path("run"))
    assert in_process(arguments, Moment("on_train_batch_start", 16)) == -signal.SIGKILL, log()
    assert {file.name for file in Path("run").glob("*.ckpt")} == {
        *("best.ckpt", "last.ckpt", "previous.ckpt")
    }
    return arguments


def config() -> dict[str, Any]:
    found: dict[str, Any] = torch.load("run/last.ckpt", weights_only=True)["run"]["config"]
    return found


class Harmful:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_code(file: Path) -> None:
    torch.save({"run": Harmful()}, file)


def replace_by_weights(file: Path) -> None:
    torch.save({"weight": torch.ones(2)}, file)


def change(name: str, value: Any) -> Callable[[Path], None]:
    """Return a function that changes a value in a checkpoint, or deletes it if it is None."""

    def write(file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        saved[name] = value
        torch.save({key: part for key, part in saved.items() if part is not None}, file)

    return write


DAMAGES = [
    (change("run", {}), "is not a checkpoint to resume from (it lacks the configuration"),
    (change("run", {"config": 3}), "is not a checkpoint to resume from (it lacks the conf"),
    (change("run", None), "is not a checkpoint to resume from (it lacks run)"),
    (change("loops", None), "is not a checkpoint to resume from (it lacks loops)"),
    (
        change("run", {"config": {}}),
        "belongs to another run (seed_everything is missing there and 0 here;",
    ),
    (cut, "is incomplete"),
    (empty, "is incomplete"),
    (flip, "is damaged"),
    (replace_by_code, "contains more than tensors"),
    (replace_by_weights, "is not a checkpoint of a run"),
]


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    interrupted: list[str],
    alone: Callable[..., Any],
    small_data: Data,
    caplog: pytest.LogCaptureFixture,
) -> None:
    last, good, settings = Path("run/last.ckpt"), Path("run/last.ckpt").read_bytes(), config()
    for damage, named in DAMAGES:
        last.write_bytes(good)
        damage(last)
        caplog.clear()
        assert resumable(Path("run"), settings) == Path("run/previous.ckpt")
        assert f"run/last.ckpt {named}" in caplog.text
        assert len(caplog.text) < 1000
        assert "resuming from run/previous.ckpt" in caplog.text
    assert not Path("harm").exists()
    # Two epochs are repeated from it, with the same result.
    assert in_process(interrupted) == 0, log()
    assert "resuming from run/previous.ckpt" in log()
    assert_same(outcome(Path("run")), alone("vision", small_data)[1])


def test_without_a_valid_checkpoint_the_run_is_refused_and_nothing_is_lost(
    interrupted: list[str],
) -> None:
    settings = config()
    for name in (LAST, PREVIOUS):
        cut(Path("run", name))
    before = {file: file.read_bytes() for file in Path("run").glob("*.ckpt")}
    with pytest.raises(InputError, match=r"last\.ckpt is incomplete.*previous\.ckpt is incomplete"):
        resumable(Path("run"), settings)
    assert in_process(interrupted) == 2
    assert {file: file.read_bytes() for file in Path("run").glob("*.ckpt")} == before


def test_the_checkpoint_of_another_run_is_refused_and_the_difference_named(
    interrupted: list[str],
) -> None:
    assert in_process([*interrupted, "--model.width=5", "--trainer.max_epochs=4"]) == 2
    last_line = log().strip().splitlines()[-1]
    assert last_line.startswith("error: run/last.ckpt belongs to another run (")
    assert "trainer.max_epochs is 3 there and 4 here" in last_line
    assert "model.width is 4 there and 5 here" in last_line


def test_the_difference_of_two_runs_is_named_by_its_keys() -> None:
    many = {"data": {str(number): number for number in range(9)}, "seed": 1}
    for there, here, named in (
        (many, {}, ["data.0 is 0 there and missing here", "data.1 is 1 there and missing here"]),
        ({}, many, ["data.0 is missing there and 0 here", "data.1 is missing there and 1 here"]),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2]}, ["a.0.b is 1 there and 3 here"]),
        ({"a": [1]}, {"a": [1, {"b": 2}]}, ["a.1.b is missing there and 2 here"]),
        ({"a": None}, {"a": {"b": 2}}, ["a is None there and {'b': 2} here"]),
        ({"a": {}}, {}, ["a is {} there and missing here"]),
        ({"trainer": {"logger": {"x": 1}}}, {"trainer": {"logger": {"x": 2}}}, []),
    ):
        assert list(config_differences(there, here))[:2] == named
    [difference] = config_differences({"text": "word " * 99}, {"text": "other"})
    assert len(difference) < 100


def test_a_run_is_found_by_its_name_or_named_by_its_folder(
    alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    data, left_alone = alone("vision", small_data)
    named = [
        part
        for part in command("vision", data, caches, Path("run"))
        if part not in ("--run_dir", "run", "--resume=auto")
    ]
    assert in_process(named, Moment("on_train_batch_start", 9)) == -signal.SIGKILL, log()
    [folder] = Path("runs/vision-vision-full-s0").iterdir()
    assert in_process([*named, "--resume", str(folder), "--model.width=9"]) == 2
    assert in_process([*named, "--resume=auto"]) == 0, log()
    assert_same(outcome(folder), left_alone)
    # The run is complete now: the next one would be a new run.
    assert in_process([*named, "--resume", str(folder)]) == 0
    assert log().strip().endswith(f"the run in {folder} is complete")
    assert in_process([*named, "--resume=runs/nowhere"]) == 2
    assert "RESUME=runs/nowhere is not the folder of a run" in log()


def test_a_resumed_run_continues_its_wandb_run(
    alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    data, _ = alone("vision", small_data)
    arguments = [
        part
        for part in command("vision", data, caches, Path("run"))
        if part != "--trainer.logger=false"
    ]
    code = in_process(arguments, Moment("on_train_batch_start", 9, signal.SIGTERM))
    assert code == 128 + signal.SIGTERM, log()
    # As after a killed process.
    left = [Path("run", name) for name in ("last.ckpt.partial", "metrics.json.partial")]
    for file in left:
        file.write_bytes(b"half")
    for name in ("tmp1234wandb-media", "tmp1234wandb-artifacts"):
        left.append(Path("run", name))
        left[-1].mkdir()
        (left[-1] / "half").write_bytes(b"half")
    assert in_process(arguments) == 0, log()
    assert not [path for path in left if path.exists()]
    assert not [*Path("run").glob("*.partial"), *Path("run").glob("tmp*")]
    parts = sorted(Path("run/wandb").glob("offline-run-*"))
    assert len(parts) == 2
    [name] = {part.name.split("-")[3] for part in parts}
    assert Path("run/wandb_id.txt").read_text() == name
    # The last folder is complete: rows from before the interruption occur once.
    wandb = Path(sys.executable).parent / "wandb"
    shown = subprocess.run(
        [wandb, "leet", "inspect", "--json", parts[-1]], capture_output=True, text=True, check=True
    )
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    rows = [one["history"]["item"] for one in records if one["type"] == "history"]
    # Lightning counts the steps of each validation from 0.
    validated = [row["trainer/global_step"] for row in rows if "val/acc" in row]
    assert validated == [6, 13, 20]


def test_a_checkpoint_from_before_resume_existed_still_opens(
    interrupted: list[str],
) -> None:
    from tasks.vision import Task

    old = torch.load("run/best.ckpt", weights_only=True)
    for added in ("run", "random", "results", "speed", "sums"):
        del old[added]
    torch.save(old, "old.ckpt")
    here = Task.load_from_checkpoint("old.ckpt").state_dict()
    there = Task.load_from_checkpoint("run/best.ckpt").state_dict()
    assert_same(dict(here), dict(there))


def test_two_ranks_stop_at_one_step_and_resume_with_their_own_masks(
    alone: Callable[..., Any], small_data: Data, caches: Path
) -> None:
    data, _ = alone("vision", small_data)
    # A script, since Lightning starts the second process from it; only the first gets the signal.
    Path("ranks.py").write_text(
        "import functools, os, sys\n"
        "from interrupt import Moment, Sender\n"
        "from tasks import train\n"
        "step = int(sys.argv[1]) if 'LOCAL_RANK' not in os.environ else sys.maxsize\n"
        "sender = Sender(Moment('on_train_batch_start', step, 15))\n"
        "train.train = functools.partial(train.train, further=[sender])\n"
        "train.main(sys.argv[2:])\n"
    )

    def run(folder: str, step: int) -> int:
        done = subprocess.run(
            [
                *(sys.executable, "ranks.py", str(step)),
                *(*command("vision", data, caches, Path(folder)), "--devices=2"),
            ],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert done.returncode in (0, 128 + signal.SIGTERM), done.stderr
        return done.returncode

    assert run("whole", sys.maxsize) == 0
    assert run("parts", 2) == 128 + signal.SIGTERM
    saved = torch.load("parts/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    first, second = (state["torch"] for state in saved["random"])
    assert not torch.equal(first, second)
    assert run("parts", sys.maxsize) == 0
    assert_same(outcome(Path("parts")), outcome(Path("whole")))
