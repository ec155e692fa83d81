"""A user error is one line on stderr that names the value, with exit code 2."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.run.presets import CONFIGS

Train = Callable[..., None]
Data = Callable[..., Path]


VISION = ("--task", "vision")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--task", "vison"), ["vison", "did you mean vision?"]),
        ((*VISION, "--reg", "droput"), ["droput", "did you mean dropout?"]),
        ((*VISION, "--data", "./no/such/folder"), ["./no/such/folder"]),
        ((*VISION, "--model.reg.dropuot=0.1"), ["dropuot"]),
        ((*VISION, "--model.arch=resnett"), ["model.arch=resnett", "did you mean resnet?"]),
        ((*VISION, "--model.reg.normalization=bacth"), ["bacth"]),
        ((*VISION, "--model.optim.lr=fast"), ["fast"]),
        ((*VISION, "--trainer.max_epoch=3"), ["max_epoch"]),
        ((*VISION, "--data.batchsize=3"), ["batchsize"]),
        ((*VISION, "--config", "configs/nothing.yaml"), ["configs/nothing.yaml"]),
        ((*VISION, "--seed", "one"), ["one"]),
        ((*VISION, "--trainer.precision=half"), ["half"]),
    ],
)
def test_a_typo_is_named(
    arguments: tuple[str, ...], named: list[str], refused: Callable[..., str]
) -> None:
    line = refused(*arguments)
    for part in named:
        assert part in line


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--model.reg.dropout=1", "dropout is a rate to drop in [0, 1), not 1.0"),
        ("--model.reg.head_dropout=-0.1", "-0.1"),
        ("--model.reg.drop_path=nan", "nan"),
        ("--model.training.weight_decay=-1", "weight_decay is a number of at least 0, not -1.0"),
        ("--model.augment.flip=2", "flip is a rate to drop in [0, 1), not 2.0"),
        ("--model.augment.mixup=-1", "mixup is a number of at least 0, not -1.0"),
        ("--model.optim.lr=0", "lr is more than 0, not 0.0"),
        ("--model.optim.ema=1", "ema is in [0, 1), not 1.0"),
        ("--data.train_fraction=0", "train_fraction is a fraction in (0, 1], not 0.0"),
        ("--data.label_noise=1.5", "label_noise is a fraction in [0, 1), not 1.5"),
        ("--data.batch_size=0", "batch_size is at least 1, not 0"),
        (
            "--model.reg.drop_path=0.1",
            "drop_path=0.1 drops residual branches, and this model has none",
        ),
    ],
)
def test_a_value_out_of_range_is_named(
    argument: str, named: str, refused: Callable[..., str]
) -> None:
    assert named in refused(*VISION, argument)


def test_a_typo_in_a_file_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {reg: {normalisation: batch}}")
    assert "normalisation" in refused(*VISION, "--config", "mine.yaml")
    (tmp_path / "reg.yaml").write_text("visoin: {model: {}}")
    assert "reg.yaml must hold sections named vision" in refused(*VISION, "--reg", "reg.yaml")
    (tmp_path / "broken.yaml").write_text("vision: {model: [")
    assert "broken.yaml is not YAML" in refused(*VISION, "--reg", "broken.yaml")


def test_a_preset_of_another_task_is_refused(refused: Callable[..., str]) -> None:
    line = refused("--task", "nlp", "--data", "cifar10")
    assert "DATA=cifar10 is for vision, not for TASK=nlp" in line


def test_a_batch_of_one_with_batch_norm_is_refused(refused: Callable[..., str]) -> None:
    line = refused(*VISION, "--data.batch_size=1", "--reg", "batchnorm")
    assert "data.batch_size=1" in line
    assert "batch norm" in line


def test_undecodable_images_are_counted_and_one_is_named(
    refused: Callable[..., str], small_data: Data
) -> None:
    import datasets

    file = small_data("vision") / "data" / "train-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file)).cast_column("img", datasets.Image(decode=False))
    broken = rows.map(
        lambda row, place: (
            {"img": {"bytes": b"no image", "path": None}} if place in (7, 9) else row
        ),
        with_indices=True,
    )
    broken.cast_column("img", datasets.Image()).to_parquet(str(file))
    line = refused(*VISION, "--data", str(file.parent.parent))
    assert "2 of 60 images of split train cannot be decoded" in line
    assert "row 7" in line


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(
    epochs_before: int,
    refused: Callable[..., str],
    small_data: Data,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.vision import Task

    step = epochs_before * 4 + 2
    augment = Task.augment

    def poisoned(self, batch, targets):  # type: ignore[no-untyped-def]
        batch, targets = augment(self, batch, targets)
        bad = float("nan") if self.global_step == step else 1.0
        return batch._replace(inputs=batch.inputs * bad), targets

    monkeypatch.setattr(Task, "augment", poisoned)
    line = refused(
        *(*VISION, "--data", str(small_data("vision")), "--data.batch_size=16"),
        *("--model.width=4", "--trainer.max_epochs=3"),
    )
    assert f"the loss of step {step} is NaN or infinite" in line
    assert Path("run/best.ckpt").exists() == bool(epochs_before)
    if epochs_before:
        for kind in ("best", "last"):
            state = torch.load(f"run/{kind}.ckpt", weights_only=True)["state_dict"]
            assert all(bool(value.isfinite().all()) for value in state.values())


def test_no_space_left_is_one_line(
    refused: Callable[..., str], small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/best.ckpt")

    monkeypatch.setattr("tasks.run.checkpoints.os.fsync", full)
    line = refused(*VISION, "--data", str(small_data("vision")), "--model.width=4")
    assert "no space left" in line
    assert "run/best.ckpt" in line


def test_make_names_what_is_missing() -> None:
    root = CONFIGS.parent
    for arguments, named in (
        ([], "TASK is missing"),
        (["TASK=vision", f"VENV={Path('nowhere').resolve()}"], "run make setup first"),
    ):
        done = subprocess.run(
            ["make", "-s", "-C", str(root), "train", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert named in done.stderr


def test_a_mistake_from_the_shell_shows_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.train", "--task", "vision", "--model.reg.dropout=2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
