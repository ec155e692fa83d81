"""Argument checks of the kernels: C must not read or write outside of its memory."""

import math

import pytest
import torch

from regain import DropBlock, Dropout, MaskedBatchNorm, drop_block, dropout, kernels
from regain.cpudropout import bitmask_blocks, bitmask_dropout

pytestmark = pytest.mark.skipif(
    kernels.compiled_kernels() is None,
    reason="there is no C compiler here, and so no kernel to test",
)
X = torch.ones(4, 3, 6)
MASK = torch.ones(4, 6, dtype=torch.bool)
BITS = torch.zeros(12, 1, dtype=torch.int64)
C = torch.ones(3)


class Subclass(torch.Tensor):
    """A tensor subclass, whose memory may not hold its values."""


def negative(x):
    """The same values with a lazy negation: memory holds the opposite."""
    return torch._neg_view(-x)


# Inputs that no kernel accepts.
HOSTILE = {
    "meta": lambda x: x.to("meta"),
    "subclass": lambda x: x.as_subclass(Subclass),
    "sparse": lambda x: x.to_sparse(),
    "overlapping": lambda x: x[:1].expand(x.shape),
    "gaps": lambda x: torch.stack((x, x), -1)[..., 0],
    "short": lambda x: x[1:],
    "long": lambda x: torch.cat((x, x)),
    "flat": lambda x: x.flatten()[:-1],
    "empty": lambda x: x[:0],
    "integers": lambda x: x.to(torch.int32),
    "halves": lambda x: x.half(),
    "complex": lambda x: x.to(torch.complex64),
    "list": lambda x: x.tolist(),
    "nothing": lambda _: None,
}
REFUSED = r"is not a plain tensor|has the type|has the shape|has gaps in memory"
hostile = pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)


def forward(x=X, mask=MASK, weight=C, bias=C):
    return kernels.norm_forward(x, mask, weight, bias, 1e-5)


def backward(upstream=X, x=X, mask=MASK, weight=C, mean=C, variance=C, count=24):
    return kernels.norm_backward(upstream, x, mask, weight, mean, variance, 1e-5, count)


@hostile
@pytest.mark.parametrize("name", ["mask", "weight", "bias"])
def test_norm_forward_refuses_invalid_tensors(name, change):
    if name != "mask" and change(C) is None:
        assert len(forward(**{name: None})) == 4
        return
    given = change({"mask": MASK}.get(name, C))
    with pytest.raises(ValueError, match=REFUSED):
        forward(**{name: given})


@hostile
@pytest.mark.parametrize("name", ["upstream", "mask", "weight", "mean", "variance"])
def test_norm_backward_refuses_invalid_tensors(name, change):
    if name == "weight" and change(C) is None:
        assert len(backward(weight=None)) == 3
        return
    given = change({"upstream": X, "mask": MASK}.get(name, C))
    with pytest.raises(ValueError, match=REFUSED):
        backward(**{name: given})


@pytest.mark.parametrize("shape", [(), (3,), (0, 3, 6), (4, 0, 6), (4, 3, 0)])
def test_the_norm_refuses_an_input_without_values(shape):
    with pytest.raises(ValueError, match=r"a norm needs \(batch, channels, ..., time\)"):
        forward(torch.ones(shape))


@pytest.mark.parametrize("count", [1, 0, -5])
def test_the_gradient_of_too_few_values_is_refused(count):
    with pytest.raises(ValueError, match=f"more than one value per channel, not {count}"):
        backward(count=count)


@pytest.mark.parametrize("rows", [0, -1, 5, 13, 72])
def test_a_number_of_rows_that_does_not_fit_the_bits_is_refused(rows):
    with pytest.raises(ValueError, match=r"rows|bits has the shape"):
        kernels.apply(X, BITS, rows, 1.0)


@pytest.mark.parametrize(
    "bits", [BITS[1:], BITS.int(), BITS.double(), BITS.view(-1)[:-1], BITS.expand(12, 2)]
)
def test_bits_that_do_not_fit_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        kernels.apply(X, bits, 12, 1.0)


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0, 2.0, math.nan, math.inf])
def test_a_rate_that_has_no_threshold_is_refused(p):
    with pytest.raises(ValueError, match="p is a rate"):
        kernels.dropout(X, 1, p, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "x", [X.half(), X.to("meta"), X.expand(5, 4, 3, 6), X.as_subclass(Subclass)]
)
def test_dropout_refuses_what_it_cannot_read(x):
    with pytest.raises(ValueError, match=r"x is not|x has gaps|no kernel"):
        kernels.dropout(x, 1, 0.5, 2.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "sizes", "sides", "log_stay"),
    [
        (0, [1, 4, 4], [1, 2, 2], -0.1),
        (3, [1, 0, 4], [1, 2, 2], -0.1),
        (3, [1, 4, 4], [1, -3, -3], -0.1),
        (3, [4, 4], [2, 2], -0.1),
        (3, [1, 4, 4], [1, 2**31, 2**31], -0.1),
        (3, [1, 4, 4], [1, 2, 2], 0.0),
        (3, [1, 4, 4], [1, 2, 2], 0.5),
        (3, [1, 4, 4], [1, 2, 2], -math.inf),
        (3, [1, 4, 4], [1, 2, 2], math.nan),
    ],
)
def test_invalid_blocks_are_refused(rows, sizes, sides, log_stay):
    with pytest.raises(ValueError, match=r"blocks|logarithm"):
        kernels.blocks(rows, sizes, sides, log_stay, 1)


@pytest.mark.parametrize("block", [2.0, -3, 0, True, None, "3", math.nan, 2**31, 10**30])
@pytest.mark.parametrize("training", [True, False])
def test_the_function_checks_its_block_as_the_layer_does(block, training):
    for make in (
        lambda: drop_block(torch.ones(2, 3, 64, 64), 0.5, block, training),
        lambda: DropBlock(0.5, block),
    ):
        with pytest.raises(ValueError, match="block is a whole number of at least 1") as refusal:
            make()
        assert str(refusal.value).endswith(f"not {block!r}")


@pytest.mark.parametrize("block", [64, 1000, 2**20])
def test_a_block_may_be_larger_than_the_map(block):
    dropped = drop_block(torch.ones(40, 50, 8, 8), 0.5, block) == 0
    # Most maps are dropped or kept as a whole.
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))


def test_lazily_negated_values_are_read_correctly():
    x = torch.rand(20, 300) + 1
    assert negative(x).is_neg()
    y = dropout(negative(x), 0.5)
    torch.testing.assert_close(y, torch.where(y != 0, 2 * x, 0.0))
    norm, plain = MaskedBatchNorm(300, dims=0), torch.nn.BatchNorm1d(300)
    torch.testing.assert_close(norm(negative(x), torch.ones(20, 1).bool()), plain(x))
    y = dropout(x.requires_grad_(), 0.5)
    (grad,) = torch.autograd.grad(y, x, negative(torch.ones_like(x)))
    torch.testing.assert_close(grad, torch.where(y != 0, 2.0, 0.0))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 255, 256, 257, 1023, 4097, 16385])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_length_ends_where_its_memory_does(count, dtype):
    # For the sanitizers: sizes close to those of words, blocks and parallel loops.
    x = torch.ones(count, dtype=dtype, requires_grad=True)
    y = bitmask_dropout(x, 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    for shape in ((1, 1, count), (1, 2, 1, count), (1, 1, count, 1)):
        y = bitmask_blocks(torch.ones(shape, dtype=dtype), 0.3, 3)
        assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / 0.7, dtype=dtype).item()}
    if dtype != torch.bfloat16:
        mask = torch.rand(2, count) > 0.4
        mask[:, 0] = True
        x = torch.randn(2, 3, count, dtype=dtype, requires_grad=True)
        MaskedBatchNorm(3).to(dtype)(x, mask).square().sum().backward()
        assert not x.grad.masked_select(~mask.unsqueeze(1)).any()


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 17])
def test_every_number_of_channels_ends_where_its_memory_does(channels):
    x = torch.randn(3, channels, 2, 5, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
    MaskedBatchNorm(channels, dims=2)(x, mask).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(0,), (0, 70), (70, 0), (0, 3, 64, 64), (64, 3, 0, 64)])
def test_empty_tensors_are_accepted(shape):
    x = torch.ones(shape, requires_grad=True)
    layers = [
        Dropout(0.5),
        *([DropBlock(0.5), DropBlock(0.5, couple_channels=True)] if x.dim() > 2 else []),
    ]
    for layer in layers:
        y = layer(x)
        assert y.shape == shape
        y.sum().backward()


def test_parameters_that_were_changed_by_hand_are_checked():
    # Tensors of the layer, replaced from outside.
    norm = MaskedBatchNorm(3)
    norm.weight.data = torch.ones(2)
    with pytest.raises(ValueError, match="weight has 2 features, the input has 3"):
        norm(X, MASK)
    norm = MaskedBatchNorm(3)
    norm.weight.data = torch.ones(6)[::2]
    assert norm(X, MASK).shape == X.shape
