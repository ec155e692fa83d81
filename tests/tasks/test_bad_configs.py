"""Invalid configurations: a one-line error names the fix, and nothing is trained."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]
Train = Callable[..., None]

VISION = ("--task", "vision", "--model.width=4")
LAUGHS = "\n".join(
    f"{name}: &{name} [{', '.join([part] * 9)}]"
    for name, part in zip("abcdefgh", ("x", "*a", "*b", "*c", "*d", "*e", "*f", "*g"), strict=True)
)

FILES = {
    "a list": ("[1, 2]", "mine.yaml must hold keys and values"),
    "a word": ("hello", "mine.yaml must hold keys and values"),
    "empty": ("", "mine.yaml must hold keys and values"),
    "no YAML": ("data: [1", "mine.yaml is not YAML: while parsing a flow sequence"),
    "itself in itself": ("model: &m\n  reg: *m", "mine.yaml is nested too deeply, or refers to"),
    "deep": ("a: " + "[" * 900 + "]" * 900, "mine.yaml is nested too deeply"),
    "billion laughs": (LAUGHS, "mine.yaml is not YAML: it has more than 50000 parts"),
    "a key twice": (
        "data: {batch_size: 8}\ndata: {batch_size: 16}",
        "the key data occurs twice",
    ),
    "a long number": (f"data: {{batch_size: {'9' * 5000}}}", "mine.yaml is not YAML: Exceeds"),
    "a number too large": ("data: {batch_size: 1e400}", "data.batch_size"),
    "NaN": ("model: {optim: {lr: .nan}}", "lr is more than 0, not nan"),
    "Latin-1": ("# café".encode("latin-1"), "mine.yaml is not YAML: 'utf-8' codec can't decode"),
    "a NUL": (b"data: {batch_size: 8}\0", "mine.yaml is not YAML: unacceptable character"),
    "code": ("!!python/object/apply:os.getcwd []", "mine.yaml is not YAML: could not determine"),
    "a class of no module": ("trainer: {callbacks: [{class_path: no.such.Class}]}", "no.such.Cl"),
    "a number as key": ("1: 2", "mine.yaml must hold keys and values"),
    "a section that is a list": ("model: [1]", "mine.yaml: model must hold keys and values, not"),
    "a section that is null": ("model: null", "model must hold keys and values, not None"),
}


@pytest.mark.parametrize(("content", "named"), FILES.values(), ids=FILES)
def test_a_file(content: str | bytes, named: str, refused: Refused) -> None:
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in refused(*VISION, "--config", "mine.yaml")
    assert not Path("run").exists()


PRESETS = {
    "a list of sections": ("[vision]", "reg.yaml must hold sections named vision, speech, nlp"),
    "a section that is a word": ("vision: dropout", "reg.yaml: vision must hold keys and values"),
    "itself in itself": ("vision: &a {model: *a}", "reg.yaml is nested too deeply, or refers to"),
    "Latin-1": ("# café\nvision: {}".encode("latin-1"), "reg.yaml is not YAML: 'utf-8' codec"),
}


@pytest.mark.parametrize(("content", "named"), PRESETS.values(), ids=PRESETS)
def test_a_preset(content: str | bytes, named: str, refused: Refused) -> None:
    Path("reg.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in refused(*VISION, "--reg", "reg.yaml")


VALUES = {
    "no file": ("--config=nowhere.yaml", "nowhere.yaml cannot be read (No such file"),
    "a folder as file": ("--config=.", ". cannot be read (Is a directory)"),
    "an argument in itself": ("--model=&m {reg: *m}", "--model is nested too deeply"),
    "no epochs": ("--trainer.max_epochs=0", "trainer.max_epochs is at least 1, not 0"),
    "epochs without end": ("--trainer.max_epochs=-1", "trainer.max_epochs=-1 has no end"),
    "fewer than no epochs": ("--trainer.max_epochs=-5", "You passed in -5"),
    "no steps": ("--trainer.max_steps=0", "trainer.max_steps is at least 1, not 0"),
    "no training batches": ("--trainer.limit_train_batches=0", "limit_train_batches=0 leaves"),
    "no validation batches": ("--trainer.limit_val_batches=0", "limit_val_batches=0 leaves"),
    "no test batches": ("--trainer.limit_test_batches=0", "limit_test_batches=0 leaves"),
    "a share of batches": ("--trainer.limit_train_batches=2.5", "invalid value 2.5"),
    "no accumulation": ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches is at"),
    "a log every 0 steps": ("--trainer.log_every_n_steps=0", "log_every_n_steps is at least 1"),
    "a check every 0 epochs": ("--trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch"),
    "no time": ("--trainer.max_time=soon", "'soon'"),
    "a batch of less than none": ("--data.batch_size=-3", "batch_size is at least 1, not -3"),
    "no devices": ("--devices=0", "devices='0'"),
    "devices in words": ("--devices=abc", "devices"),
    "a TPU where there is none": ("--trainer.accelerator=tpu", "torch_xla"),
    "a precision of 8 bits": ("--trainer.precision=8", "trainer.precision"),
    "a strategy of no name": ("--trainer.strategy=nonsense", "strategy='nonsense'"),
    "a negative seed": ("--seed=-1", "-1 is not in bounds"),
    "a negative width": ("--model.width=-4", "width is at least 1, not -4"),
    "an image size of 100,000": ("--data.image_size=100000", "at most 8192, not 100000"),
    "no data": ("--data=", "DATA='' is neither a name nor a possible path"),
    "data of a long name": (f"--data={'a' * 999}", "is neither a name nor a possible path"),
    "a preset of a long name": (f"--reg={'a' * 999}", "REG='aaaa"),
    "too small a share": ("--data.train_fraction=0.001", "1 training examples are left of 898"),
}


@pytest.mark.parametrize(("argument", "named"), VALUES.values(), ids=VALUES)
def test_a_value(argument: str, named: str, refused: Refused) -> None:
    line = refused(*VISION, argument)
    assert named in line
    assert "compute_fn" not in line
    assert not Path("run").exists()


def test_a_batch_larger_than_the_data_is_all_of_it(train: Train) -> None:
    train(*VISION, "--data.batch_size=1000000", "--trainer.max_epochs=2")
    assert json.loads(Path("run/metrics.json").read_text())["steps"] == 2


@pytest.mark.parametrize("early_stopping", [0, 2])
def test_a_run_that_ends_before_it_was_validated(early_stopping: int, refused: Refused) -> None:
    line = refused(
        *(*VISION, "--trainer.max_steps=1", "--data.batch_size=8"),
        f"--model.training.early_stopping={early_stopping}",
    )
    assert "the run ended before a validation" in line
    assert "max_epochs" in line


@pytest.mark.parametrize(("limit", "steps"), [("2", 2), ("0.3", 2), ("1.0", 7)])
def test_a_whole_limit_counts_batches_and_a_fraction_is_of_them(
    limit: str, steps: int, train: Train
) -> None:
    # There are 7 batches.
    train(
        *(*VISION, f"--trainer.limit_train_batches={limit}", "--data.batch_size=112"),
        *("--trainer.max_epochs=1", "--model.width=4"),
    )
    assert json.loads(Path("run/metrics.json").read_text())["steps"] == steps


def test_a_limit_of_1_is_one_batch_in_a_process_of_its_own(caches: Path) -> None:
    # In this process, types that another package has built first can turn 1 into 1.0, all batches.
    command = [
        *(sys.executable, "-m", "tasks.train", *VISION, "--run_dir=run"),
        *(f"--data.cache_dir={caches}", "--trainer.logger=false", "--trainer.accelerator=cpu"),
        *("--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--data.batch_size=112"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(Path("run/metrics.json").read_text())["steps"] == 1


def test_an_anchor_and_its_alias_are_good_yaml(train: Train) -> None:
    Path("ü ñ.yaml").write_text(
        "model: {reg: {dropout: &p 0.25, head_dropout: *p}}\ntrainer: {max_epochs: 1}",
        encoding="utf-8",
    )
    train(*VISION, "--config", "ü ñ.yaml", "--trainer.limit_train_batches=1")
    reg = json.loads(Path("run/metrics.json").read_text())["config"]["model"]["reg"]
    assert (reg["dropout"], reg["head_dropout"]) == (0.25, 0.25)
