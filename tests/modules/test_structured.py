import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules import DropPath, drop_path

own_or_shared = pytest.mark.parametrize("own_generator", [False, True])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_identity_in_eval():
    x = torch.randn(50, 3)
    assert torch.equal(DropPath(0.5).eval()(x), x)
    assert torch.equal(drop_path(x, 0.5, training=False), x)


def test_identity_at_rate_zero():
    x = torch.randn(50, 3)
    assert torch.equal(DropPath(0.0)(x), x)


@own_or_shared
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_at_rate_p_and_keeps_the_mean(p, own_generator, assert_rate):
    x = torch.ones(3_300_000, 1)
    y = DropPath(p, seeded(1) if own_generator else None)(x)
    assert_rate(y == 0, p)
    margin = 3 * math.sqrt(p / (1 - p) / len(x))
    assert y.double().mean().item() == pytest.approx(1.0, abs=margin)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    p=st.floats(0.01, 0.95),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_each_example_is_dropped_or_scaled_as_a_whole(p, shape, seed):
    torch.manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64) + 1
    before = x.clone()
    y = DropPath(p)(x)
    for example, out in zip(x, y, strict=True):
        expected = torch.zeros_like(out) if (out == 0).any() else example / (1 - p)
        torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)
    assert torch.equal(x, before)


def test_examples_are_independent(assert_independent):
    assert_independent(DropPath(0.5)(torch.ones(10_000, 2))[:, 0] == 0, 0)


def test_gradient_is_the_scaled_mask():
    x = (torch.rand(50, 3, 2, dtype=torch.float64) + 1).requires_grad_()
    y = DropPath(0.3)(x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    mask = (y != 0).double()
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(x.grad, upstream * mask / 0.7, rtol=1e-14, atol=0)


def test_reproducible_with_a_generator():
    x = torch.ones(50, 3)
    state = torch.get_rng_state()
    first = DropPath(0.5, seeded(3))(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drop_path(x, 0.5, generator=seeded(3)), first)
    assert not torch.equal(DropPath(0.5, seeded(4))(x), first)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_value(p):
    with pytest.raises(ValueError, match="p is a rate") as refusal:
        DropPath(p)
    assert str(refusal.value).endswith(f"not {p!r}")


def test_repr_shows_the_rate():
    assert repr(DropPath(0.25)) == "DropPath(p=0.25)"


def test_deep_copy_draws_what_the_original_would():
    x = torch.ones(50, 3)
    layer = DropPath(0.25, seeded(3))
    twin = copy.deepcopy(layer)
    assert twin.p == 0.25
    expected = DropPath(0.25, seeded(3))(x)
    assert torch.equal(twin(x), expected)
    assert torch.equal(layer(x), expected)


def test_state_dict_is_that_of_a_model_without_drop_path():
    plain = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    dropped = nn.Sequential(nn.Linear(2, 2), DropPath(0.5, seeded(0)))
    assert dropped.state_dict().keys() == plain.state_dict().keys()
    dropped.load_state_dict(plain.state_dict())
