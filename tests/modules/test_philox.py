"""One seed, one mask: with compiled kernels and without them."""

import math

import pytest
import torch

from regain import DropBlock, WeightDrop, alpha_dropout, drop_block, dropout, kernels
from regain.philox import kept_values, philox

needs_kernels = pytest.mark.skipif(
    kernels.compiled_kernels() is None,
    reason="there is no C compiler here, and so no kernel to compare with",
)
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def both(monkeypatch):
    """Call a function with and without kernels, from the same generator state."""

    def call(function):
        torch.manual_seed(3)
        first = function()
        rest = torch.rand(3)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "compiled_kernels", lambda: None)
            torch.manual_seed(3)
            second = function()
        assert torch.equal(torch.rand(3), rest)
        return first, second

    return call


def test_philox_gives_the_known_answers_of_random123():
    # From kat_vectors of Random123: philox4x32, 10 rounds, counter and key zero.
    words = philox(0, torch.zeros(1, dtype=torch.int64), 0)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [100, 4096, 12_345])
@pytest.mark.parametrize("p", [0.1, 0.5, 1.5 / 2**16, 1 - 1e-16])
def test_dropout_draws_the_same_mask(both, dtype, count, p):
    x = torch.ones(count, dtype=dtype)
    assert torch.equal(*both(lambda: dropout(x, p)))
    assert torch.equal(*both(lambda: alpha_dropout(x, p) == 1))
    generator = torch.Generator()
    assert torch.equal(*both(lambda: dropout(x, p, generator=generator.manual_seed(1))))


@needs_kernels
def test_ties_are_broken_identically(both):
    # About fifteen of a million 16-bit numbers equal the first 16 bits of the rate.
    x = torch.ones(1_000_000)
    assert torch.equal(*both(lambda: dropout(x, 0.3)))


VIEWS = {
    "plain": lambda x: x,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "gaps": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(40, -1, -1, -1),
    "offset": lambda x: x.flatten()[5:],
    "vector": lambda x: x.flatten(),
}


@needs_kernels
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_in_any_layout_of_memory_values_and_gradients_are_the_same(both, view):
    def step(function):
        x = view(torch.ones(40, 8, 15, 17)).clone()
        x.requires_grad_()
        y = function(x)
        assert y.stride() == x.stride()
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        return torch.stack((y, grad))

    assert torch.equal(*both(lambda: step(lambda x: dropout(x, 0.3))))
    if view(torch.ones(40, 8, 15, 17)).dim() == 4:
        assert torch.equal(*both(lambda: step(lambda x: drop_block(x, 0.3))))


@needs_kernels
@pytest.mark.parametrize("couple_channels", [False, True])
@pytest.mark.parametrize("shape", [(9, 8, 70), (3, 16, 13, 11), (3, 16, 5, 6, 7), (2, 2, 1, 2000)])
@pytest.mark.parametrize(("p", "block"), [(0.1, 3), (0.5, 1), (0.95, 2), (0.001, 7), (0.3, 20)])
def test_blocks_are_the_same(both, couple_channels, shape, p, block):
    layer, x = DropBlock(p, block, couple_channels=couple_channels), torch.ones(shape)
    assert torch.equal(*both(lambda: layer(x)))


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_blocks_of_any_type_are_the_same(both, dtype):
    x = torch.ones(3, 16, 13, 11, dtype=dtype)
    assert torch.equal(*both(lambda: drop_block(x, 0.2)))


@needs_kernels
def test_dropped_weights_are_the_same(both):
    layer = WeightDrop(torch.nn.Linear(100, 80), p=0.4)
    x = torch.eye(100)
    assert torch.equal(*both(lambda: layer(x)))


@pytest.mark.parametrize("p", [0.1, 0.937])
def test_without_kernels_the_rate_is_exact_too(p):
    count = 1_000_000
    dropped = count - int(kept_values(count, p, 12345).sum())
    assert abs(dropped - p * count) <= 4 * math.sqrt(p * (1 - p) * count)
