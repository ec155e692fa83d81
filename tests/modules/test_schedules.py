import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropoutSchedule,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    KWinners,
    LayerDrop,
    LockedDropout,
    TokenDropout,
    VariationalDropout,
    VariationalLinear,
    WeightDrop,
    WordDropout,
    dropout_rates,
)
from regain.schedules import SCHEDULES

by_example = settings(deadline=None, derandomize=True, max_examples=100)
kinds = st.sampled_from(SCHEDULES)
steps = st.integers(1, 10**6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # At steps 0, 1, 50, 99, 100, 101 and 1000 of 100.
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.01, 0.5, 0.99, 1, 1, 1]),
        ("curriculum", [1 - math.exp(-t / 10) for t in (0, 1, 50, 99, 100, 101, 1000)]),
        ("early", [1, 1, 1, 1, 0, 0, 0]),
        ("late", [0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_factor_is_that_of_the_formula(kind, expected):
    schedule = DropoutSchedule(kind, steps=100)
    factors = [schedule.factor(step) for step in (0, 1, 50, 99, 100, 101, 1000)]
    assert factors == pytest.approx(expected, abs=1e-12)


def test_every_kind_has_its_formula():
    assert set(SCHEDULES) == {"constant", "linear", "curriculum", "early", "late"}
    assert DropoutSchedule() == DropoutSchedule("constant")


@by_example
@given(kind=kinds, total=steps, first=st.integers(0, 10**7), second=st.integers(0, 10**7))
def test_factor_is_monotone_and_in_zero_one(kind, total, first, second):
    schedule = DropoutSchedule(kind, total)
    low, high = (schedule.factor(step) for step in sorted((first, second)))
    assert min(low, high) >= 0.0
    assert max(low, high) <= 1.0
    assert low >= high if kind == "early" else low <= high


@by_example
@given(total=steps)
def test_curriculum_has_ended_after_its_steps(total):
    assert DropoutSchedule("curriculum", total).factor(total) > 0.9999
    assert DropoutSchedule("curriculum", total).factor(10**9) <= 1.0


def model_of_every_layer():
    layers = {
        "ours": Dropout(0.5),
        "alpha": AlphaDropout(0.1),
        "gaussian": GaussianDropout(0.2),
        "channel": ChannelDropout(0.3),
        "locked": LockedDropout(0.4),
        "block": DropBlock(0.15),
        "path": DropPath(0.25),
        "attention": AttentionDropout(0.22),
        "heads": DropHead(0.33),
        "tokens": TokenDropout(0.44),
        "word": WordDropout(0.35),
        "embedding": EmbeddingDropout(nn.Embedding(3, 3), 0.45),
        "weight": WeightDrop(nn.Linear(3, 3), p=0.55),
        "layer": LayerDrop(nn.Sequential(nn.Linear(3, 3), Dropout(0.65)), 0.75),
        "torch": nn.Dropout(0.85),
        "torch1": nn.Dropout1d(0.8),
        "torch2": nn.Dropout2d(0.7),
        "torch3": nn.Dropout3d(0.6),
        "torch_alpha": nn.AlphaDropout(0.05),
        "torch_feature": nn.FeatureAlphaDropout(0.95),
    }
    rates = {name: layer.p for name, layer in layers.items()} | {"layer.layer.1": 0.65}
    others = {
        "concrete": ConcreteDropout(4, 0.3),
        "variational": VariationalDropout(4, 0.3),
        "noisy": VariationalLinear(4, 4),
        "winners": KWinners(4, 0.5),
    }
    return nn.ModuleDict(layers | others), rates


def test_the_rate_of_every_dropout_is_read():
    model, rates = model_of_every_layer()
    assert dropout_rates(model) == rates


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("step", [0, 30, 100, 1000])
def test_apply_sets_and_returns_every_rate(kind, step):
    model, rates = model_of_every_layer()
    model["concrete"].logit.data.fill_(0.5)
    schedule = DropoutSchedule(kind, 100)
    # Earlier steps have no effect: a resumed run sets the same rates.
    schedule.apply(model, rates, 7)
    given_back = schedule.apply(model, rates, step)
    assert given_back == {name: schedule.factor(step) * rate for name, rate in rates.items()}
    assert dropout_rates(model) == given_back
    assert model["torch2"].p == schedule.factor(step) * 0.7
    assert model["concrete"].logit.item() == 0.5
    assert model["variational"].p.item() == pytest.approx(0.3)
    assert model["winners"].p == 0.5


def test_a_layer_drops_at_the_rate_that_was_set(assert_rate):
    model = nn.Sequential(Dropout(0.8), nn.Dropout(0.8))
    rates = dropout_rates(model)
    x = torch.ones(1900, 191)
    schedule = DropoutSchedule("linear", 8)
    schedule.apply(model, rates, 5)
    for layer in model:
        assert_rate(layer(x) == 0, 0.5)
    schedule.apply(model, rates, 0)
    assert torch.equal(model(x), x)


def test_layers_without_a_scheduled_rate_keep_their_rate():
    model = nn.Sequential(Dropout(0.8), Dropout(0.6))
    DropoutSchedule("late", 10).apply(model, {"1": 0.6}, 0)
    assert dropout_rates(model) == {"0": 0.8, "1": 0.0}


@pytest.mark.parametrize("kind", ["cosine", "", None, 1, "Linear", ["linear"]])
def test_wrong_kind_is_refused_by_value(kind):
    with pytest.raises(ValueError, match="kind is one of constant, linear") as refusal:
        DropoutSchedule(kind, 10)
    assert str(refusal.value).endswith(f"not {kind!r}")


@pytest.mark.parametrize("steps", [0, -1, 1.0, math.nan, math.inf, "10", True, None])
def test_wrong_steps_are_refused_by_value(steps):
    with pytest.raises(ValueError, match="steps is a whole number of at least") as refusal:
        DropoutSchedule("linear", steps)
    assert str(refusal.value).endswith(f"not {steps!r}")


def test_a_schedule_goes_up_to_a_rate_of_one():
    model = nn.Sequential(Dropout(1.0), nn.Dropout(1.0), DropPath(1.0))
    rates = dropout_rates(model)
    x = torch.ones(50, 50)
    schedule = DropoutSchedule("linear", 4)
    for step, fraction in enumerate([0.0, 0.25, 0.5, 0.75, 1.0]):
        assert schedule.apply(model, rates, step) == {str(n): fraction for n in range(3)}
        for layer in model:
            assert (layer(x) == 0).float().mean().item() == pytest.approx(fraction, abs=0.25)
    assert not model(x).any()
