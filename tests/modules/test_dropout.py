"""Properties of every dropout layer; what is special to one layer is in the other files.

The fixtures `case`, `drawing`, `masking` and `scaling` are parametrized by layers.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    LayerDrop,
    LockedDropout,
    WeightDrop,
    WordDropout,
    alpha_dropout,
    attention_dropout,
    channel_dropout,
    drop_block,
    drop_head,
    drop_path,
    dropout,
    embedding_dropout,
    gaussian_dropout,
    layer_drop,
    locked_dropout,
    weight_drop,
    word_dropout,
)
from regain.alphadropout import SELU_LOWEST
from regain.dropout import scaled_mask

# Returns its input.
UNIT = nn.Linear(8, 8, bias=False)
nn.init.eye_(UNIT.weight)
# The functions, with an input that each of them accepts.
FUNCTIONS = {
    AlphaDropout: alpha_dropout,
    AttentionDropout: attention_dropout,
    ChannelDropout: channel_dropout,
    DropHead: drop_head,
    Dropout: dropout,
    DropPath: drop_path,
    GaussianDropout: gaussian_dropout,
    LockedDropout: locked_dropout,
    "drop_block": drop_block,
    "embedding_dropout": lambda x, *args, **named: embedding_dropout(
        nn.Embedding.from_pretrained(x.flatten(1)), torch.arange(len(x)), *args, **named
    ).view_as(x),
    "layer_drop": lambda x, p, training=True, **named: layer_drop(
        nn.Identity(), x, p=p, training=training, **named
    ),
    "weight_drop": lambda x, p, training=True, **named: weight_drop(
        UNIT, x, p=p, training=training, **named
    ),
    "word_dropout": lambda x, p, training=True, **named: word_dropout(x, p, 0, **named),
}
WRONG_RATES = [1.1, 2, -0.1, math.nan, math.inf, "0.5", True, False, None]

own_or_shared = pytest.mark.parametrize("own_generator", [False, True])
# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")

by_example = settings(deadline=None, derandomize=True, max_examples=50)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
rates = st.floats(0.01, 0.95)
seeds = st.integers(0, 2**31)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def enough(p):
    """Number of draws that `assert_rate` needs to detect a rate that is 1 % off."""
    return 362_000 * max(p / (1 - p), (1 - p) / p)


def shapes(case):
    return st.lists(st.integers(1, 6), min_size=case.dims, max_size=5)


@by_example
@given(data=st.data(), p=rates, dtype=dtypes, seed=seeds)
def test_identity_in_eval_and_at_rate_zero(case, data, p, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(data.draw(shapes(case))).to(dtype)
    before = x.clone()
    state = torch.get_rng_state()
    assert torch.equal(case.make(p).eval()(x), x)
    assert torch.equal(case.make(p, seeded(seed)).eval()(x), x)
    assert torch.equal(case.make(0)(x), x)
    assert torch.equal(case.make(0.0, seeded(seed))(x), x)
    assert torch.equal(x, before)
    if case.layer is not LayerDrop:
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_does_nothing_in_eval_and_at_rate_zero(name):
    x = torch.randn(8, 8, 8)
    assert torch.equal(FUNCTIONS[name](x, 0.0), x)
    if name != "word_dropout":  # It belongs to a text, and knows no training.
        assert torch.equal(FUNCTIONS[name](x, 0.5, training=False), x)


def test_active_again_when_training_goes_on(drawing):
    layer = drawing.make(0.5).eval().train()
    assert drawing.dropped(layer(torch.ones(8, 8, 8))).any()


@pytest.mark.parametrize(
    ("p", "own_generator", "dtype"),
    [
        (0.1, False, torch.float32),
        (0.5, True, torch.float64),
        (0.9, True, torch.float32),
        (0.3, False, torch.bfloat16),
        (0.3, True, torch.bfloat16),
    ],
)
def test_drops_at_rate_p(dropping, p, own_generator, dtype, assert_rate):
    layer = dropping.make(p, seeded(1) if own_generator else None)
    x = torch.ones(dropping.single(enough(p)), dtype=dtype)
    assert_rate(dropping.dropped(layer(x)), p)


@own_or_shared
def test_mean_is_kept_and_variance_is_that_of_dropout(scaling, own_generator):
    p = 0.2
    x = torch.full(scaling.single(1_400_000), 3.0)
    y = scaling.make(p, seeded(1) if own_generator else None)(x).double()
    variance = p / (1 - p)
    fourth = p + variance**4 * (1 - p) if scaling.masks else 3 * variance**2
    for moment, expected, spread in (
        ((y / 3).mean(), 1.0, variance),
        (((y / 3) - 1).square().mean(), variance, fourth - variance**2),
    ):
        assert abs(moment.item() - expected) <= 3.5 * math.sqrt(spread / x.numel())
    # A rate that is 1 % off is detected.
    off = 1.01 * p / (1 - 1.01 * p) - variance
    assert off > 7 * math.sqrt((fourth - variance**2) / x.numel())


@by_example
@given(data=st.data(), p=rates, dtype=dtypes, seed=seeds, own_generator=st.booleans())
def test_elements_are_zero_or_scaled_by_the_keep_rate(masking, data, p, dtype, seed, own_generator):
    torch.manual_seed(seed)
    # No value is zero, so that a zero was dropped.
    x = (torch.rand(data.draw(shapes(masking))) + 1).to(dtype)
    before = x.clone()
    y = masking.make(p, seeded(seed) if own_generator else None)(x)
    assert y.dtype == dtype
    expected = torch.where(y == 0, 0, x.double() / (1 - p))
    # Mask and product are rounded.
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(x, before)


@own_or_shared
def test_gradient_is_the_scaled_mask(masking, own_generator):
    x = (torch.rand(8, 8, 8, dtype=torch.float64) + 1).requires_grad_()
    y = masking.make(0.3, seeded(1) if own_generator else None)(x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    mask = (y != 0).double()
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(x.grad, upstream * mask / 0.7, rtol=1e-14, atol=0)


@own_or_shared
def test_draw_is_shared_where_promised_and_independent_elsewhere(
    drawing, own_generator, assert_independent
):
    layer = drawing.make(0.5, seeded(1) if own_generator else None)
    dropped = drawing.dropped(layer(torch.ones(50, 50, 50)))
    for dim in drawing.same:
        assert torch.equal(dropped, dropped.narrow(dim, 0, 1).expand_as(dropped))
        dropped = dropped.narrow(dim, 0, 1)
    if drawing.name == "DropBlock":
        dropped = dropped[:, :, ::3]  # Farther apart than a block is wide.
        assert_independent(dropped, 2)
    for dim in drawing.independent:
        assert_independent(dropped, dim)


def test_layers_and_calls_draw_independently(drawing):
    first, second = drawing.make(0.5), drawing.make(0.5)
    x = torch.ones(70, 70, 70)
    draws = torch.stack([drawing.dropped(layer(x)) for layer in (first, second, first)])
    # One element per draw.
    shared = tuple(slice(0, 1) if dim in drawing.same else slice(None, None, 3) for dim in range(3))
    correlation = torch.corrcoef(draws[:, *shared].double().flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() <= 4 / math.sqrt(draws[0][shared].numel())


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 3, 2), (40, 50, 2, 3, 2)])
def test_channel_dropout_takes_any_number_of_dimensions(shape, assert_independent):
    dropped = (ChannelDropout(0.5)(torch.ones(shape)) == 0).view(40, 50, -1)
    assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    for dim in (0, 1):
        assert_independent(dropped[:, :, 0], dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_type_and_shape_are_kept(case, dtype):
    for generator in (None, seeded(0)):
        y = case.make(0.5, generator)(torch.ones(4, 5, 6, dtype=dtype))
        assert (y.dtype, y.shape) == (dtype, (4, 5, 6))


def test_reproducible_with_a_generator(case):
    x = torch.ones(40, 8, 8)

    def draws(seed):
        layer = case.make(0.5, seeded(seed))
        return torch.stack([layer(x) for _ in range(20)])

    first = draws(3)
    state = torch.get_rng_state()
    assert torch.equal(draws(3), first)
    assert not torch.equal(draws(4), first)
    assert torch.equal(torch.get_rng_state(), state)
    # Called with a generator in the same state, the function draws the same.
    function = FUNCTIONS.get(case.layer)
    if function is not None and "-" not in case.name:
        assert torch.equal(function(x, 0.5, generator=seeded(3)), first[0])


def test_reproducible_by_the_global_seed(case):
    x = torch.ones(40, 8, 8)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        layer = case.make(0.5)
        draws.append(torch.stack([layer(x) for _ in range(20)]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_fresh_draw_at_every_call(case):
    x = torch.ones(40, 8, 8)
    for layer in (case.make(0.5), case.make(0.5, seeded(0))):
        draws = torch.stack([layer(x) for _ in range(20)])
        assert (draws != draws[0]).any()


@pytest.mark.parametrize("p", WRONG_RATES)
def test_wrong_rate_is_refused_by_value(case, p):
    with pytest.raises(ValueError, match="p is a rate") as refusal:
        case.make(p)
    assert str(refusal.value).endswith(f"not {p!r}")


@pytest.mark.parametrize("p", WRONG_RATES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_refuses_a_wrong_rate_by_value(name, p):
    with pytest.raises(ValueError, match="p is a rate") as refusal:
        FUNCTIONS[name](torch.ones(8, 8, 8), p)
    assert str(refusal.value).endswith(f"not {p!r}")


def test_repr_shows_the_rate(case):
    layer = case.make(0.25)
    assert "p=0.25" in getattr(layer, "drop", layer).extra_repr()


@pytest.mark.parametrize("kind", [AlphaDropout, ChannelDropout, Dropout, DropPath, GaussianDropout])
def test_repr_is_that_of_torch(kind):
    assert repr(kind(0.25)) == f"{kind.__name__}(p=0.25)"


def test_a_deep_copy_draws_like_the_original(case):
    x = torch.ones(40, 8, 8)
    layer = case.make(0.25, seeded(3))
    layer(x)
    twin = copy.deepcopy(layer)
    # Draws from the copy must not advance the original.
    expected = torch.stack([twin(x) for _ in range(20)])
    assert torch.equal(torch.stack([layer(x) for _ in range(20)]), expected)
    assert (expected != expected[0]).any()


@pytest.mark.parametrize(
    "layer",
    [kind(0.5, generator=seeded(0)) for kind in FUNCTIONS if isinstance(kind, type)]
    + [WordDropout(0.5, generator=seeded(0))],
    ids=lambda layer: type(layer).__name__,
)
def test_state_dict_is_that_of_a_model_without_dropout(layer):
    plain = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    dropped = nn.Sequential(nn.Linear(2, 2), layer)
    assert dropped.state_dict().keys() == plain.state_dict().keys()
    dropped.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("wrap", "prefix", "inner"),
    [
        (EmbeddingDropout, "table.", lambda: nn.Embedding(5, 3)),
        (LayerDrop, "layer.", lambda: nn.Linear(3, 3)),
        (WeightDrop, "layer.", lambda: nn.Linear(3, 3)),
    ],
)
def test_state_dict_of_a_wrapper_is_that_of_what_it_wraps(wrap, prefix, inner):
    plain = inner()
    layer = wrap(inner(), p=0.5)
    layer(torch.ones(2, 3).to(torch.long if wrap is EmbeddingDropout else torch.float32))
    layer.load_state_dict({prefix + name: value for name, value in plain.state_dict().items()})
    for name, value in layer.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name.removeprefix(prefix)])


@own_or_shared
@pytest.mark.parametrize("p", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("activation", [nn.Identity(), nn.SELU()], ids=["normal", "selu"])
def test_alpha_dropout_keeps_mean_zero_and_variance_one(activation, p, own_generator):
    # SELU maps standard normal inputs to mean 0 and variance 1 (Klambauer et al. 2017).
    x = activation(torch.randn(1_000_000))
    y = AlphaDropout(p, seeded(1) if own_generator else None)(x).double()
    assert abs(y.mean().item()) <= 4 / 1000
    fourth = y.pow(4).mean().item()
    assert abs(y.var().item() - 1) <= 4 * math.sqrt(fourth + 1) / 1000


@by_example
@given(p=rates, seed=seeds)
def test_alpha_dropout_maps_as_that_of_torch_does(p, seed):
    x = torch.randn(200, dtype=torch.float64, generator=seeded(seed))
    torch.manual_seed(seed)
    ours = alpha_dropout(x, p, generator=seeded(seed))
    theirs = F.alpha_dropout(x, p, training=True)
    # Each element is kept or dropped: both affine maps written out.
    scale = 1 / math.sqrt((1 - p) * (1 + p * SELU_LOWEST**2))
    lowest = scale * (SELU_LOWEST - p * SELU_LOWEST)
    kept = scale * (x - p * SELU_LOWEST)
    for y in (ours, theirs):
        dropped = (y - lowest).abs() < (y - kept).abs()
        torch.testing.assert_close(y, torch.where(dropped, lowest, kept), rtol=1e-6, atol=1e-6)


def test_alpha_dropout_passes_gradients_to_kept_units():
    for generator in (None, seeded(0)):
        x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
        alpha_dropout(x, 0.3, generator=generator).sum().backward()
        scale = 1 / math.sqrt(0.7 * (1 + 0.3 * SELU_LOWEST**2))
        kept = x.grad != 0
        assert 0.6 < kept.double().mean() < 0.8
        torch.testing.assert_close(x.grad[kept], torch.full_like(x.grad[kept], scale))


def test_gradient_of_gaussian_dropout_is_its_noise():
    x = (torch.rand(8, 8, dtype=torch.float64) + 1).requires_grad_()
    y = GaussianDropout(0.3, seeded(0))(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach(), rtol=1e-14, atol=0)


def test_noise_of_gaussian_dropout_is_normal():
    p = 0.4
    noise = GaussianDropout(p)(torch.ones(400_000)) - 1
    standard = noise.double() / math.sqrt(p / (1 - p))
    for quantile in (-2.0, -1.0, 0.5, 1.5):
        expected = 0.5 * (1 + math.erf(quantile / math.sqrt(2)))
        margin = 4 * math.sqrt(expected * (1 - expected) / len(standard))
        assert abs((standard < quantile).double().mean().item() - expected) <= margin


@pytest.mark.parametrize("dim", [0, 2, 3, -2])
def test_locked_dropout_shares_the_draw_along_the_dimension_that_is_asked_for(dim):
    dropped = locked_dropout(torch.ones(10, 10, 10, 10), 0.5, dim=dim) == 0
    for other in range(4):
        same = torch.equal(dropped, dropped.narrow(other, 0, 1).expand_as(dropped))
        assert same == (other == dim % 4)


def test_autocast_gives_the_type_that_it_gives_without_dropout(case):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = nn.Conv1d(3, 6, 3)(torch.randn(40, 3, 12))
        y = case.make(0.5)(x)
    assert (y.dtype, y.shape) == (torch.bfloat16, x.shape)
    assert not torch.equal(y, x) or not case.independent
    y.sum().backward()


@pytest.mark.parametrize(
    ("wrapped", "plain", "x"),
    [
        (EmbeddingDropout(nn.Embedding(9, 3), 0.5), nn.Embedding(9, 3), torch.arange(9)),
        (WeightDrop(nn.Linear(3, 3)), nn.Linear(3, 3), torch.ones(2, 3)),
        (WeightDrop(nn.Conv1d(3, 3, 1)), nn.Conv1d(3, 3, 1), torch.ones(2, 3, 4)),
        (LayerDrop(nn.Linear(3, 3), 0.5), nn.Linear(3, 3), torch.ones(2, 3).bfloat16()),
    ],
    ids=["EmbeddingDropout", "WeightDrop-Linear", "WeightDrop-Conv1d", "LayerDrop"],
)
def test_autocast_of_a_wrapper_gives_the_type_of_what_it_wraps(wrapped, plain, x):
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert wrapped(x).dtype == plain(x).dtype
            loss = wrapped(x).square().sum()
        loss.backward()
    assert all(weight.grad.isfinite().all() for weight in wrapped.parameters())


@pytest.mark.parametrize("p", [1, 1.0])
@pytest.mark.parametrize("own_generator", [True, False])
def test_everything_is_dropped_at_rate_one(case, p, own_generator):
    # The input holds ids, which have no gradient.
    x = torch.randn(8, 8, 8).requires_grad_(case.layer is not WordDropout)
    layer = case.make(p, seeded(0) if own_generator else None)
    y = layer(x)
    assert not y.any()
    assert y.dtype == x.dtype
    if x.requires_grad and case.layer is not LayerDrop:
        y.sum().backward()
        assert not x.grad.any()
    assert torch.equal(layer.eval()(x), x)


def test_a_mask_of_rate_one_is_zero():
    assert not scaled_mask(torch.ones(3), (50, 1), 1.0).any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_dropped_at_rate_one_may_be_infinite(masking, value):
    x = torch.full((8, 8, 8), value, requires_grad=True)
    y = masking.make(1.0)(x)
    assert not y.any()
    y.sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_drop_everything_at_rate_one(name):
    x = torch.full((8, 8, 8), 3.0)
    y = FUNCTIONS[name](x, 1.0)
    assert torch.equal(y, x if name == "layer_drop" else torch.zeros_like(x))


INPLACE = [Dropout, ChannelDropout, AlphaDropout]


@own_or_shared
@pytest.mark.parametrize("kind", INPLACE)
def test_inplace_changes_the_input_and_nothing_else(kind, own_generator):
    def layer(inplace):
        torch.manual_seed(0)
        return kind(0.5, seeded(1) if own_generator else None, inplace=inplace)

    start = torch.randn(8, 80, 9, dtype=torch.float64, requires_grad=True)
    x = start * 1
    drop = layer(inplace=True)
    y = drop(x)
    assert y is x
    y.square().sum().backward()
    if not own_generator:
        # The mask of a kernel differs from that of the in-place operation of PyTorch.
        dropped = y.detach() == 0 if kind is not AlphaDropout else start.grad == 0
        assert 0.2 < dropped.double().mean() < 0.8
    else:
        twin = start.detach().clone().requires_grad_()
        # With PyTorch operations, to get the same mask.
        expected = FUNCTIONS[kind](twin * 1, 0.5, True, seeded(1), True)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(start.grad, twin.grad)
    x = torch.ones(3, 4, 5)
    assert drop.eval()(x) is x
    assert x.all()
    drop.train().p = 1.0
    drop(x)
    assert not x.any()


@own_or_shared
@pytest.mark.parametrize("kind", INPLACE)
def test_inplace_gradient_is_the_slope_of_the_applied_map(kind, own_generator):
    start = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    y = kind(0.3, seeded(0) if own_generator else None, inplace=True)(start * 1)
    (slope,) = torch.autograd.grad(y.sum(), start)
    # The gradient is the slope of each element; elements without slope have one value.
    shift = (y - slope * start).detach()
    for part in (slope == 0, slope != 0):
        assert 0 < part.double().mean() < 1
        torch.testing.assert_close(shift[part], shift[part][:1].expand_as(shift[part]))


@pytest.mark.parametrize("kind", INPLACE)
def test_inplace_is_shown_and_checked(kind):
    assert repr(kind(0.5, inplace=True)) == f"{kind.__name__}(p=0.5, inplace=True)"
    with pytest.raises(ValueError, match="inplace is True or False, not 1"):
        kind(0.5, inplace=1)


@pytest.mark.parametrize("value", [True, False, 1, "cpu"])
def test_a_value_that_is_not_a_generator_is_refused(case, value):
    # PyTorch's layers take `inplace` here.
    with pytest.raises(ValueError, match=f"generator is a torch.Generator or None, not {value!r}"):
        case.make(0.5, value)


@pytest.mark.parametrize(
    ("dims", "shape"), [(1, (30, 9)), (2, (30, 3, 4)), (3, (30, 2, 3, 4)), (0, (30,))]
)
def test_channel_dropout_takes_an_example_without_a_batch(dims, shape):
    x = torch.ones(shape)
    layer = ChannelDropout(0.5, dims=dims)
    y = layer(x)
    flat = y.reshape(30, -1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))
    assert set(flat[:, 0].tolist()) == {0.0, 2.0}
    batch = layer(x.expand(40, *shape)).reshape(40, 30, -1)
    assert torch.equal(batch, batch[:, :, :1].expand_as(batch))
    assert not torch.equal(batch, batch[:1].expand_as(batch))
    assert not torch.equal(batch, batch[:, :1].expand_as(batch))
    assert repr(layer) == f"ChannelDropout(p=0.5, dims={dims})"
    for training in (True, False):
        with pytest.raises(ValueError, match=rf"dims={dims} takes .* not {dims + 3}"):
            layer.train(training)(torch.ones((2,) * (dims + 3)))


@pytest.mark.parametrize("dims", [-1, 1.0, "2", True])
def test_channel_dropout_refuses_wrong_dimensions(dims):
    with pytest.raises(ValueError, match=f"dims is a whole number of at least 0, not {dims!r}"):
        ChannelDropout(0.5, dims=dims)
