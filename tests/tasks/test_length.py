"""The length of a training: epochs with a floor in steps, and what is complete without a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.run.length import VALIDATIONS, resolve_length

Train = Callable[..., None]
Data = Callable[..., Path]

# 54 training examples, so 4 batches an epoch.
SMALL = (
    *("--model.arch=mlp", "--model.width=4", "--data.batch_size=16", "--reg", "none"),
    "--model.optim.min_steps=0",
)


def read(name: str = "validation.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("run", name).read_text())
    return loaded


@given(
    epochs=st.integers(1, 100),
    min_steps=st.integers(0, 20_000),
    steps=st.integers(1, 1000),
    every=st.none() | st.integers(1, 10),
)
def test_the_floor_adds_epochs_and_few_validations(
    epochs: int, min_steps: int, steps: int, every: int | None
) -> None:
    found, interval = resolve_length(epochs, min_steps, steps, every)
    if epochs * steps >= min_steps:
        assert (found, interval) == (epochs, every or 1)
        return
    assert found * steps >= min_steps
    # The last epoch is validated, and no interval more than needed is added.
    assert found % interval == 0
    assert (found - interval) * steps < min_steps
    if every is None:
        most = max(epochs, VALIDATIONS)
        assert min(found, most) / 1.5 <= found / interval <= 1.5 * most + 1
    else:
        assert interval == every


@pytest.mark.parametrize(
    ("options", "epochs", "steps", "validated"),
    [
        # 4 steps an epoch: every epoch is validated.
        ((), 12, 48, 12),
        # 2 steps an epoch.
        (("--trainer.accumulate_grad_batches=2",), 24, 48, 24),
        # 1 step an epoch: every second epoch.
        (("--trainer.limit_train_batches=1",), 48, 48, 24),
        (("--trainer.check_val_every_n_epoch=10",), 20, 80, 2),
        # As the last, but validated after every epoch.
        (("--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=1"), 48, 48, 48),
        # After every 8 steps, across epochs.
        (("--trainer.val_check_interval=8",), 12, 48, 6),
        (("--trainer.max_epochs=2",), 2, 8, 2),
        (("--trainer.max_steps=13",), 4, 13, 3),
        (("--trainer.max_steps=13", "--trainer.max_epochs=2"), 2, 8, 2),
    ],
    ids=[
        "floor",
        "accumulated",
        "limited",
        "interval",
        "each",
        "steps",
        "max_epochs",
        "max_steps",
        "both",
    ],
)
def test_a_run_trains_the_steps_that_it_was_given(
    options: tuple[str, ...],
    epochs: int,
    steps: int,
    validated: int,
    train: Train,
    small_data: Data,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(
        *("--task", "vision", "--data", str(small_data("vision")), *SMALL, "--no_test"),
        *("--model.optim.epochs=2", "--model.optim.min_steps=48", *options),
    )
    found = read()
    assert found["epochs"] == epochs
    assert found["steps"] == steps
    assert len(found["history"]) == validated
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    # The schedule ends with the training, at a learning rate of 0.
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)
    lines = capsys.readouterr().out.splitlines()
    added = [line for line in lines if "instead of" in line]
    if any("max_" in option for option in options):
        assert not added
    else:
        assert found["last"]["step"] == steps
        assert added[0].startswith(
            f"54 examples: {epochs} epochs instead of 2, for at least 48 steps"
        )
        last = [line for line in lines if line.startswith("epoch ")][-1]
        assert last.startswith(f"epoch {epochs}/{epochs}  train ")


def test_a_run_without_a_test_is_complete_with_its_validation(
    train: Train,
    refused: Callable[..., str],
    small_data: Data,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ("--task", "vision", "--data", str(small_data("vision")), *SMALL)
    run = (*run, "--model.optim.epochs=3")
    train(*run, "--no_test")
    before = Path("run/validation.json").read_bytes()
    found = read()
    assert found["best"] == max(found["history"], key=lambda epoch: epoch["val/acc"])
    assert found["last"] == found["history"][-1]
    assert found["examples"]["validation"] == 6
    assert not {"test", "predictions", "confusion"} & found.keys()
    capsys.readouterr()
    train(*run, "--no_test", "--resume=auto")
    assert "the run in run is complete" in capsys.readouterr().out
    # The same run with its test.
    train(*run, "--resume=auto")
    tested = read("metrics.json")
    assert tested["history"] == found["history"]
    assert tested["steps"] == found["steps"] == 12
    assert tested["predictions"]
    assert Path("run/validation.json").read_bytes() == before


def test_a_finished_run_without_a_test_is_not_overwritten(
    train: Train, refused: Callable[..., str], small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("--task", "vision", "--data", str(small_data("vision")), *SMALL)
    run = (*run, "--model.optim.epochs=1", "--no_test")
    train(*run)
    before = Path("run/validation.json").read_bytes()
    # `train` deletes what is finished.
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    assert "run contains a finished run" in refused(*run)
    assert Path("run/validation.json").read_bytes() == before


def test_a_run_without_a_validation_is_refused_in_one_line(
    refused: Callable[..., str], small_data: Data
) -> None:
    line = refused(
        *("--task", "vision", "--data", str(small_data("vision")), *SMALL, "--no_test"),
        "--trainer.max_steps=1",
    )
    assert "the run ended before a validation" in line
    assert not Path("run/validation.json").exists()


def test_a_run_of_an_older_version_resumes_with_its_length(
    train: Train, small_data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--task", "vision", "--data", str(small_data("vision")), *SMALL)
    train(*run, "--no_test", "--trainer.max_epochs=3")
    file = Path("run/previous.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    saved = checkpoint["run"]["config"]
    assert saved["trainer"]["max_epochs"] == 3
    # Its value if it was not set.
    saved["trainer"]["check_val_every_n_epoch"] = 1
    for name in ("epochs", "min_steps"):
        del saved["model"]["optim"][name]
        del checkpoint["hyper_parameters"]["optim"][name]
    torch.save(checkpoint, "run/last.ckpt")
    file.unlink()
    Path("run/validation.json").unlink()
    capsys.readouterr()
    # A preset's length and a floor, which the older run did not have.
    train(*run, "--no_test", "--resume=auto", "--model.optim.min_steps=200")
    assert (read()["epochs"], read()["steps"], len(read()["history"])) == (3, 12, 3)
    assert "instead of" not in capsys.readouterr().out
