"""Tests of structured dropout; tests of every layer are in test_dropout.py."""

import copy
import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.ops import drop_block2d, stochastic_depth

from regain import DropBlock, DropPath, LayerDrop, WeightDrop, drop_block, drop_path, layer_drop

# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")

by_example = settings(deadline=None, derandomize=True, max_examples=50)
rates = st.floats(0.01, 0.95)
seeds = st.integers(0, 2**31)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def timm_drop_path(x, p):
    """The formula of timm's `drop_path` with `scale_by_keep`."""
    keep = 1 - p
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask.div_(keep)


# DropPath


@by_example
@given(p=rates, shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=seeds)
def test_drop_path_drops_or_scales_each_example_as_a_whole(p, shape, seed):
    torch.manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64) + 1
    y = DropPath(p)(x)
    for example, out in zip(x, y, strict=True):
        expected = torch.zeros_like(out) if (out == 0).any() else example / (1 - p)
        torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [0.3, 0.5])
@pytest.mark.parametrize("peer", [partial(stochastic_depth, mode="row"), timm_drop_path])
def test_drop_path_is_that_of_torchvision_and_of_timm(p, peer, assert_rate):
    x = torch.ones(900_000, 2)
    moments = []
    for function in (drop_path, peer):
        y = function(x, p)
        assert torch.equal(y[:, 0], y[:, 1])
        assert_rate(y[:, 0] == 0, p)
        moments.append((y[:, 0].mean().item(), y[:, 0].var().item(), y.max().item()))
    (mean, var, largest), (peer_mean, peer_var, peer_largest) = moments
    # Standard error of the difference of two means; the rate above tests the variance better.
    assert abs(mean - peer_mean) <= 4 * math.sqrt(2 * p / (1 - p) / len(x))
    assert var == pytest.approx(peer_var, rel=0.01)
    assert largest == peer_largest


def test_drop_path_may_leave_what_it_keeps_unscaled(assert_rate):
    x = torch.full((400_000, 2), 3.0)
    layer = DropPath(0.5, scale_by_keep=False)
    y = layer(x)
    assert set(y.flatten().tolist()) == {0.0, 3.0}
    assert_rate(y[:, 0] == 0, 0.5)
    assert repr(layer) == "DropPath(p=0.5, scale_by_keep=False)"
    with pytest.raises(ValueError, match="scale_by_keep is True or False, not 0"):
        DropPath(0.5, scale_by_keep=0)


# DropBlock


@pytest.mark.parametrize(
    ("size", "block", "p", "channels"),
    [
        ((5,), 3, 0.2, 1_450_000),
        ((4,), 7, 0.3, 850_000),  # A block wider than the map.
        ((6,), 1, 0.5, 365_000),
        ((4, 4), 2, 0.5, 365_000),
        ((3, 5), 3, 0.5, 365_000),
        ((3, 2, 3), 2, 0.5, 365_000),
    ],
)
def test_drop_block_drops_every_position_at_rate_p(size, block, p, channels, assert_rate):
    # Adjacent positions are dependent, channels and examples are not: count those.
    dropped = (DropBlock(p, block)(torch.ones(5, channels // 5, *size)) == 0).flatten(2)
    corner, middle = 0, dropped.shape[2] // 2
    for position in (corner, middle, dropped.shape[2] - 1):
        assert_rate(dropped[:, :, position], p)


@by_example
@given(
    p=st.floats(0.01, 0.4),
    block=st.integers(1, 4),
    size=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=seeds,
)
def test_drop_block_drops_blocks(p, block, size, seed):
    torch.manual_seed(seed)
    dropped = (drop_block(torch.ones(2, 3, *size), p, block) == 0).float()
    # Blocks may cross the border: positions beyond it count as dropped.
    wide = F.pad(dropped, (block - 1, block - 1) * len(size), value=1.0)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(size)]
    whole = 1 - pool(1 - wide, block, 1)  # Where a block is dropped as a whole.
    assert torch.equal(pool(whole, block, 1), dropped)


def test_drop_block_drops_in_single_blocks_of_the_side_asked_for():
    # Blocks are so rare that they hardly overlap: each drops nine positions, 3 by 3.
    dropped = (drop_block(torch.ones(20, 50, 30, 30), 0.01, 3) == 0).double()
    squares = F.avg_pool2d(dropped, 3, 1) > 0.99
    assert dropped.mean().item() == pytest.approx(9 * squares.double().mean().item(), rel=0.1)


def test_drop_block_compared_with_that_of_torchvision():
    p, block = 0.3, 3
    torch.manual_seed(1)
    x = torch.ones(40, 200, 12, 12)
    ours, theirs = drop_block(x, p, block), drop_block2d(x, p, block)
    middle = (slice(None), slice(None), slice(4, 8), slice(4, 8))
    neighbours = []
    for y in (ours, theirs):
        dropped = (y == 0).double()[middle]
        rate = dropped.mean()
        both = (dropped[..., 1:] * dropped[..., :-1]).mean()
        # Of the 9 blocks over a position, 6 also cover the adjacent one. With blocks
        # starting at rate g, both are kept at rate (1 - g)**12, and one at rate (1 - g)**9.
        one = 1 - rate
        both_kept = 1 - 2 * rate + both
        neighbours.append(math.log(both_kept) / math.log(one))
    assert neighbours[0] == pytest.approx(12 / 9, rel=0.01)
    assert neighbours[1] == pytest.approx(neighbours[0], rel=0.02)
    # Both preserve the mean; the other implementation scales by the fraction that was kept.
    assert ours.mean().item() == pytest.approx(1.0, abs=0.003)
    assert theirs.mean().item() == pytest.approx(1.0, abs=0.003)
    # The other implementation ignores overlaps, and drops less at borders.
    assert (ours == 0).double().mean().item() == pytest.approx(p, abs=0.003)
    assert (theirs == 0).double().mean().item() < 0.95 * p


@pytest.mark.parametrize("dims", [0, 4])
def test_drop_block_refuses_a_wrong_number_of_dimensions(dims):
    x = torch.ones(2, 3, *(4,) * dims)
    for training in (True, False):
        with pytest.raises(ValueError, match=f"1 to 3 dimensions after the channels, not {dims}"):
            drop_block(x, 0.1, 3, training)


@pytest.mark.parametrize("block", [0, -1, 2.0, "3", True, None, math.nan])
def test_drop_block_refuses_a_wrong_block(block):
    with pytest.raises(ValueError, match="block is a whole number of at least 1") as refusal:
        DropBlock(0.1, block)
    assert str(refusal.value).endswith(f"not {block!r}")


def test_drop_block_shows_its_options():
    assert repr(DropBlock(0.25, 7)) == "DropBlock(p=0.25, block=7)"
    shown = repr(DropBlock(0.25, couple_channels=True, inplace=True))
    assert shown == "DropBlock(p=0.25, block=3, couple_channels=True, inplace=True)"


def test_coupled_channels_lose_the_same_positions_at_rate_p(assert_rate):
    # Adjacent positions are dependent, examples are not: count one position of each.
    dropped = DropBlock(0.5, 2, couple_channels=True)(torch.ones(365_000, 2, 3)) == 0
    assert torch.equal(dropped[:, :1].expand_as(dropped), dropped)
    assert_rate(dropped[:, 0, 1], 0.5)
    one = DropBlock(0.5, 2)(torch.ones(100, 2, 3)) == 0
    assert not torch.equal(one[:, 0], one[:, 1])


@pytest.mark.parametrize("couple_channels", [False, True])
def test_drop_block_in_place(couple_channels):
    layer = DropBlock(0.5, couple_channels=couple_channels, inplace=True)
    leaf = torch.randn(4, 8, 12, 12, requires_grad=True)
    x = leaf * 1.0
    y = layer(x)
    assert y is x
    assert (y == 0).any()
    y.sum().backward()
    torch.testing.assert_close(leaf.grad, 2.0 * (y != 0).float())
    torch.testing.assert_close(y, leaf * leaf.grad)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("couple_channels", [False, True])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_drop_block_keeps_the_memory_format(couple_channels, form):
    x = torch.randn(4, 8, 12, 12).contiguous(memory_format=form)
    y = drop_block(x, 0.3, couple_channels=couple_channels)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, torch.where(y != 0, x / 0.7, 0.0))


# LayerDrop


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_layer_drop_skips_at_rate_p(p):
    layer, x, generator = nn.Identity(), torch.ones(()), seeded(1)
    # A skipped layer without parameters returns a copy; a called one returns its input. Each call
    # takes microseconds, so the sample is smaller than that of `assert_rate`.
    calls = (layer_drop(layer, x, p=p, generator=generator) is not x for _ in range(20_000))
    assert sum(calls) / 20_000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))


def test_layers_of_one_model_are_skipped_independently(assert_independent):
    model = [LayerDrop(nn.Identity(), 0.5) for _ in range(2)]
    x = torch.ones(())
    skipped = torch.tensor([[layer(x) is not x for layer in model] for _ in range(10_000)])
    assert_independent(skipped, 0)
    assert_independent(skipped, 1)


def test_skipped_layer_gives_its_input_and_each_parameter_a_gradient_of_zero():
    layer = LayerDrop(nn.Linear(3, 3), 0.5)
    frozen = layer.layer.bias.requires_grad_(False)
    seen = set()
    for _ in range(20):
        layer.zero_grad()
        x = torch.randn(2, 3, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        skipped = torch.equal(y, x)
        seen.add(skipped)
        weight = layer.layer.weight
        if skipped:
            assert torch.equal(x.grad, torch.ones_like(x))
            assert torch.equal(weight.grad, torch.zeros_like(weight))
        else:
            # Nothing is scaled.
            torch.testing.assert_close(y, layer.layer(x))
            assert weight.grad.abs().sum() > 0
        assert frozen.grad is None
    assert seen == {True, False}


def test_layer_drop_passes_all_arguments():
    class Attend(nn.Module):
        def forward(self, x, memory, *, scale):
            return x * memory * scale

    layer = LayerDrop(Attend(), 0.5)
    x, memory = torch.full((2,), 3.0), torch.full((2,), 5.0)
    outputs = {tuple(layer(x, memory, scale=2.0).tolist()) for _ in range(30)}
    assert outputs == {(3.0, 3.0), (30.0, 30.0)}
    assert layer.eval()(x, memory, scale=2.0).tolist() == [30.0, 30.0]


def test_layer_drop_can_be_copied_and_saved_when_it_has_drawn():
    layer, x = LayerDrop(nn.Linear(3, 3), 0.5), torch.randn(2, 3)
    layer(x)
    assert layer.generator is not None
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert twin.state_dict().keys() == {"layer.weight", "layer.bias"}
        choices = [torch.equal(twin(x), x) for _ in range(30)]
        assert set(choices) == {True, False}
    assert [torch.equal(layer(x), x) for _ in range(30)] == choices


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_skipped_layer_may_have_infinite_weights(value):
    layer = LayerDrop(nn.Linear(3, 3), 1.0)
    nn.init.constant_(layer.layer.weight, value)
    x = torch.randn(2, 3, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not layer.layer.weight.grad.any()


@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_skipped_layer_keeps_the_type_of_its_input(dtype, shape):
    layer = LayerDrop(nn.Linear(3, 3), 1.0)
    assert layer(torch.ones(shape, dtype=dtype)).dtype == dtype


def test_the_layer_drop_of_torch_func_has_the_gradients_of_its_choice():
    inner = nn.Linear(3, 3)
    layer = LayerDrop(inner, 0.5)
    x, outputs = torch.randn(2, 3), set()
    for _ in range(20):
        y, pull = torch.func.vjp(layer, x)
        (gradient,) = pull(torch.ones_like(y))
        skipped = torch.equal(y, x)
        expected = torch.ones_like(x) if skipped else inner.weight.sum(0).expand_as(x)
        torch.testing.assert_close(gradient, expected)
        outputs.add(skipped)
    assert outputs == {True, False}


# WeightDrop


def test_weight_drop_does_not_change_the_parameters():
    layer = WeightDrop(nn.Linear(40, 30).double(), p=0.3)
    plain = copy.deepcopy(layer.layer)
    assert [name for name, _ in layer.named_parameters()] == ["layer.weight", "layer.bias"]
    x = torch.eye(40, dtype=torch.float64)
    y = layer(x)
    mask = ((y - plain.bias).T.abs() > 1e-12).double()
    torch.testing.assert_close(y, F.linear(x, plain.weight * mask / 0.7, plain.bias))
    assert 0.6 < mask.mean() < 0.8
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(layer.layer.weight.grad, upstream.T * mask / 0.7)
    torch.testing.assert_close(layer.layer.bias.grad, upstream.sum(0))
    for name, parameter in plain.named_parameters():
        assert torch.equal(layer.layer.get_parameter(name), parameter)
    before = layer.layer.weight.detach().clone()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    moved = layer.layer.weight.detach() != before
    assert torch.equal(moved, mask.bool())


def test_weight_drop_draws_once_for_the_whole_batch():
    layer = WeightDrop(nn.Linear(20, 20), p=0.5)
    y = layer(torch.ones(50, 20))
    torch.testing.assert_close(y, y[:1].expand_as(y))
    assert not torch.allclose(layer(torch.ones(50, 20)), y)


def test_weight_drop_takes_several_weights_and_those_of_inner_layers():
    inner = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    nn.init.ones_(inner[0].weight)
    for name in ("weight", "bias"):
        nn.init.ones_(inner[1].get_parameter(name))
    layer = WeightDrop(inner, ["1.weight", "1.bias"], p=0.5)
    with torch.no_grad():
        inner[0].bias.fill_(0.0)
        biases = torch.stack([layer(torch.zeros(1, 9))[0] for _ in range(20)])
        outputs = torch.stack([layer(torch.ones(1, 9))[0] for _ in range(20)])
    assert set(biases.flatten().tolist()) == {0.0, 2.0}
    # Each kept weight adds 18: no weight of the first layer is dropped.
    assert set((outputs % 18).flatten().tolist()) <= {0.0, 2.0}
    assert len(outputs.unique()) > 3


def hidden_mask(layer, x):
    """The mask of the hidden weights of an LSTM, read from their gradient."""
    layer.zero_grad()
    output = layer(x)[0]
    output.square().sum().backward()
    return output, (layer.layer.weight_hh_l0.grad != 0).double()


def test_weight_drop_of_an_lstm_is_an_lstm_of_masked_weights():
    torch.manual_seed(3)
    layer = WeightDrop(nn.LSTM(3, 4), ["weight_hh_l0"], p=0.5).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    twin = copy.deepcopy(layer.layer)
    masks = []
    for _ in range(4):
        output, mask = hidden_mask(layer, x)
        with torch.no_grad():
            twin.weight_hh_l0.copy_(layer.layer.weight_hh_l0 * mask / 0.5)
            twin.flatten_parameters()
            expected, _ = twin(x)
        torch.testing.assert_close(output, expected)
        masks.append(mask)
        assert 0.2 < mask.mean() < 0.8
    assert not torch.equal(masks[0], masks[1])
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        assert layer.layer.get_parameter(name).grad.all()


def test_weight_drop_of_an_lstm_in_eval_is_the_plain_one_even_after_training():
    plain = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    names = ["weight_hh_l0", "weight_hh_l1_reverse"]
    layer = WeightDrop(copy.deepcopy(plain), names, p=0.5)
    x = torch.randn(6, 2, 3)
    expected = plain(x)[0]
    assert torch.equal(layer.eval()(x)[0], expected)
    assert not torch.equal(layer.train()(x)[0], expected)
    assert torch.equal(layer.eval()(x)[0], expected)
    # The inner layer has its own parameters again, so that it can be copied and loaded.
    twin = copy.deepcopy(layer.train())
    assert torch.equal(twin.eval()(x)[0], expected)
    other = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    twin.layer.load_state_dict(other.state_dict())
    assert torch.equal(twin(x)[0], other(x)[0])
    assert torch.equal(layer.eval()(x)[0], expected)


def test_weight_drop_uses_weights_of_functional_call():
    layer, x = WeightDrop(nn.Linear(3, 3, bias=False), p=0.5), torch.eye(3)
    weight = torch.full((3, 3), 2.0)
    y = functional_call(layer, {"layer.weight": weight}, x)
    assert set(y.flatten().tolist()) <= {0.0, 4.0}


@pytest.mark.parametrize(
    ("names", "wrong"), [(["wieght"], "wieght"), (["weight", "weight_hh_l0"], "weight_hh_l0")]
)
def test_weight_drop_refuses_a_name_that_the_layer_does_not_have(names, wrong):
    expected = f"the layer has no parameter {wrong!r}; its parameters are weight, bias"
    with pytest.raises(ValueError, match=expected):
        WeightDrop(nn.Linear(2, 2), names)


def test_weight_drop_shows_its_names():
    layer = WeightDrop(nn.Linear(2, 2), ["weight"], p=0.25)
    assert layer.extra_repr() == "names=('weight',), p=0.25"


@pytest.mark.parametrize("name", ["weight", "0.weight"])
def test_weight_drop_refuses_a_single_string(name):
    with pytest.raises(ValueError, match=rf"names is a sequence of names, such as \['{name}'\]"):
        WeightDrop(nn.Sequential(nn.Linear(2, 2)), name)


@pytest.mark.parametrize("generator", [None, seeded(0)])
def test_variational_weight_drop_drops_whole_rows(generator, assert_rate):
    layer = WeightDrop(nn.Linear(3, 400, bias=False), p=0.5, generator=generator, variational=True)
    nn.init.ones_(layer.layer.weight)
    masks = torch.stack([layer(torch.eye(3)) for _ in range(1000)])
    assert set(masks.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(masks, masks[:, :1].expand_as(masks))
    assert_rate(masks[:, 0] == 0, 0.5)
    assert layer.extra_repr() == "names=('weight',), p=0.5, variational=True"
    assert layer.eval()(torch.ones(1, 3)).tolist() == [[3.0] * 400]


def test_variational_weight_drop_of_an_lstm_drops_all_inputs_of_a_gate():
    layer = WeightDrop(nn.LSTM(3, 40), ["weight_hh_l0"], p=0.5, variational=True)
    _, mask = hidden_mask(layer, torch.randn(6, 2, 3))
    rows = mask.mean(1)
    assert set(rows.tolist()) == {0.0, 1.0}
