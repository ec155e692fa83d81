import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regain import KWinners, k_winners

by_example = settings(deadline=None, derandomize=True, max_examples=50)
dtypes = st.sampled_from([torch.float32, torch.float64])


def distinct(shape, seed):
    """Distinct positive values."""
    units = math.prod(shape[1:])
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randperm(units, generator=generator) for _ in range(shape[0])]
    return (torch.stack(order).float() + 1).view(shape)


@by_example
@given(shape=st.lists(st.integers(1, 6), min_size=2, max_size=4), dtype=dtypes)
def test_identity_at_rate_zero_in_training_and_eval(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    layer = KWinners(shape[1], 0.0)
    assert torch.equal(layer(x), x)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(k_winners(x, 0.0), x)


@by_example
@given(
    p=st.floats(0.0, 0.99),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    dtype=dtypes,
    seed=st.integers(0, 2**31),
    training=st.booleans(),
)
def test_exactly_the_most_active_features_of_a_position_are_kept(p, shape, dtype, seed, training):
    x = distinct(shape, seed).to(dtype)
    before = x.clone()
    keep = max(1, round((1 - p) * shape[1]))
    y = KWinners(shape[1], p, boost=0.0).train(training)(x)
    rank = x.argsort(dim=1).argsort(dim=1)
    assert torch.equal(y, torch.where(rank >= shape[1] - keep, x, 0))
    assert y.dtype == dtype
    assert torch.equal(k_winners(x, p), y)
    assert torch.equal(x, before)
    # Boosting changes the winners, not their number.
    layer = KWinners(shape[1], p, boost=3.0).train(training)
    layer.duty_cycle.uniform_()
    y = layer(x)
    assert ((y != 0).sum(1) == keep).all()
    assert torch.equal(y, torch.where(y == 0, 0, x))


def test_equal_units_do_not_exceed_the_number_of_winners():
    y = KWinners(10, 0.7)(torch.ones(50, 10))
    assert ((y != 0).sum(1) == 3).all()


def test_zeros_stay_zero():
    x = torch.zeros(4, 10)
    x[:, 3] = 1.0
    layer = KWinners(10, 0.5)
    assert torch.equal(layer(x), x)
    # A zero does not count as a winner.
    won = torch.zeros(10)
    won[3] = 1.0
    torch.testing.assert_close(layer.duty_cycle, 0.5 + (won - 0.5) * 4 / 1000)


def test_negative_units_win_over_more_negative_ones():
    y = KWinners(4, 0.5)(torch.tensor([[-1.0, -4.0, -2.0, -3.0]]))
    assert y.tolist() == [[-1.0, 0.0, -2.0, 0.0]]


def test_nothing_is_random():
    x = torch.randn(20, 30)
    state = torch.get_rng_state()
    layer = KWinners(30, 0.5)
    twin = copy.deepcopy(layer)
    for _ in range(5):
        assert torch.equal(layer(x), twin(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_boosting_favours_features_that_win_rarely():
    x = torch.tensor([[1.0, 1.1, 1.2, 1.3]])
    layer = KWinners(4, 0.5, boost=1.0).eval()
    layer.duty_cycle.copy_(torch.tensor([0.0, 0.5, 0.5, 1.0]))
    # 1.0 * exp(0.5), 1.1, 1.2 and 1.3 * exp(-0.5): the first and the third.
    assert (layer(x) != 0).tolist() == [[True, False, True, False]]
    layer.boost = 0.0
    assert (layer(x) != 0).tolist() == [[False, False, True, True]]


def test_gradient_goes_to_the_winners():
    x = distinct((5, 6, 3), 0).double().requires_grad_()
    y = KWinners(6, 0.4)(x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * (y != 0), rtol=0, atol=0)


def test_duty_cycles_become_the_rates_of_winning():
    torch.manual_seed(0)
    # Some units are stronger; without boosting the others never win.
    strength = torch.linspace(0.5, 1.5, 8).view(1, 8, 1)
    layer = KWinners(8, 0.75, boost=0.0, period=5000)
    wins = torch.zeros(8)
    for step in range(600):
        won = layer(torch.rand(100, 8, 4) * strength) != 0
        if step >= 300:
            wins += won.float().mean((0, 2)) / 300
    torch.testing.assert_close(layer.duty_cycle, wins, atol=0.01, rtol=0)
    assert layer.duty_cycle.mean().item() == pytest.approx(0.25, abs=1e-4)
    assert wins[-1] > 2 * wins[0]


def test_an_inactive_unit_wins_again():
    torch.manual_seed(0)
    strength = torch.tensor([0.4, 1.0, 1.0, 1.0])

    def last_wins(boost):
        layer = KWinners(4, 0.5, boost=boost, period=500)
        for _ in range(100):
            won = layer((0.8 + 0.2 * torch.rand(50, 4)) * strength) != 0
        return won.float().mean(0)[0].item()

    assert last_wins(0.0) == 0.0
    assert last_wins(5.0) > 0.2


@pytest.mark.parametrize(("period", "weight"), [(1000, 0.01), (10, 1.0), (4, 1.0), (0, 1.0)])
def test_duty_cycles_change_by_the_fraction_of_the_period(period, weight):
    layer = KWinners(2, 0.5, period=period)
    layer(torch.tensor([[1.0, 2.0]]).expand(10, 2))
    expected = torch.tensor([0.5 - 0.5 * weight, 0.5 + 0.5 * weight])
    torch.testing.assert_close(layer.duty_cycle, expected)


def test_evaluation_leaves_the_duty_cycles():
    layer = KWinners(5, 0.5).eval()
    before = layer.duty_cycle.clone()
    y = layer(distinct((3, 5), 0))
    assert torch.equal(layer.duty_cycle, before)
    assert (y == 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_trains_in_the_type_of_the_model(dtype):
    layer = KWinners(4, 0.5, period=4).to(dtype)
    y = layer(distinct((4, 4), 0).to(dtype))
    assert y.dtype == layer.duty_cycle.dtype == dtype
    assert layer.duty_cycle.sum().item() == pytest.approx(2.0, abs=0.02)


def test_state_dict_holds_the_duty_cycles():
    layer, other = KWinners(5, 0.5, period=10), KWinners(5, 0.5)
    layer(distinct((3, 5), 0))
    assert set(layer.state_dict()) == {"duty_cycle"}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.duty_cycle, layer.duty_cycle)
    assert not torch.equal(other.duty_cycle, KWinners(5, 0.5).duty_cycle)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_value(p):
    for make in (lambda: KWinners(4, p), lambda: k_winners(torch.ones(2, 4), p)):
        with pytest.raises(ValueError, match="p is a rate") as refusal:
            make()
        assert str(refusal.value).endswith(f"not {p!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", -1),
        ("features", 2.0),
        ("features", "4"),
        ("boost", -0.5),
        ("boost", math.nan),
        ("boost", math.inf),
        ("boost", "1"),
        ("boost", True),
        ("period", -1),
        ("period", 10.0),
        ("period", None),
    ],
)
def test_wrong_amounts_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is a .*number of at least 0") as refusal:
        KWinners(**({"features": 4} | {name: value}))
    assert str(refusal.value).endswith(f"not {value!r}")


def test_repr_shows_what_was_asked_for():
    shown = "KWinners(features=4, p=0.25, boost=2.0, period=10)"
    assert repr(KWinners(4, 0.25, 2.0, 10)) == shown


def test_autocast_gives_the_type_that_it_gives_without_the_layer():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = nn.Conv1d(3, 6, 3)(torch.randn(4, 3, 12))
        y = KWinners(6, 0.5)(x)
    assert (y.dtype, y.shape) == (torch.bfloat16, x.shape)
    assert ((y != 0).flatten(1).sum(1) == 30).all()
    y.sum().backward()


@pytest.mark.parametrize("shape", [(0, 6), (0, 6, 3), (4, 6, 0)])
def test_an_empty_batch_changes_no_duty_cycle(shape):
    layer = KWinners(6, 0.5, period=0)
    before = layer.duty_cycle.clone()
    assert layer(torch.empty(shape)).shape == shape
    assert torch.equal(layer.duty_cycle, before)
    layer(distinct((3, 6), 0))
    assert layer.duty_cycle.isfinite().all()


@pytest.mark.parametrize("value", [-math.inf, math.inf])
def test_an_infinite_unit_that_loses_is_zero(value):
    x = torch.tensor([[1.0, value, 3.0, 2.0]], requires_grad=True)
    layer = KWinners(4, 0.5)
    y = layer(x)
    wins = {-math.inf: [0.0, 0.0, 3.0, 2.0], math.inf: [0.0, value, 3.0, 0.0]}
    assert y.tolist() == [wins[value]]
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).float())
    assert layer.duty_cycle.isfinite().all()
    # The same if the values cannot be read.
    transformed = torch.func.vmap(lambda row: k_winners(row[None], 0.5)[0])(x.detach())
    assert torch.equal(transformed, y)


def test_nan_is_propagated():
    y = KWinners(4, 0.5)(torch.tensor([[1.0, math.nan, 3.0, 2.0]]))
    assert y.isnan().tolist() == [[False, True, False, False]]


def test_parameters_are_reset_after_meta():
    with torch.device("meta"):
        layer = KWinners(4, 0.25)
    assert layer(torch.ones(2, 4, device="meta")).shape == (2, 4)
    assert repr(layer) == repr(KWinners(4, 0.25))
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.duty_cycle, torch.full((4,), 0.75))
