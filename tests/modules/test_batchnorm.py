import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regain import (
    MaskedBatchNorm,
    MaskedIdentity,
    SubSpectralBatchNorm,
    batch_norm,
    mask_steps,
)

INNER = {1: (), 2: (3,), 3: (2, 3)}  # Dimensions between the channels and time.
every_dims = pytest.mark.parametrize("dims", [1, 2, 3])
# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")


def randomize(norm):
    """Set parameters and buffers to values that no mistake produces by chance."""
    for value in (norm.weight, norm.running_var):
        nn.init.uniform_(value, 0.5, 2.0)
    for value in (norm.bias, norm.running_mean):
        nn.init.normal_(value)


def assert_same(actual, expected):
    # The memory layouts differ, and so the order of summation: equal up to rounding.
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def laid_end_to_end(x, mask):
    """The valid steps of all sequences, concatenated: (valid elements, channels)."""
    channels = x.shape[1]
    return torch.cat(
        [
            sequence[..., step].reshape(channels, -1).T
            for sequence, valid in zip(x, mask, strict=True)
            for step in valid.nonzero().flatten().tolist()
        ]
    )


def masks(draw):
    batch, time = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    if draw(st.booleans()):
        # Padding at the end, the usual case; a sequence may be empty.
        lengths = draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
        mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    else:
        rows = st.lists(st.booleans(), min_size=time, max_size=time)
        mask = torch.tensor(draw(st.lists(rows, min_size=batch, max_size=batch)))
    mask[0, :2] = True  # Batch norm needs two elements.
    return mask


@every_dims
@settings(deadline=None, derandomize=True, max_examples=40)
@given(mask=st.composite(masks)(), seed=st.integers(0, 2**31))
def test_masked_equals_batch_norm_of_the_valid_steps(dims, mask, seed):
    torch.manual_seed(seed)
    batch, time = mask.shape
    plain = nn.BatchNorm1d(3, momentum=0.3, eps=1e-3).double()
    randomize(plain)
    masked = MaskedBatchNorm(3, dims, momentum=0.3, eps=1e-3).double()
    masked.load_state_dict(plain.state_dict())
    # The second batch tests the running statistics after the first.
    for _ in range(2):
        x = torch.randn(batch, 3, *INNER[dims], time, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn_like(x)
        out = masked(x, mask)
        assert out.shape == x.shape
        out.backward(upstream)

        steps = laid_end_to_end(x.detach(), mask).requires_grad_()
        expected = plain(steps)
        expected.backward(laid_end_to_end(upstream, mask))

        assert_same(laid_end_to_end(out, mask), expected)
        assert_same(laid_end_to_end(x.grad, mask), steps.grad)
        for name in ("weight", "bias"):
            assert_same(getattr(masked, name).grad, getattr(plain, name).grad)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert_same(getattr(masked, name), getattr(plain, name))
        padded = ~mask.view(batch, *(1,) * (x.dim() - 2), time).expand_as(x)
        assert (out[padded] == 0).all()
        assert (x.grad[padded] == 0).all()

    masked.eval(), plain.eval()
    x = torch.randn(batch, 3, *INNER[dims], time, dtype=torch.float64)
    out = masked(x, mask)
    assert_same(laid_end_to_end(out, mask), plain(laid_end_to_end(x, mask)))
    assert (out[padded] == 0).all()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert_same(getattr(masked, name), getattr(plain, name))


@every_dims
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [1e30, math.nan, math.inf])
def test_padding_content_has_no_influence(dims, training, padding):
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    padded = ~mask.view(3, *(1,) * dims, 5)
    x = torch.randn(3, 4, *INNER[dims], 5)
    clean, dirty = (MaskedBatchNorm(4, dims).train(training) for _ in range(2))
    expected = clean(x.masked_fill(padded, 0.0), mask)
    actual = dirty(x.masked_fill(padded, padding), mask)
    assert torch.equal(actual, expected)
    assert torch.equal(dirty.running_mean, clean.running_mean)
    assert torch.equal(dirty.running_var, clean.running_var)


@every_dims
@pytest.mark.parametrize("training", [True, False])
def test_no_mask_is_plain_batch_norm(dims, training):
    plain = batch_norm(4, dims)
    randomize(plain)
    masked = MaskedBatchNorm(4, dims)
    masked.load_state_dict(plain.state_dict())
    plain.train(training), masked.train(training)
    x = torch.randn(3, 4, *INNER[dims], 5)
    assert torch.equal(masked(x), plain(x))
    assert torch.equal(masked.running_mean, plain.running_mean)
    assert torch.equal(masked.running_var, plain.running_var)


@pytest.mark.parametrize("frequencies", [6, 12])
@pytest.mark.parametrize("bands", [1, 2, 3])
def test_sub_spectral_is_a_batch_norm_of_each_band(frequencies, bands):
    layer = SubSpectralBatchNorm(4, bands, momentum=0.3, eps=1e-3).double()
    randomize(layer.norm)
    separate = [nn.BatchNorm2d(4, momentum=0.3, eps=1e-3).double() for _ in range(bands)]
    for band, norm in enumerate(separate):
        # Each channel and band separately.
        for name, value in layer.norm.state_dict().items():
            part = value.view(4, bands)[:, band] if value.dim() else value
            norm.state_dict()[name].copy_(part)
    for training in (True, False):
        layer.train(training)
        x = torch.randn(5, 4, frequencies, 7, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn_like(x)
        out = layer(x)
        parts = [
            norm.train(training)(part)
            for norm, part in zip(separate, x.chunk(bands, dim=2), strict=True)
        ]
        expected = torch.cat(parts, dim=2)
        assert_same(out, expected)
        gradients = (torch.autograd.grad(y, x, upstream)[0] for y in (out, expected))
        assert_same(*gradients)
    for name in ("running_mean", "running_var"):
        each = torch.stack([getattr(norm, name) for norm in separate], dim=1)
        assert_same(getattr(layer.norm, name).view(4, bands), each)


def test_sub_spectral_statistics_exclude_padding():
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    layer = SubSpectralBatchNorm(4, bands=2)
    separate = [MaskedBatchNorm(4, dims=2) for _ in range(2)]
    x = torch.randn(3, 4, 8, 6)
    parts = [norm(part, mask) for norm, part in zip(separate, x.chunk(2, dim=2), strict=True)]
    torch.testing.assert_close(layer(x, mask), torch.cat(parts, dim=2))


@pytest.mark.parametrize(("frequencies", "bands"), [(40, 3), (4, 5)])
def test_sub_spectral_refuses_bands_that_do_not_divide(frequencies, bands):
    message = f"{frequencies} frequencies do not divide into {bands} bands"
    with pytest.raises(ValueError, match=message):
        SubSpectralBatchNorm(2, bands)(torch.randn(2, 2, frequencies, 3))


@pytest.mark.parametrize(
    ("dims", "kind"),
    [(0, nn.BatchNorm1d), (1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)],
)
def test_batch_norm_fits_the_dimensions(dims, kind):
    norm = batch_norm(4, dims, momentum=0.3, eps=1e-3)
    assert type(norm) is kind
    assert (norm.num_features, norm.momentum, norm.eps) == (4, 0.3, 1e-3)
    assert norm(torch.randn(3, 4, *(2,) * dims)).shape == (3, 4, *(2,) * dims)


@pytest.mark.parametrize("dims", [-1, 4, 1.5, "2", None])
@pytest.mark.parametrize("make", [batch_norm, MaskedBatchNorm])
def test_wrong_dims_is_refused_by_value(make, dims):
    with pytest.raises(ValueError, match="dims is one of 0, 1, 2 and 3") as refusal:
        make(4, dims)
    assert str(refusal.value).endswith(f"not {dims!r}")


@every_dims
@pytest.mark.parametrize("padding", [3.0, math.nan, math.inf])
@pytest.mark.parametrize("masked", [mask_steps, MaskedIdentity()])
def test_masking_zeroes_the_padding_and_nothing_else(masked, dims, padding):
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    padded = ~mask.view(3, *(1,) * dims, 5)
    x = torch.randn(3, 4, *INNER[dims], 5, dtype=torch.float64)
    out = masked(x.masked_fill(padded, padding), mask)
    assert torch.equal(out, x.masked_fill(padded, 0.0))
    assert out.dtype == x.dtype
    assert torch.equal(masked(x, None), x)
