"""Tests of the kernels themselves; the other files test the layers that use them."""

import math
import os
import shlex
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from regain import Dropout, MaskedBatchNorm, cpudropout, drop_block, dropout, kernels, maskednorm
from regain.cpudropout import bitmask_blocks, bitmask_dropout

needs_kernels = pytest.mark.skipif(
    kernels.compiled_kernels() is None,
    reason="there is no C compiler here, and so no kernel to test",
)
LANES, BLOCK = 32, 256


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) with 32-bit words in 64-bit integers."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    k = [np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> shift) ^ c[1] ^ k[0], b & low, (a >> shift) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def test_where_there_is_a_compiler_there_are_kernels():
    # Otherwise an error in the source would only make layers slow, and skip the tests below.
    compiler = shlex.split(os.environ.get("CC", "cc"))[0]
    assert kernels.compiled_kernels() is not None or shutil.which(compiler) is None


def test_the_reference_philox_gives_the_known_answers():
    # From kat_vectors of Random123: philox4x32, 10 rounds.
    assert [int(w) for w in philox([0] * 4, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    pi = philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822)
    assert [int(w) for w in pi] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@needs_kernels
@pytest.mark.parametrize("p", [0.1, 0.5, 0.937])
def test_masks_are_those_of_philox(p):
    count = 10_000
    kept = bitmask_dropout(torch.ones(count), p, seeded(7)) != 0
    key = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=seeded(7)))
    blocks = math.ceil(count / BLOCK)
    words = np.stack(philox([np.arange(blocks * LANES), 0, 0, 0], key % 2**64))
    # The 16-bit numbers of a block: by word, then by lane, lower half first.
    words = words.reshape(4, blocks, LANES).transpose(1, 0, 2).astype("<u4")
    numbers = np.ascontiguousarray(words).view("<u2").reshape(-1)[:count]
    high = math.floor(p * 2**16)
    sure = torch.from_numpy(numbers != high)  # The others are decided by further bits.
    assert torch.equal(kept[sure], torch.from_numpy(numbers > high)[sure])
    assert sure.float().mean() > 0.999


@needs_kernels
def test_rates_are_more_precise_than_16_bits():
    p, count = 1.5 / 2**16, 40_000_000
    dropped = count - int(bitmask_dropout(torch.ones(count), p, seeded(0)).count_nonzero())
    # Rounded to 16 bits, the rate would be off by a third.
    assert abs(dropped - p * count) <= 4 * math.sqrt(p * count)


@needs_kernels
def test_draws_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    x, mask = torch.randn(40, 20, 31, 33), torch.rand(40, 33) > 0.3
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            norm = MaskedBatchNorm(20, dims=2)
            found.append(
                (
                    bitmask_dropout(x, 0.3, seeded(1)),
                    bitmask_blocks(x, 0.3, 5, seeded(1)),
                    norm(x, mask),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@needs_kernels
def test_values_in_different_blocks_are_independent():
    kept = (bitmask_dropout(torch.ones(2_000_000), 0.5, seeded(3)) != 0).double() - 0.5
    for lag in (1, 2, LANES, 2 * LANES, 64, BLOCK, 2 * BLOCK, BLOCK * LANES):
        correlation = 4 * (kept[lag:] * kept[:-lag]).mean().item()
        assert abs(correlation) <= 4 / math.sqrt(len(kept)), lag


@needs_kernels
def test_one_bit_per_value_is_saved_for_the_backward_pass():
    x = torch.ones(64, 1000, requires_grad=True)
    for y in (dropout(x, 0.5), drop_block(x.view(64, 10, 10, 10), 0.5)):
        saved = [kept for kept in y.grad_fn.saved_tensors if kept is not None]
        # Rows of a hundred positions end within a word.
        assert sum(kept.nbytes for kept in saved) <= 1.3 * x.numel() / 8


@needs_kernels
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(40, -1, -1, -1),
        lambda x: x.flatten()[5:],
    ],
    ids=["plain", "channels-last", "transposed", "gaps", "expanded", "offset"],
)
def test_any_layout_of_memory_and_of_the_gradient(view):
    x = view(torch.rand(40, 8, 15, 17, dtype=torch.float64) + 1).requires_grad_()
    for y in (dropout(x, 0.3), *([drop_block(x, 0.3)] if x.dim() == 4 else [])):
        kept = (y != 0).double()
        torch.testing.assert_close(y, x * kept / 0.7, rtol=1e-14, atol=0)
        upstream = (
            torch.randn_like(y.flatten()).view(y.shape[::-1]).permute(*reversed(range(y.dim())))
        )
        for given in (upstream, torch.ones(()).double().expand_as(y)):
            (grad,) = torch.autograd.grad(y, x, given, retain_graph=True)
            torch.testing.assert_close(grad, given * kept / 0.7, rtol=1e-14, atol=0)


@needs_kernels
def test_bfloat16_is_rounded_as_by_torch_and_keeps_what_is_no_number():
    x = torch.randn(100_000).bfloat16()
    x[:4] = torch.tensor([math.nan, math.inf, -math.inf, 3.3e38])
    y = bitmask_dropout(x, 0.3, seeded(2))
    expected = (x.float() * torch.tensor(1 / 0.7)).bfloat16()
    kept = (y != 0) | (x == 0)
    assert kept[0:4].any()
    assert torch.equal(y[kept].nan_to_num(7.0), expected[kept].nan_to_num(7.0))
    assert torch.equal(y.isnan()[kept], x.isnan()[kept])
    # Dropped values are zero even if they were not finite.
    y = bitmask_dropout(torch.full((9000,), math.nan), 0.5)
    assert 4000 < (y == 0).sum() < 5000
    assert torch.equal(y.isnan(), y != 0)


@needs_kernels
def test_derivatives_of_higher_order_and_forward():
    x = torch.randn(5000, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, generator=seeded(0))
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    kept = (y != 0).double() / 0.6
    torch.testing.assert_close(second, 6 * x.detach() * kept.pow(3))
    with forward_ad.dual_level():
        tangent = torch.randn_like(x)
        y = dropout(forward_ad.make_dual(x, tangent), 0.4, generator=seeded(0))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, tangent * kept)


def test_the_transforms_of_torch_func():
    x = torch.randn(6, 5000)
    grad = torch.func.grad(lambda one: dropout(one, 0.4).sum())(x)
    assert set(grad.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    drop = torch.func.vmap(lambda one: dropout(one, 0.4) == 0, randomness="different")
    assert not torch.equal(*drop(x)[:2])
    same = torch.func.vmap(lambda one: dropout(one, 0.4) == 0, randomness="same")(x)
    assert torch.equal(same, same[:1].expand_as(same))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda one: dropout(one, 0.4))(x)


def test_recomputed_at_a_checkpoint_the_mask_is_the_same():
    x = torch.ones(5000, requires_grad=True)
    y = checkpoint(dropout, x, 0.5, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@needs_kernels
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_of_the_masked_norm(affine):
    norm = MaskedBatchNorm(3, dims=2, affine=affine).double()
    x = torch.randn(4, 3, 2, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [0] * 7, [0, 1, 0, 1, 1, 0, 1]]).bool()
    assert maskednorm.one_pass(norm, x)
    weights = tuple(torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names = ("weight", "bias")

    def of(x, *weights):
        return torch.func.functional_call(norm, dict(zip(names, weights, strict=False)), (x, mask))

    inputs = (x, *weights) if affine else (x,)
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


def test_small_inputs_use_torch(monkeypatch):
    monkeypatch.setattr(cpudropout, "usable", lambda *_: pytest.fail("a kernel was asked for"))
    assert nn.Sequential(Dropout(0.5))(torch.ones(8, 8)).shape == (8, 8)
