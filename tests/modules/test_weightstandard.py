"""Weight standardization: values, gradients, and suitable layers."""

import copy
import math

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from regain import Regularization, WeightStandardization, parameter_groups, weight_standardization
from regain.weightstandard import RELU_GAIN

LAYERS = {
    "linear": lambda: nn.Linear(12, 5),
    "1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "2d": lambda: nn.Conv2d(3, 6, 3),
    "3d": lambda: nn.Conv3d(2, 4, 3, bias=False),
}
INPUTS = {"linear": (3, 12), "1d": (3, 4, 9), "2d": (3, 3, 7, 7), "3d": (2, 2, 5, 5, 5)}
# A tiny eps, so that mean and variance are exact up to rounding.
EXACT = 1e-15
every_layer = pytest.mark.parametrize("name", LAYERS)


def moments(weight):
    rows = weight.flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


@every_layer
@pytest.mark.parametrize("scaled", [True, False])
def test_the_weights_of_each_unit_have_mean_0_and_variance_1(name, scaled):
    layer = WeightStandardization.of(LAYERS[name]().double(), scaled, eps=EXACT)
    mean, variance = moments(layer.weight)
    fan_in = layer.weight[0].numel()
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    wanted = torch.full_like(variance, 1 / fan_in if scaled else 1.0)
    torch.testing.assert_close(variance, wanted)
    # The layer computes with them.
    x = torch.randn(INPUTS[name], dtype=torch.float64)
    if name == "2d":
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))


@every_layer
def test_scale_and_mean_of_the_learnt_weights_do_not_matter(name):
    layer = LAYERS[name]().double()
    shape = (-1, *(1,) * (layer.weight.dim() - 1))
    scale = torch.linspace(0.5, 30.0, len(layer.weight)).double().view(shape)
    changed = layer.weight * scale + torch.randn(len(layer.weight)).double().view(shape)
    torch.testing.assert_close(
        weight_standardization(changed, eps=EXACT),
        weight_standardization(layer.weight, eps=EXACT),
    )


def test_it_is_the_convolution_of_timm():
    for scaled, peer in ((False, StdConv2d), (True, ScaledStdConv2d)):
        theirs = peer(3, 8, 3, bias=True, eps=1e-12)
        plain = nn.Conv2d(3, 8, 3, padding=1)
        plain.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
        ours = WeightStandardization.of(plain, scaled)
        if scaled:
            with torch.no_grad():
                ours.parametrizations.weight[0].gain.uniform_(0.5, 2.0)
                theirs.gain.copy_(ours.parametrizations.weight[0].gain.view(-1, 1, 1, 1))
        x = torch.randn(2, 3, 6, 6)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
def test_its_gradient_is_that_of_its_output(scaled):
    weight = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(3, dtype=torch.float64, requires_grad=True) if scaled else None
    inputs = (weight, gain) if scaled else (weight,)
    assert torch.autograd.gradcheck(lambda w, g=None: weight_standardization(w, g, scaled), inputs)


def test_the_gradient_has_no_part_along_weights_and_their_mean():
    layer = WeightStandardization.of(nn.Linear(12, 5).double(), eps=EXACT)
    layer(torch.randn(4, 12).double()).square().sum().backward()
    original = layer.parametrizations.weight.original
    assert original.grad.abs().max() > 0.1
    torch.testing.assert_close(original.grad.sum(1), torch.zeros(5).double())
    along = (original.grad * (original - original.mean(1, keepdim=True))).sum(1)
    torch.testing.assert_close(along, torch.zeros(5).double())


def test_weights_that_are_all_equal_stay_finite():
    layer = WeightStandardization.of(nn.Linear(12, 5), scaled=True)
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(0.0)
    y = layer(torch.randn(4, 12))
    y.square().sum().backward()
    assert not layer.weight.any()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


def test_scaled_with_the_gain_of_relu_a_signal_keeps_its_variance():
    torch.manual_seed(0)
    x = torch.randn(2000, 512)
    for _ in range(10):
        layer = WeightStandardization.of(nn.Linear(512, 512), scaled=True, gain=RELU_GAIN)
        nn.init.zeros_(layer.bias)
        x = layer(x.relu() if _ else x)
    assert math.isclose(RELU_GAIN, torch.randn(10**6).relu().std().item() ** -1, rel_tol=5e-3)
    assert 0.7 * RELU_GAIN**2 < x.var() < 1.4 * RELU_GAIN**2
    # The activations of each unit stay around zero.
    assert x.mean().abs() < 0.1


def test_copy_type_device_and_state_dict_go_with_it():
    layer = WeightStandardization.of(nn.Conv2d(3, 6, 3, dtype=torch.float64), scaled=True)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    other = WeightStandardization.of(nn.Conv2d(3, 6, 3).double(), scaled=True)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, 3, 5, 5).double()
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    # The parametrization of a trained layer can be removed.
    y = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d
    torch.testing.assert_close(layer(x), y)
    assert WeightStandardization.of(nn.Linear(4, 3, device="meta")).weight.is_meta


def test_compiled_it_does_the_same():
    torch._dynamo.reset()
    layer = WeightStandardization.of(nn.Linear(12, 5), scaled=True)
    x = torch.randn(4, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


def test_decay_is_for_the_weights_and_not_for_the_gain():
    layer = WeightStandardization.of(nn.Linear(12, 5), scaled=True)
    decayed, kept = (group["params"] for group in parameter_groups(layer, 0.1))
    assert [tuple(p.shape) for p in decayed] == [(5, 12)]
    assert [tuple(p.shape) for p in kept] == [(5,), (5,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightStandardization(0), "units is more than 0, not 0"),
        (lambda: WeightStandardization(2.5), "units is .* 2.5"),
        (lambda: WeightStandardization(4, eps=0.0), "eps is more than 0, not 0.0"),
        (lambda: WeightStandardization(4, scaled=True, gain=-1.0), "gain is .* -1.0"),
        (lambda: WeightStandardization(4, gain=2.0), "gain=2.0 requires scaled=True"),
        (lambda: WeightStandardization.of(nn.ConvTranspose2d(3, 4, 3)), "not of ConvTranspose2d"),
        (lambda: WeightStandardization.of(nn.LSTM(3, 4)), "not of LSTM"),
        (lambda: WeightStandardization.of(nn.Conv2d(4, 4, 1, groups=4)), "a single weight"),
    ],
)
def test_what_cannot_be_is_refused_by_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_regularization_standardizes_layers_before_a_norm():
    reg = Regularization(normalization="group", weight_standardization=True)
    layer = reg.prepare_layer(nn.Conv2d(3, 6, 3))
    assert parametrize.is_parametrized(layer, "weight")
    assert layer.bias is not None
    assert repr(layer.parametrizations.weight[0]) == "WeightStandardization(scaled=True, eps=1e-06)"
    plain = Regularization().standardized(nn.Linear(3, 4))
    assert not parametrize.is_parametrized(plain)
    batch = Regularization(normalization="batch", weight_standardization=True)
    assert batch.prepare_layer(nn.Linear(3, 4)).bias is None
    with pytest.raises(ValueError, match=r"weight_drop=0.5 and weight_standardization=True"):
        Regularization(weight_drop=0.5, weight_standardization=True)
    with pytest.raises(ValueError, match="weight_standardization is true or false, not 1"):
        Regularization(weight_standardization=1)
