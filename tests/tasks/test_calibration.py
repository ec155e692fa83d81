"""Temperature, threshold and the calibration that a checkpoint contains."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch.nn import functional as F

import tasks
from tasks.base import ClassificationTask
from tasks.calibration import Calibration, calibrate, fit_temperature, not_sure_above
from tasks.inference.predictor import Predictor
from tasks.run import calibrating
from tasks.run.calibrating import MonteCarloCalibration
from tasks.run.safe_loading import read_checkpoint
from tasks.vision.data import VisionData

Train = Callable[..., None]
Data = Callable[..., Path]


def planted(scale: float, examples: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too large by a factor: the labels follow those without it."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(examples, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0, 20.0])
def test_the_temperature_is_the_factor_that_logits_are_too_large_by(scale: float) -> None:
    assert fit_temperature(*planted(scale)) == pytest.approx(scale, rel=0.05)


def test_the_temperature_has_the_smallest_cross_entropy() -> None:
    logits, labels = planted(3.0)
    best = fit_temperature(logits, labels)
    losses = [float(F.cross_entropy(logits / (best * f), labels)) for f in (1.0, 0.9, 1.1)]
    assert losses[0] < min(losses[1:])
    assert losses[0] < float(F.cross_entropy(logits, labels))


def test_of_several_passes_the_mean_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = planted(1.0)
    # Passes that disagree: their mean is less confident than each of them.
    passes = logits + 3 * torch.randn(8, *logits.shape, generator=generator)
    best = fit_temperature(passes, labels)

    def loss(temperature: float) -> float:
        mean = (passes / temperature).softmax(2).mean(0)
        return float(F.nll_loss(mean.log(), labels))

    assert loss(best) < min(loss(0.8 * best), loss(1.25 * best))
    # Not that of a single pass.
    assert fit_temperature(passes[0], labels) > 1.2 * best


def test_without_a_mistake_the_temperature_stays_finite_and_confidence_follows_the_number() -> None:
    for examples in (10, 100, 1000):
        labels = torch.zeros(examples, dtype=torch.int64)
        logits = torch.tensor([[5.0, 0.0, 0.0]]).repeat(examples, 1)
        found = calibrate(logits, labels)
        confidence = float((logits[0] / found.temperature).softmax(0)[0])
        # One further example would be wrong.
        assert confidence == pytest.approx(1 - 1 / (examples + 2), abs=0.1 / examples)
        # Each of these examples is sure.
        assert found.threshold >= float(
            torch.special.entr((logits[0] / found.temperature).softmax(0)).sum()
        )


def test_a_model_that_is_always_wrong_is_never_sure() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0]]).repeat(20, 1)
    found = calibrate(logits, torch.ones(20, dtype=torch.int64))
    assert found.temperature > 50
    assert found.threshold < 0


@pytest.mark.parametrize("mistakes", [0, 1, 7, 50])
def test_as_many_predictions_are_not_sure_as_are_wrong(mistakes: int) -> None:
    rng = np.random.default_rng(0)
    entropy = torch.from_numpy(rng.permutation(np.linspace(0.1, 1.0, 50)))
    right = torch.ones(50, dtype=torch.bool)
    right[rng.permutation(50)[:mistakes]] = False
    threshold = not_sure_above(entropy, right)
    assert int((entropy > threshold).sum()) == mistakes


def test_where_mistakes_have_the_largest_entropies_just_they_are_not_sure() -> None:
    entropy = torch.tensor([0.3, 0.9, 0.1, 0.8, 0.2])
    right = torch.tensor([True, False, True, False, True])
    assert ((entropy > not_sure_above(entropy, right)) == ~right).all()


def test_logits_that_are_not_finite_are_not_calibrated() -> None:
    found = calibrate(torch.tensor([[math.nan, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert found == Calibration(1.0, math.inf)


@pytest.mark.parametrize(
    "saved",
    [
        3,
        [1.0, 2.0],
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": True},
        {"threshold": math.nan},
        {"threshold": None},
    ],
)
def test_what_is_no_calibration_is_refused(saved: Any) -> None:
    with pytest.raises(ValueError, match="calibration="):
        Calibration.of(saved)


def test_older_checkpoints_have_no_calibration() -> None:
    assert Calibration.of({}) == Calibration(1.0, math.inf)
    assert Calibration.of({"temperature": 2.0}) == Calibration(2.0, math.inf)


def test_the_checkpoint_of_an_interrupted_older_run_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    found = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([0, 1])
    monkeypatch.setattr(calibrating, "passes_over_validation", lambda *_: found)
    monkeypatch.setattr(calibrating, "has_dropout", lambda _: True)
    task = Mock(spec=ClassificationTask, tested="test", calibration=Calibration())
    MonteCarloCalibration(tmp_path).on_test_start(Mock(), task)
    saved = read_checkpoint(tmp_path / "best.ckpt")["calibration"]
    assert Calibration.of(saved) == Calibration()
    assert saved["mc"]["temperature"] == pytest.approx(calibrate(*found).temperature)


@pytest.fixture
def run(train: Train, small_data: Data, monkeypatch: pytest.MonkeyPatch) -> tuple[Predictor, Any]:
    """A run with dropout, and what the global generator gave before and after calibrating."""
    states = []
    calibrates = MonteCarloCalibration.on_test_start

    def watched(self: MonteCarloCalibration, *arguments: Any) -> None:
        states.append(torch.get_rng_state())
        calibrates(self, *arguments)
        states.append(torch.get_rng_state())

    monkeypatch.setattr(MonteCarloCalibration, "on_test_start", watched)
    train(
        *("--task", "vision", "--data", str(small_data("vision")), "--reg", "none"),
        *("--model.arch=mlp", "--model.depth=1", "--model.width=32", "--model.optim.lr=0.01"),
        *("--model.reg.dropout=0.3", "--trainer.max_epochs=3"),
        *("--data.batch_size=16", "--data.validation_fraction=0.4"),
    )
    return tasks.load("run"), states


def test_a_checkpoint_contains_the_calibration_of_its_own_weights(
    run: tuple[Predictor, Any], small_data: Data, caches: Path
) -> None:
    predictor, states = run
    data = VisionData(source="small", validation_fraction=0.4, cache_dir=str(caches))
    data.setup()
    validation = data.val_dataloader()[0].examples
    batch = validation.gather(torch.arange(len(validation)))
    with torch.no_grad():
        logits = predictor.task(batch.inputs)
    found = calibrate(logits, batch.labels)
    assert predictor.temperature == pytest.approx(found.temperature, rel=1e-3)
    assert predictor.threshold == pytest.approx(found.threshold, rel=1e-3)
    # What a user sees: as many are not sure as are wrong.
    shown = predictor.predict(batch)
    names = [predictor.classes[label] for label in batch.labels.tolist()]
    wrong = sum(one.label != name for one, name in zip(shown, names, strict=True))
    assert sum(not one.sure for one in shown) == wrong
    # And with dropout, which has passes of its own.
    assert predictor.mc_temperature != predictor.temperature
    shown = predictor.predict(batch, mc=20)
    wrong = sum(one.label != name for one, name in zip(shown, names, strict=True))
    assert sum(not one.sure for one in shown) == wrong
    assert torch.equal(*states)


def test_the_last_checkpoint_has_a_calibration_and_dropout_shares_it(
    run: tuple[Predictor, Any],
) -> None:
    last = tasks.load("run/last.ckpt")
    assert last.temperature == last.mc_temperature != 1.0
    assert last.threshold == last.mc_threshold < math.inf


def test_the_test_metrics_are_also_those_at_the_temperature(run: tuple[Predictor, Any]) -> None:
    predictor, _ = run
    results = json.loads(Path("run/metrics.json").read_text())
    rows = pyarrow.parquet.read_table("small/data/test-00000-of-00001.parquet").to_pylist()
    shown = predictor([row["img"]["bytes"] for row in rows])
    losses = [
        -math.log(one.probabilities[predictor.classes[row["label"]]])
        for one, row in zip(shown, rows, strict=True)
    ]
    assert results["test"]["loss_calibrated"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert results["test"]["loss"] != pytest.approx(results["test"]["loss_calibrated"], abs=1e-4)
    assert results["history"][-1]["val/temperature"] == pytest.approx(
        tasks.load("run/last.ckpt").temperature
    )


def test_without_a_test_or_dropout_there_is_one_calibration(train: Train, small_data: Data) -> None:
    for options in (("--model.reg.dropout=0.3", "--no_test"), ()):
        train(
            *("--task", "vision", "--data", str(small_data("vision")), "--reg", "none"),
            *("--model.width=4", "--trainer.max_epochs=1", "--data.batch_size=16", *options),
        )
        saved = torch.load("run/best.ckpt", weights_only=True)
        assert saved["calibration"].keys() == {"temperature", "threshold"}
