"""A run, from the command line to its results."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml

Train = Callable[..., None]
Data = Callable[..., Path]

SMALL = {
    "vision": ["--model.width=8", "--model.depth=2"],
    "speech": ["--model.width=8"],
    "nlp": ["--model.width=16", "--data.vocabulary=100"],
}


def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("run/metrics.json").read_text())
    return loaded


@pytest.mark.parametrize("task", ["vision", "speech", "nlp"])
def test_a_task_learns(task: str, train: Train, small_data: Data) -> None:
    data = small_data(task, train=240)
    train(
        *("--task", task, "--data", str(data), "--reg", "batchnorm", *SMALL[task]),
        *("--data.batch_size=16", "--trainer.max_epochs=6", "--model.optim.lr=0.01"),
    )
    assert results()["test"]["acc"] > 0.9
    assert results()["examples"] == {"train": 216, "validation": 24, "test": 24}


def test_results_hold_what_an_independent_evaluation_finds(train: Train, small_data: Data) -> None:
    from tasks.vision import Data as VisionData
    from tasks.vision import Task

    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"]),
        *("--data.batch_size=16", "--trainer.max_epochs=3", "--seed=3"),
    )
    found = results()
    module = VisionData(source=str(data), cache_dir="elsewhere", seed=3)
    module.setup()
    task = Task.load_from_checkpoint("run/best.ckpt").eval()
    test = module.splits["test"].gather(torch.arange(24))
    with torch.no_grad():
        logits = task(test.inputs)
    assert found["predictions"]["predicted"] == logits.argmax(1).tolist()
    assert found["predictions"]["label"] == test.labels.tolist()
    hits = (logits.argmax(1) == test.labels).float().mean()
    assert found["test"]["acc"] == pytest.approx(float(hits))
    loss = torch.nn.functional.cross_entropy(logits, test.labels)
    assert found["test"]["loss"] == pytest.approx(float(loss), rel=1e-4)
    confusion = torch.tensor(found["confusion"])
    assert confusion.sum() == 24
    assert confusion.sum(1).tolist() == test.labels.bincount(minlength=3).tolist()
    # The gap is train minus validation accuracy, both of the same weights in eval mode.
    for epoch in found["history"]:
        assert epoch["reg/gap_acc"] == pytest.approx(epoch["train_eval/acc"] - epoch["val/acc"])
    assert len(found["history"]) == 3
    assert found["best"]["val/acc"] == max(epoch["val/acc"] for epoch in found["history"])
    assert found["seed"] == 3
    assert found["config"]["model"]["reg"]["normalization"] == "batch"
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_best_checkpoint_is_tested_and_not_the_last(train: Train, small_data: Data) -> None:
    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"], "--data.batch_size=16"),
        *("--trainer.max_epochs=5", "--model.optim.schedule=constant", "--model.optim.lr=0.02"),
        *("--model.optim.optimizer=sgd", "--reg", "none"),
    )
    found = results()
    best = torch.load("run/best.ckpt", weights_only=True)
    last = torch.load("run/last.ckpt", weights_only=True)
    assert best["epoch"] == found["best"]["epoch"]
    assert last["epoch"] == 4


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(
    train: Train, small_data: Data
) -> None:
    data = str(small_data("vision"))
    histories = []
    for seed in ("1", "1", "2"):
        train(
            *("--task", "vision", "--data", data, "--seed", seed, "--trainer.max_epochs=2"),
            *("--data.batch_size=16", "--model.width=4", "--reg", "full"),
        )
        histories.append(results()["history"])
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_the_moving_average_is_saved_with_its_buffers(train: Train, small_data: Data) -> None:
    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"], "--data.batch_size=16"),
        *("--trainer.max_epochs=2", "--model.optim.ema=0.5"),
    )
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    for kind in ("weight", "running_mean"):
        names = [name for name in averaged if name.endswith(kind)]
        assert names
        assert any(not torch.equal(averaged[name], current[name]) for name in names)


def test_early_stopping_stops(train: Train, small_data: Data) -> None:
    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"], "--data.batch_size=16"),
        # With this learning rate, the validation accuracy does not improve.
        *("--trainer.max_epochs=9", "--model.optim.lr=1e-12", "--model.training.early_stopping=2"),
    )
    assert len(results()["history"]) == 3


def test_validation_and_training_probe_are_measured_in_eval_mode(
    train: Train, small_data: Data
) -> None:
    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"], "--data.batch_size=16"),
        *("--trainer.max_epochs=16", "--model.optim.lr=0.01", "--model.reg.dropout=0.6"),
        *("--model.reg.head_dropout=0.6",),
    )
    # With so much dropout, training mode could not reach this accuracy.
    assert results()["best"]["train_eval/acc"] > 0.95


def test_an_offline_run_holds_configuration_and_metrics(train: Train, small_data: Data) -> None:
    data = small_data("vision")
    train(
        *("--task", "vision", "--data", str(data), *SMALL["vision"], "--data.batch_size=16"),
        *("--trainer.max_epochs=2", "--trainer.log_every_n_steps=2"),
        logger=True,
    )
    [run] = Path("run/wandb").glob("offline-run-*")
    wandb = Path(sys.executable).parent / "wandb"
    shown = subprocess.run(
        [wandb, "leet", "inspect", "--summary", "--json", run],
        capture_output=True,
        text=True,
        check=True,
    )
    inspected = json.loads(shown.stdout)
    text = shown.stdout
    assert inspected["config"]["model"]["reg"]["normalization"] == "batch"
    assert inspected["config"]["versions"]["torch"]
    assert inspected["config"]["parameters"] > 0
    for metric in (
        *("train/loss", "train/acc", "val/acc", "val/ece", "reg/gap_acc", "test/acc", "test/ece"),
        *("test_last/acc", "test_last/loss", "test_last/ece"),
        *("speed/examples_per_second", "test/worst_mistakes", "trainer/global_step"),
    ):
        assert f'"{metric}"' in text, metric
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["model"]["reg"] == results()["config"]["model"]["reg"]


def test_vision_imports_no_large_package_that_it_does_not_need(caches: Path) -> None:
    code = (
        "import sys; from tasks.train import main\n"
        "main(sys.argv[1:])\n"
        "large = 'transformers', 'torchaudio', 'datasets', 'scipy.signal'\n"
        "print([name for name in large if name in sys.modules])"
    )
    arguments = [
        *("--task", "vision", "--run_dir=run", f"--data.cache_dir={caches}"),
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.width=4"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == "[]"
    assert lines[-6].startswith("test accuracy ")
    assert lines[-5].startswith("last epoch    ")
    assert lines[-4] == "run in run"
    assert lines[-3].startswith("predict with it: make predict CKPT=run ")
    assert lines[-2].startswith("look at it: wandb leet run/wandb/offline-run-")


def test_duplicates_cause_one_warning_for_all_runs_with_the_same_cache(
    train: Train, small_data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    data = small_data("nlp")
    # Test texts and training texts differ in their numbers; make one of each equal.
    for split in ("train", "test"):
        file = data / "data" / f"{split}-00000-of-00001.parquet"
        rows = pyarrow.parquet.read_table(file).to_pydict()
        rows["text"][0] = "red one two"
        pyarrow.parquet.write_table(pyarrow.Table.from_pydict(rows), file)
    for seed in ("0", "0", "1"):
        train(
            *("--task", "nlp", "--data", str(data), "--seed", seed, *SMALL["nlp"]),
            *("--trainer.max_epochs=1", "--data.cache_dir=mine", "--data.label_column=label"),
        )
    assert caplog.text.count("split train too") == 1
    # Lightning does not log the seed: it is in the name of the run.
    assert not logging.getLogger("lightning.fabric.utilities.seed").isEnabledFor(logging.INFO)


def test_two_processes_test_each_example_once(small_data: Data, caches: Path) -> None:
    data = small_data("vision", train=61, test=23)
    arguments = [
        *("--task", "vision", "--data", str(data), "--devices", "2", "--run_dir=run"),
        *(f"--data.cache_dir={caches}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
        *("--model.width=4", "--data.batch_size=8", "--trainer.logger=false", "--reg", "none"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.train", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = results()
    assert found["predictions"]["label"] == [row % 3 for row in range(23)]
    assert sum(map(sum, found["confusion"])) == 23
