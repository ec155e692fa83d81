"""Adaptive gradient clipping: which gradients are clipped, and by how much."""

import copy
import math

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from regain import adaptive_clip_


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.GroupNorm(1, 5), nn.Flatten(), nn.Linear(20, 4), nn.LSTM(4, 3)
    )


def with_gradients(scale, dtype=torch.float32):
    model = network().to(dtype)
    for parameter in model.parameters():
        # From far below to far above the limits.
        size = torch.logspace(-6, 1, parameter.numel(), dtype=torch.float64).view_as(parameter)
        parameter.grad = (torch.randn(parameter.shape).double() * size * scale).to(dtype)
    return model


def units(x):
    return x.flatten(1).norm(dim=1) if x.dim() > 1 else x.norm()[None]


@pytest.mark.parametrize("clip", [0.01, 0.5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_gradients_are_limited_and_keep_their_direction(clip, scale):
    model = with_gradients(scale)
    before = [p.grad.clone() for p in model.parameters()]
    adaptive_clip_(model.parameters(), clip)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        limit = clip * units(parameter).clamp(min=1e-3)
        assert (units(parameter.grad) <= limit * (1 + 1e-5)).all()
        within = units(gradient) <= limit
        shape = (-1, *(1,) * (parameter.dim() - 1)) if parameter.dim() > 1 else (1,)
        torch.testing.assert_close(
            parameter.grad,
            torch.where(
                within.view(shape), gradient, gradient * (limit / units(gradient)).view(shape)
            ),
        )
        if parameter.dim() > 1:
            assert torch.equal(parameter.grad[within], gradient[within])


def test_it_is_the_clipping_of_timm():
    ours, theirs = with_gradients(3.0), with_gradients(3.0)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = one.grad.clone()
    adaptive_clip_(ours.parameters(), 0.02, 1e-2)
    adaptive_clip_grad(theirs.parameters(), 0.02, 1e-2)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_weights_of_zero_can_grow_and_gradients_of_zero_stay():
    weight = nn.Parameter(torch.zeros(2, 4))
    weight.grad = torch.tensor([[2.0] * 4, [0.0] * 4])
    adaptive_clip_(weight, clip=0.1, eps=0.01)
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.tensor([0.001, 0.0]))


def test_a_scale_of_the_weights_is_a_scale_of_the_limit():
    small, large = (nn.Parameter(torch.ones(3, 4) * scale) for scale in (1.0, 10.0))
    for weight in (small, large):
        weight.grad = torch.full((3, 4), 100.0)
        adaptive_clip_([weight])
    torch.testing.assert_close(large.grad, 10 * small.grad)


def test_half_precision_neither_overflows_nor_changes_its_type():
    model = with_gradients(1.0, torch.bfloat16)
    weight = nn.Parameter(torch.full((2, 4), 300.0, dtype=torch.float16))
    weight.grad = torch.full((2, 4), 300.0, dtype=torch.float16)
    adaptive_clip_([*model.parameters(), weight])
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    torch.testing.assert_close(weight.grad, torch.full((2, 4), 3.0, dtype=torch.float16))


def test_parameters_without_a_gradient_are_left_out():
    model = network()
    before = copy.deepcopy(model.state_dict())
    adaptive_clip_(model.parameters())
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["clip", "eps"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_wrong_amount_is_refused_by_value(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*{value!r}"):
        adaptive_clip_([], **{name: value})
    with pytest.raises(ValueError, match=r"clip is more than 0, not 0\.0"):
        adaptive_clip_([], clip=0.0)
