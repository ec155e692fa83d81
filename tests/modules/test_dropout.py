import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules import (
    ChannelDropout,
    Dropout,
    LockedDropout,
    channel_dropout,
    dropout,
    locked_dropout,
    word_dropout,
)

LAYERS = [Dropout, ChannelDropout, LockedDropout]
FUNCTIONS = {
    Dropout: dropout,
    ChannelDropout: channel_dropout,
    LockedDropout: locked_dropout,
}
# Shapes in which every element has a draw of its own.
SINGLE = {
    Dropout: (1900, 1900),
    ChannelDropout: (1900, 1900, 1),
    LockedDropout: (1900, 1, 1900),
}
# (dimensions along which the mask is the same, dimensions along which it is independent)
SHARING = {
    Dropout: ((), (0, 1, 2)),
    ChannelDropout: ((2,), (0, 1)),
    LockedDropout: ((1,), (0, 2)),
}

every_layer = pytest.mark.parametrize("kind", LAYERS)
by_example = settings(deadline=None, derandomize=True, max_examples=50)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@every_layer
def test_identity_in_eval(kind):
    x = torch.randn(8, 8, 8)
    assert torch.equal(kind(0.5).eval()(x), x)
    assert torch.equal(FUNCTIONS[kind](x, 0.5, training=False), x)
    assert torch.equal(kind(0.5, seeded(0)).eval()(x), x)


@every_layer
def test_active_again_when_training_goes_on(kind):
    layer = kind(0.5).eval().train()
    assert (layer(torch.ones(8, 8, 8)) == 0).any()


@every_layer
@pytest.mark.parametrize("p", [0, 0.0])
def test_identity_at_rate_zero(kind, p):
    x = torch.randn(8, 8, 8)
    assert torch.equal(kind(p)(x), x)
    assert torch.equal(kind(p, seeded(0))(x), x)


@every_layer
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("own_generator", [False, True])
def test_drops_at_rate_p(kind, p, own_generator, assert_rate):
    layer = kind(p, seeded(1) if own_generator else None)
    assert_rate(layer(torch.ones(SINGLE[kind])) == 0, p)


@every_layer
@pytest.mark.parametrize("own_generator", [False, True])
def test_mean_is_kept(kind, own_generator):
    x = torch.ones(SINGLE[kind])
    mean = kind(0.2, seeded(1) if own_generator else None)(x).double().mean().item()
    # One kept element adds 1 / (1 - p); the variance of an element is p / (1 - p).
    assert mean == pytest.approx(1.0, abs=3 * math.sqrt(0.25 / x.numel()))


@every_layer
@by_example
@given(
    p=st.floats(0.01, 0.95),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**31),
    own_generator=st.booleans(),
)
def test_elements_are_zero_or_scaled_by_the_keep_rate(kind, p, shape, seed, own_generator):
    torch.manual_seed(seed)
    # Values away from zero, so that a zero means dropped; float64, so that the scale is exact.
    x = torch.rand(shape, dtype=torch.float64) + 1
    before = x.clone()
    y = kind(p, seeded(seed) if own_generator else None)(x)
    torch.testing.assert_close(y, torch.where(y == 0, 0, x / (1 - p)), rtol=1e-14, atol=0)
    assert torch.equal(x, before)


@every_layer
@pytest.mark.parametrize("own_generator", [False, True])
def test_gradient_is_the_scaled_mask(kind, own_generator):
    x = (torch.rand(8, 8, 8, dtype=torch.float64) + 1).requires_grad_()
    y = kind(0.3, seeded(1) if own_generator else None)(x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    mask = (y != 0).double()
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(x.grad, upstream * mask / 0.7, rtol=1e-14, atol=0)


@every_layer
@pytest.mark.parametrize("own_generator", [False, True])
def test_mask_is_shared_where_promised_and_independent_elsewhere(
    kind, own_generator, assert_independent
):
    dropped = kind(0.5, seeded(1) if own_generator else None)(torch.ones(50, 50, 50)) == 0
    same, independent = SHARING[kind]
    for dim in same:
        assert torch.equal(dropped, dropped.narrow(dim, 0, 1).expand_as(dropped))
        dropped = dropped.narrow(dim, 0, 1)
    for dim in independent:
        assert_independent(dropped, dim)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 3, 2), (40, 50, 2, 3, 2)])
def test_channel_dropout_takes_any_number_of_dimensions(shape, assert_independent):
    dropped = (ChannelDropout(0.5)(torch.ones(shape)) == 0).view(40, 50, -1)
    assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    for dim in (0, 1):
        assert_independent(dropped[:, :, 0], dim)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_type_is_kept(kind, dtype):
    assert kind(0.5)(torch.ones(4, 4, 4, dtype=dtype)).dtype == dtype
    assert kind(0.5, seeded(0))(torch.ones(4, 4, 4, dtype=dtype)).dtype == dtype


@every_layer
def test_reproducible_with_a_generator(kind):
    x = torch.ones(8, 8, 8)
    state = torch.get_rng_state()
    first = kind(0.5, seeded(3))(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(kind(0.5, seeded(3))(x), first)
    assert torch.equal(FUNCTIONS[kind](x, 0.5, generator=seeded(3)), first)
    assert not torch.equal(kind(0.5, seeded(4))(x), first)


@every_layer
def test_fresh_mask_at_every_call(kind):
    x = torch.ones(8, 8, 8)
    for layer in (kind(0.5), kind(0.5, seeded(0))):
        assert not torch.equal(layer(x), layer(x))


@every_layer
@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_value(kind, p):
    with pytest.raises(ValueError, match="p is a rate") as refusal:
        kind(p)
    assert str(refusal.value).endswith(f"not {p!r}")


@every_layer
def test_repr_shows_the_rate(kind):
    assert repr(kind(0.25)) == f"{kind.__name__}(p=0.25)"


@every_layer
def test_deep_copy_draws_what_the_original_would(kind):
    x = torch.ones(8, 8, 8)
    layer = kind(0.25, seeded(3))
    twin = copy.deepcopy(layer)
    assert twin.p == 0.25
    expected = kind(0.25, seeded(3))(x)
    # Drawing from the copy must not move the original on.
    assert torch.equal(twin(x), expected)
    assert torch.equal(layer(x), expected)


@every_layer
def test_state_dict_is_that_of_a_model_without_dropout(kind):
    plain = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    dropped = nn.Sequential(nn.Linear(2, 2), kind(0.5, seeded(0)))
    assert dropped.state_dict().keys() == plain.state_dict().keys()
    dropped.load_state_dict(plain.state_dict())


def test_word_dropout_replaces_at_rate_p(assert_rate):
    ids = torch.full((1900, 1900), 7)
    for p in (0.1, 0.5):
        assert_rate(word_dropout(ids, p, replacement=1) == 1, p)


@by_example
@given(
    p=st.floats(0.0, 0.99),
    replacement=st.integers(0, 5),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_word_dropout_puts_in_only_the_replacement_and_not_where_kept(p, replacement, share, seed):
    torch.manual_seed(seed)
    ids = torch.randint(10, 1000, (4, 30))
    keep = torch.rand(ids.shape) < share
    before = ids.clone()
    out = word_dropout(ids, p, replacement, keep)
    assert torch.equal(out[keep], ids[keep])
    assert (out[out != ids] == replacement).all()
    assert out.dtype == ids.dtype
    assert torch.equal(ids, before)


def test_word_dropout_draws_for_each_token(assert_independent):
    dropped = word_dropout(torch.full((200, 200), 7), 0.5, replacement=1) == 1
    for dim in (0, 1):
        assert_independent(dropped, dim)


def test_word_dropout_keep_does_not_lower_the_rate_elsewhere(assert_rate):
    ids = torch.full((1900, 900), 7)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, ::2] = True
    out = word_dropout(ids, 0.5, 1, keep)
    assert_rate(out[~keep] == 1, 0.5)


def test_word_dropout_at_rate_zero_is_the_identity():
    ids = torch.randint(0, 100, (4, 30))
    assert torch.equal(word_dropout(ids, 0.0, replacement=1000), ids)


def test_word_dropout_is_reproducible_with_a_generator():
    ids = torch.full((20, 20), 7)
    state = torch.get_rng_state()
    first = word_dropout(ids, 0.5, 1, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(word_dropout(ids, 0.5, 1, generator=seeded(3)), first)
    assert not torch.equal(word_dropout(ids, 0.5, 1, generator=seeded(4)), first)
