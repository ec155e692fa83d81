"""Masks of valid steps in every layer, and input checks of masked norms."""

import math

import pytest
import torch
from torch import nn
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrize

from regain import (
    ChannelNorm,
    MaskedBatchNorm,
    MaskedGroupNorm,
    MaskedIdentity,
    kernels,
    mask_steps,
)
from regain.masks import valid_steps

# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")

LAYERS = [
    MaskedBatchNorm,
    lambda features: MaskedBatchNorm(features, kind="renorm"),
    MaskedGroupNorm,
    ChannelNorm,
    lambda _: MaskedIdentity(),
]
every_layer = pytest.mark.parametrize(
    "make", LAYERS, ids=["batch", "renorm", "group", "channel", "identity"]
)
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()


def noise(*shape, seed=0, mean=2.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean


def outcome(make, x, mask):
    """Output and state of a new layer."""
    layer = make(x.shape[1])
    return [layer(x, mask), *layer.buffers()]


def assert_equal(one, other):
    assert len(one) == len(other)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@every_layer
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_mask_of_numbers_is_that_of_booleans(make, dtype):
    x = noise(4, 3, 6)
    assert_equal(outcome(make, x, MASK.to(dtype)), outcome(make, x, MASK))


@every_layer
@pytest.mark.parametrize("mask", [MASK[1:2], MASK[:, :1] | ~MASK[:, 1:2], MASK[:1, :1]])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_mask_with_a_dimension_of_one_is_broadcast(make, mask, dtype):
    x = noise(4, 3, 6)
    whole = mask.expand(4, 6).clone()
    assert_equal(outcome(make, x, mask.to(dtype)), outcome(make, x, whole))


@every_layer
@pytest.mark.parametrize("shape", [(6,), (4,), (4, 3), (2, 6), (4, 12), (4, 3, 6), (4, 1, 6), ()])
def test_a_mask_of_another_shape_is_refused(make, shape):
    with pytest.raises(ValueError, match=r"a mask has the shape \(batch, time\)") as refusal:
        make(3)(noise(4, 3, 6), torch.ones(shape, dtype=torch.bool))
    assert str(refusal.value).endswith(f"not {shape}")


@every_layer
@pytest.mark.parametrize("value", [0.5, -math.inf, -1e4, 2.0, math.nan])
def test_a_mask_of_other_values_is_refused(make, value):
    mask = MASK.float().masked_fill(~MASK, value)
    with pytest.raises(
        ValueError, match="a mask holds 1 at valid steps and 0 at others"
    ) as refusal:
        make(3)(noise(4, 3, 6), mask)
    assert str(refusal.value).endswith(f"not {value!r}")


@every_layer
def test_a_mask_on_another_device_or_of_another_class_is_refused(make):
    with pytest.raises(ValueError, match="the mask is on meta, the input on cpu"):
        make(3)(noise(4, 3, 6), MASK.to("meta"))
    with pytest.raises(ValueError, match="a mask is a tensor"):
        make(3)(noise(4, 3, 6), MASK.tolist())


def test_a_broadcast_mask_does_not_corrupt_memory():
    x = torch.randn(512, 2, 2048)
    y = MaskedBatchNorm(2)(x, torch.ones(1, 2048, dtype=torch.bool))
    torch.testing.assert_close(y, nn.BatchNorm1d(2)(x), rtol=1e-4, atol=1e-4)


def test_a_mask_may_have_any_memory_layout():
    x, wide = noise(4, 3, 6), torch.zeros(6, 8, dtype=torch.bool)
    wide[:, ::2] = MASK.T
    assert_equal(outcome(MaskedBatchNorm, x, wide[:, ::2].T), outcome(MaskedBatchNorm, x, MASK))
    # Bytes that are neither 0 nor 1.
    odd = (MASK.to(torch.uint8) * 255).view(torch.bool)
    assert_equal(outcome(MaskedBatchNorm, x, odd), outcome(MaskedBatchNorm, x, MASK))


def test_vectors_are_masked_one_by_one():
    x, mask = noise(6, 3), torch.tensor([1, 0, 1, 1, 0, 1]).view(6, 1)
    norm, plain = MaskedBatchNorm(3, dims=0), nn.BatchNorm1d(3)
    y, valid = norm(x, mask), mask.view(-1).bool()
    torch.testing.assert_close(y[valid], plain(x[valid]))
    assert not y[~valid].any()
    torch.testing.assert_close(norm.running_var, plain.running_var)
    y = MaskedGroupNorm(4, 2)(noise(6, 4), mask)
    torch.testing.assert_close(y[valid], nn.GroupNorm(2, 4)(noise(6, 4))[valid])


def test_masking_keeps_types():
    for dtype in (torch.int64, torch.bfloat16, torch.float64):
        x = torch.ones(4, 3, 6, dtype=dtype)
        assert mask_steps(x, MASK).dtype == dtype
    assert valid_steps(MASK, x) is MASK


# What batch norm checks


@pytest.mark.parametrize("features", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"kind": "sync"}])
def test_a_wrong_number_of_features_is_refused(features, options):
    norm = MaskedBatchNorm(features, **options)
    before = [value.clone() for value in norm.state_dict().values()]
    with pytest.raises((ValueError, RuntimeError), match=f"{features}.* 3|3.* {features}"):
        norm(noise(4, 3, 6), MASK)
    assert_equal(before, list(norm.state_dict().values()))


@pytest.mark.parametrize("kind", ["batch", "renorm", "sync", "frozen"])
@pytest.mark.parametrize(("dims", "shape"), [(2, (4, 3, 6)), (1, (4, 3, 5, 6)), (3, (4, 3, 5, 6))])
def test_wrong_dimensions_are_refused(kind, dims, shape):
    norm = MaskedBatchNorm(3, dims, kind)
    with pytest.raises(ValueError, match="expected"):
        norm(noise(*shape), MASK)


def test_statistics_that_are_not_tracked_do_not_move():
    norm, x = MaskedBatchNorm(3), noise(4, 3, 6)
    norm.track_running_stats = False
    expected = MaskedBatchNorm(3)(x, MASK)
    torch.testing.assert_close(norm(x, MASK), expected)
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0


def test_without_running_statistics_evaluation_excludes_padding_too():
    norm, x = MaskedBatchNorm(3, track_running_stats=False), noise(4, 3, 6)
    expected = norm(x, MASK)
    far = torch.where(MASK.unsqueeze(1), x, 1e6)
    torch.testing.assert_close(norm.eval()(far, MASK), expected)


def listen_forward(norm, heard):
    return norm.register_forward_hook(lambda *_: heard.append(1))


def listen_before(norm, heard):
    return norm.register_forward_pre_hook(lambda *_: heard.append(1))


def listen_backward(norm, heard):
    return norm.register_full_backward_hook(lambda *_: heard.append(1))


def listen_before_backward(norm, heard):
    return norm.register_full_backward_pre_hook(lambda *_: heard.append(1))


def of_all(register):
    """A global forward hook that records one module."""

    def listen(norm, heard):
        return register(lambda module, *_: heard.append(1) if module is norm else None)

    return listen


@pytest.mark.parametrize(
    "listen",
    [
        listen_forward,
        listen_before,
        listen_backward,
        listen_before_backward,
        of_all(all_modules.register_module_forward_hook),
        of_all(all_modules.register_module_forward_pre_hook),
        of_all(all_modules.register_module_full_backward_hook),
        of_all(all_modules.register_module_full_backward_pre_hook),
    ],
)
def test_every_hook_is_called(listen):
    norm, heard = MaskedBatchNorm(3), []
    x = noise(4, 3, 6).requires_grad_()
    expected = MaskedBatchNorm(3)(x, MASK)
    handle = listen(norm, heard)
    try:
        y = norm(x, MASK)
        y.square().sum().backward()
    finally:
        handle.remove()
    assert heard == [1]
    torch.testing.assert_close(y, expected)


def test_a_parametrized_weight_is_used():
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    norm, x = MaskedBatchNorm(3), noise(4, 3, 6)
    expected = 2 * norm(x, MASK)
    parametrize.register_parametrization(norm, "weight", Twice())
    torch.testing.assert_close(norm(x, MASK), expected)


# Values and layouts


def test_statistics_far_from_zero_are_as_exact_as_those_of_torch():
    x = torch.randn(8, 4, 20_000, generator=torch.Generator().manual_seed(0)).add(1000)
    valid = torch.ones(8, 20_000, dtype=torch.bool)
    exact = nn.BatchNorm1d(4).double()(x.double())

    def error(norm, *mask):
        return (norm(x, *mask).double() - exact).abs().max().item()

    assert error(MaskedBatchNorm(4), valid) <= 2 * error(nn.BatchNorm1d(4))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("make", [MaskedBatchNorm, MaskedGroupNorm, ChannelNorm, MaskedIdentity])
def test_the_output_has_the_memory_format_of_the_input(make, dims):
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    layer = {MaskedBatchNorm: lambda: make(4, dims), MaskedIdentity: make}.get(
        make, lambda: make(4)
    )()
    x = noise(4, 4, *(5, 3)[: dims - 1], 6)
    expected = layer(x, MASK)
    last = x.contiguous(memory_format=form).requires_grad_()
    y = layer(last, MASK)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=form)
    assert layer(x, MASK).is_contiguous() or make is ChannelNorm
    y.square().sum().backward()
    plain = x.clone().requires_grad_()
    layer(plain, MASK).square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [MaskedBatchNorm, MaskedGroupNorm, ChannelNorm])
def test_an_empty_batch_comes_back_empty(make):
    layer = make(3)
    before = {name: value.clone() for name, value in layer.named_buffers() if value.dim()}
    for shape in ((0, 3, 6), (4, 3, 0)):
        mask = torch.ones(shape[0], shape[2], dtype=torch.bool)
        assert layer(torch.ones(shape), mask).shape == shape
    assert all(torch.equal(layer.get_buffer(name), value) for name, value in before.items())


def test_padding_may_be_nan_and_has_no_effect_on_derivatives():
    x = noise(4, 3, 6).masked_fill(~MASK.unsqueeze(1), math.nan).requires_grad_()
    y = MaskedBatchNorm(3)(x, MASK)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert y.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.skipif(kernels.compiled_kernels() is None, reason="there is no C compiler here")
def test_the_kernel_and_the_operations_agree(monkeypatch):
    x = noise(4, 3, 2, 6).requires_grad_()
    found = []
    for loaded in (kernels.compiled_kernels(), None):
        monkeypatch.setattr(kernels, "compiled_kernels", lambda loaded=loaded: loaded)
        norm = MaskedBatchNorm(3, dims=2)
        y = norm(x, MASK)
        grads = torch.autograd.grad(y.pow(3).sum(), (x, *norm.parameters()))
        found.append([y, *grads, *norm.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
