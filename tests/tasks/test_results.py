"""Results of a run: metrics of the best and the last epoch, and the warning for chance level."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Train = Callable[..., None]
Data = Callable[..., Path]

SMALL = ["--model.width=8", "--model.depth=2"]


def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("run/metrics.json").read_text())
    return loaded


def at_the_best_epoch_and_the_last(train: Train, small_data: Data, *further: str) -> None:
    """Train with a high constant learning rate, so that the best epoch is not the last one."""
    train(
        *("--task", "vision", "--data", str(small_data("vision")), *SMALL),
        *("--data.batch_size=16", "--trainer.max_epochs=5", "--model.optim.schedule=constant"),
        *("--model.optim.lr=0.02", "--model.optim.optimizer=sgd", "--reg", "none", *further),
    )


def test_the_best_and_the_last_epoch_are_tested(
    train: Train, small_data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.vision import Data as VisionData
    from tasks.vision import Task

    at_the_best_epoch_and_the_last(train, small_data)
    found = results()
    assert found["best"]["epoch"] < found["last"]["epoch"] == 4
    module = VisionData(source=str(Path("small").resolve()), cache_dir="elsewhere")
    module.setup()
    test = module.splits["test"].gather(torch.arange(24))
    for name, which in (("best", ""), ("last", "_last")):
        with torch.no_grad():
            logits = Task.load_from_checkpoint(f"run/{name}.ckpt").eval()(test.inputs)
        predictions = found[f"predictions{which}"]
        assert predictions["predicted"] == logits.argmax(1).tolist()
        loss = torch.nn.functional.cross_entropy(logits, test.labels, reduction="none")
        assert predictions["loss"] == pytest.approx(loss.tolist(), abs=1e-3)
        scores = found[f"test{which}"]
        assert scores["loss"] == pytest.approx(float(loss.mean()), rel=1e-4)
        hits = (logits.argmax(1) == test.labels).float().mean()
        assert scores["acc"] == pytest.approx(float(hits))
        assert 0 <= scores["ece"] <= 1
    assert found["test"]["loss"] != found["test_last"]["loss"]
    printed = capsys.readouterr().out
    for title, which in (("test accuracy ", "test"), ("last epoch    ", "test_last")):
        assert f"{title}{100 * found[which]['acc']:.2f} %" in printed


def test_the_test_loss_is_without_label_smoothing(train: Train, small_data: Data) -> None:
    at_the_best_epoch_and_the_last(train, small_data, "--model.training.label_smoothing=0.5")
    found = results()
    for which in ("", "_last"):
        losses = found[f"predictions{which}"]["loss"]
        assert found[f"test{which}"]["loss"] == pytest.approx(sum(losses) / 24, abs=1e-4)
        sure = found[f"predictions{which}"]
        hits = [one == other for one, other in zip(sure["label"], sure["predicted"], strict=True)]
        assert any(hits)
        for hit, loss, confidence in zip(hits, losses, sure["confidence"], strict=True):
            if hit:
                assert loss == pytest.approx(-math.log(confidence), abs=1e-3)


def test_the_test_is_read_once_if_the_last_epoch_is_the_best(
    train: Train, small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.vision import Task

    steps = []
    monkeypatch.setattr(Task, "on_test_start", lambda task: steps.append(task.tested))
    train(
        *("--task", "vision", "--data", str(small_data("vision")), *SMALL),
        *("--data.batch_size=16", "--trainer.max_epochs=1"),
    )
    found = results()
    assert steps == ["test"]
    assert found["test_last"] == found["test"]
    assert found["predictions_last"] == found["predictions"]
    assert found["last"] == found["best"]


def test_no_test_reads_no_test(
    train: Train,
    small_data: Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tasks.vision import Task

    monkeypatch.setattr(Task, "on_test_start", lambda task: pytest.fail("it was read"))
    at_the_best_epoch_and_the_last(train, small_data, "--no_test")
    assert not Path("run/metrics.json").exists()
    assert "last validation accuracy " in capsys.readouterr().out


@pytest.mark.parametrize("epochs", [1, 12])
def test_a_training_that_learns_nothing_warns_in_one_line_with_the_fix(
    epochs: int, train: Train, small_data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    train(
        *("--task", "vision", "--data", str(small_data("vision", train=240)), *SMALL),
        *("--data.batch_size=16", f"--trainer.max_epochs={epochs}", "--reg", "none"),
        f"--model.optim.lr={1e-12 if epochs == 1 else 0.01}",
    )
    found = results()
    warnings = [line.message for line in caplog.records if "nothing was learned" in line.message]
    assert found["at_chance"] is (epochs == 1)
    assert len(warnings) == found["at_chance"]
    for warning in warnings:
        assert "\n" not in warning
        assert "not above chance for 3 classes" in warning
        assert "model.optim.min_steps; these were 14 steps" in warning
        assert "model.optim.lr=1e-12" in warning
        assert "model.reg.normalization=batch" in warning
