import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regain import (
    VariationalConv2d,
    VariationalDropout,
    VariationalLinear,
    log_uniform_kl,
    mc_predict,
    parameter_groups,
    variational_dropout,
)

by_example = settings(deadline=None, derandomize=True, max_examples=50)

MAKE = {
    "units": lambda **more: VariationalDropout(4, 0.3, **more),
    "linear": lambda **more: VariationalLinear(4, 3, log_sigma2=-2.0, **more),
    "convolution": lambda **more: VariationalConv2d(4, 3, 3, padding=1, log_sigma2=-2.0, **more),
}
INPUTS = {"units": (6, 4, 5), "linear": (6, 5, 4), "convolution": (6, 4, 5, 5)}
of_each = pytest.mark.parametrize("name", MAKE)
of_weights = pytest.mark.parametrize("name", ["linear", "convolution"])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def integral(log_alpha):
    """The KL divergence by quadrature, shifted to be zero at alpha = infinity."""
    std = math.exp(log_alpha / 2)

    def integrand(z):
        return math.log(abs(1 + std * z)) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    # The logarithm has its pole at -1 / std.
    pole = max(-1 / std, -15)
    mean = sum(integrate.quad(integrand, *ends, limit=200)[0] for ends in ((-15, pole), (pole, 15)))
    return mean - log_alpha / 2 + (np.euler_gamma + math.log(2)) / 2


@pytest.mark.parametrize(
    "log_alpha", [-10.0, -6.0, -4.0, -3.5, -2.0, -1.0, 0.0, 1.0, 3.0, 6.0, 10.0]
)
def test_the_divergence_is_its_integral_to_the_published_accuracy(log_alpha):
    found = log_uniform_kl(torch.tensor(log_alpha, dtype=torch.float64)).item()
    assert found == pytest.approx(integral(log_alpha), abs=0.0095)


def test_the_divergence_falls_to_zero_and_has_its_gradient():
    values = torch.linspace(-200, 200, 4001, dtype=torch.float64, requires_grad=True)
    found = log_uniform_kl(values)
    assert (found.diff() <= 0).all()
    assert found[0].item() == pytest.approx(100.63576)
    assert 0 <= found[-1].item() < 1e-12
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope.isfinite().all()
    near = values.detach()[1900:2100].requires_grad_()
    assert torch.autograd.gradcheck(log_uniform_kl, (near,))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_noise_of_units_has_mean_one_and_variance_alpha(shared, own):
    layer = VariationalDropout(3, 0.2, shared, seeded(1) if own else None)
    if not shared:
        with torch.no_grad():
            layer.log_alpha.copy_(torch.tensor([0.1, 0.5, 2.0]).log())
    alpha = layer.log_alpha.exp().detach().double().expand(3)
    y = layer(torch.full((2000, 3, 200), -3.0)).detach().double() / -3
    count = 2000 * 200
    for unit in range(3):
        noise, variance = y[:, unit], alpha[unit].item()
        assert abs(noise.mean().item() - 1) <= 4 * math.sqrt(variance / count)
        # The fourth moment of a normal variable is three times its squared variance.
        error = 4 * variance * math.sqrt(2 / count)
        assert abs((noise - 1).square().mean().item() - variance) <= error
        assert error < 0.01 * variance


def test_noise_of_units_is_drawn_for_each_example_feature_and_position(assert_independent):
    high = VariationalDropout(50, 0.5)(torch.ones(50, 50, 50)) > 1
    for dim in range(3):
        assert_independent(high, dim)


def test_gradients_of_units_and_of_their_rates():
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    log_alpha = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def drop(x, log_alpha):
        return variational_dropout(x, log_alpha, generator=seeded(5))

    assert torch.autograd.gradcheck(drop, (x, log_alpha))
    assert torch.autograd.gradcheck(drop, (x, log_alpha.detach()[:1].requires_grad_()))


def moments(layer, x, passes=20_000):
    """Mean and variance of many passes, and their standard errors."""
    with torch.no_grad():
        y = layer(x.expand(passes, *x.shape[1:])).double()
    variance = y.var(0)
    return y.mean(0), variance, variance.sqrt() / passes**0.5, variance * (2 / passes) ** 0.5


@of_weights
@pytest.mark.parametrize("own", [False, True])
def test_outputs_have_the_mean_and_variance_of_noisy_weights(name, own):
    torch.manual_seed(0)
    layer = MAKE[name](generator=seeded(1) if own else None)
    with torch.no_grad():
        layer.log_sigma2.add_(torch.randn_like(layer.log_sigma2))
    x = torch.randn(1, *INPUTS[name][2:] if name == "linear" else INPUTS[name][1:])
    mean, variance, off, off_variance = moments(layer, x)
    plain = F.linear if name == "linear" else lambda *given: F.conv2d(*given, padding=1)
    wanted = plain(x, layer.weight, layer.bias)[0].detach().double()
    alpha = layer.log_alpha.exp().detach()
    noise = plain(x.square(), alpha * layer.weight.square().detach(), None)[0].double()
    assert ((mean - wanted).abs() <= 4.5 * off).all()
    assert ((variance - noise).abs() <= 4.5 * off_variance).all()


@of_weights
def test_gradients_of_weights_and_of_their_variances(name):
    torch.manual_seed(0)
    layer = MAKE[name]().double()
    x = torch.randn(INPUTS[name], dtype=torch.float64)[:2].requires_grad_()

    def drawn(x, weight, bias, log_sigma2):
        layer.generator = seeded(3)
        values = {"weight": weight, "bias": bias, "log_sigma2": log_sigma2}
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(drawn, (x, layer.weight, layer.bias, layer.log_sigma2))


@of_weights
def test_an_input_of_zeros_has_no_noise_and_finite_gradients(name):
    layer = MAKE[name]()
    y = layer(torch.zeros(INPUTS[name], requires_grad=True))
    torch.testing.assert_close(y, layer.eval()(torch.zeros(INPUTS[name])), atol=1e-5, rtol=0)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@of_weights
def test_evaluation_drops_the_weights_that_are_mostly_noise(name):
    layer = MAKE[name](threshold=1.0)
    weight = layer.weight
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
        # Log alpha is far below or far above the threshold.
        lost = torch.rand_like(weight) < 0.4
        layer.log_sigma2.copy_(weight.square().log() + torch.where(lost, 2.0, -1.0))
    assert layer.sparsity() == pytest.approx(lost.double().mean().item())
    assert 0 < layer.sparsity() < 1
    x = torch.randn(INPUTS[name])
    plain = F.linear if name == "linear" else lambda *given: F.conv2d(*given, padding=1)
    expected = plain(x, weight.masked_fill(lost, 0), layer.bias)
    layer.eval()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), layer(x))


@of_each
def test_evaluation_draws_nothing(name):
    layer, x = MAKE[name]().eval(), torch.randn(INPUTS[name])
    state = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), state)
    if name == "units":
        assert layer(x) is x


@of_each
def test_the_draw_follows_the_seed(name):
    x = torch.randn(INPUTS[name])
    layer = MAKE[name](generator=seeded(3))
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.generator.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(layer(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    twin = copy.deepcopy(layer)
    expected = twin(x)
    assert torch.equal(layer(x), expected)
    layer.generator = None
    torch.manual_seed(7)
    one = layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), one)


@by_example
@given(p=st.floats(0.001, 0.99), features=st.integers(1, 20), shared=st.booleans())
def test_units_start_at_the_rate_and_are_penalized_per_feature(p, features, shared):
    layer = VariationalDropout(features, p, shared)
    assert layer.p.item() == pytest.approx(p, rel=1e-4)
    one = log_uniform_kl(torch.tensor(math.log(p / (1 - p)))).item()
    assert layer.penalty().item() == pytest.approx(features * one, rel=1e-4)
    assert layer.log_alpha.shape == ((1,) if shared else (features,))


@of_weights
def test_each_weight_is_penalized(name):
    layer = MAKE[name]()
    alpha = layer.log_sigma2.detach().exp() / layer.weight.detach().square()
    expected = log_uniform_kl(alpha.log()).sum().item()
    assert layer.penalty().item() == pytest.approx(expected, rel=1e-3)
    layer.penalty().backward()
    assert layer.log_sigma2.grad.isfinite().all()
    assert (layer.log_sigma2.grad < 0).all()
    assert layer.weight.grad.abs().sum() > 0


def test_rates_fall_where_noise_costs_and_rise_where_it_costs_nothing():
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    # The third unit is useless.
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    layer = VariationalDropout(3, 0.3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x) @ weight, x @ weight) + layer.penalty() / len(x)
        loss.backward()
        optimizer.step()
    alpha = layer.log_alpha.exp().tolist()
    start = 0.3 / 0.7
    assert max(alpha[:2]) < 0.3 * start
    assert alpha[2] > 3 * start


def test_useless_weights_are_dropped_and_the_others_are_kept():
    torch.manual_seed(0)
    x = torch.randn(600, 20)
    y = x[:, :2] @ torch.tensor([[1.0], [-1.0]])
    layer = VariationalLinear(20, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 600)
    for step in range(600):
        optimizer.zero_grad()
        # Likelihood with noise of 0.5; the weight of the penalty grows to 1.
        loss = F.mse_loss(layer(x), y) / (2 * 0.5**2)
        loss = loss + min(1.0, step / 200) * layer.penalty() / len(x)
        loss.backward()
        optimizer.step()
        decay.step()
    assert layer.kept[0, :2].all()
    assert layer.sparsity() >= 0.8
    assert F.mse_loss(layer.eval()(x), y) < 0.01


@of_each
@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_extreme_rates_stay_finite(name, value):
    layer = MAKE[name]()
    if name != "units":
        value = min(value, 30.0)
    parameter = layer.log_alpha if name == "units" else layer.log_sigma2
    with torch.no_grad():
        parameter.fill_(value)
    y = layer(torch.randn(INPUTS[name]))
    (y.square().mean() + layer.penalty()).backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_type_of_the_plain_layer(name, dtype):
    plain = {"units": nn.Identity(), "linear": nn.Linear(4, 3), "convolution": nn.Conv2d(4, 3, 3)}
    layer = MAKE[name]()
    # The squares overflow in half precision.
    x = torch.full(INPUTS[name], 300.0)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == plain[name](x).dtype
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@of_weights
def test_half_precision_stays_finite(name):
    layer = MAKE[name](dtype=torch.float16)
    y = layer(torch.full(INPUTS[name], 300.0, dtype=torch.float16))
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    assert not torch.equal(y, y.mean().expand_as(y))


@of_each
def test_every_parameter_has_a_gradient_of_each_output(name):
    # DistributedDataParallel waits for the gradients of all parameters.
    layer = MAKE[name]()
    layer(torch.randn(INPUTS[name])).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


@of_each
def test_it_compiles_into_one_graph(name):
    torch._dynamo.reset()
    layer, x = MAKE[name](), torch.randn(INPUTS[name], requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert y.shape == layer(x).shape
    assert not torch.equal(y, compiled(x))
    (y.sum() + layer.penalty()).backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.eval()
    torch.testing.assert_close(compiled(x), layer(x))


@of_each
def test_it_knows_its_shape_on_the_meta_device_and_comes_back(name):
    with torch.device("meta"):
        layer = MAKE[name]()
    assert all(p.is_meta for p in layer.parameters())
    y = layer(torch.randn(INPUTS[name], device="meta"))
    assert layer.penalty().is_meta
    assert repr(layer) == repr(MAKE[name]())
    real = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    real.reset_parameters()
    torch.manual_seed(0)
    fresh = MAKE[name]()
    for one, other in zip(real.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)
    assert real(torch.randn(INPUTS[name])).shape == y.shape


@of_each
def test_a_checkpointed_layer_has_the_same_gradients(name):
    x = torch.randn(INPUTS[name], requires_grad=True)
    grads = []
    for call in (lambda layer, x: layer(x), lambda *g: checkpoint(*g, use_reentrant=False)):
        torch.manual_seed(0)
        layer = MAKE[name]()
        call(layer, x).square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@of_each
def test_jacobians_may_be_batched(name):
    layer, x = MAKE[name](), torch.randn(INPUTS[name], requires_grad=True)
    y = layer(x).flatten()[:4]
    (together,) = torch.autograd.grad(y, x, torch.eye(4), True, is_grads_batched=True)
    for row, one in enumerate(together):
        (alone,) = torch.autograd.grad(y[row], x, retain_graph=True)
        torch.testing.assert_close(one, alone)


@of_weights
def test_the_state_dict_of_a_plain_layer_loads(name):
    plain = nn.Linear(4, 3) if name == "linear" else nn.Conv2d(4, 3, 3, padding=1)
    layer = MAKE[name]()
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["log_sigma2"], [])
    x = torch.randn(INPUTS[name])
    with torch.no_grad():
        layer.log_sigma2.fill_(-60.0)
    torch.testing.assert_close(layer.eval()(x), plain(x))
    torch.manual_seed(0)
    fresh = MAKE[name]()
    torch.manual_seed(0)
    again = type(plain)(*((4, 3) if name == "linear" else (4, 3, 3)))
    assert torch.equal(fresh.weight, again.weight)


@of_each
def test_state_dict_holds_what_is_learned(name):
    layer, other = MAKE[name](), MAKE[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.p, layer.p)
    assert other.penalty() == layer.penalty()


def test_weight_decay_is_for_the_weights_alone():
    model = nn.Sequential(
        VariationalLinear(4, 3), VariationalDropout(3), VariationalConv2d(3, 2, 1)
    )
    decayed, kept = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed] == ["0.weight", "2.weight"]
    assert len(kept) == 5


def test_predictions_with_noise_estimate_their_uncertainty():
    for model in (
        nn.Sequential(VariationalDropout(4, 0.5), nn.Linear(4, 3)),
        nn.Sequential(VariationalLinear(4, 3, log_sigma2=0.0)),
    ):
        assert mc_predict(model, torch.randn(5, 4)).mutual_information.min() > 1e-3


@pytest.mark.parametrize("p", [0.0, 1, -0.1, math.nan, "0.5", True, None])
def test_a_wrong_rate_is_refused(p):
    with pytest.raises(ValueError, match=rf"^p .*{p!r}"):
        VariationalDropout(4, p)


@pytest.mark.parametrize("features", [0, -1, 2.0, "4", True, None])
def test_wrong_features_are_refused(features):
    with pytest.raises(ValueError, match=f"features is a whole number .*not {features!r}"):
        VariationalDropout(features)


@pytest.mark.parametrize("name", ["threshold", "log_sigma2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "3", True, None])
def test_wrong_numbers_are_refused(name, value):
    for make in (lambda **more: VariationalLinear(4, 3, **more), MAKE["convolution"]):
        options = {"log_sigma2": -1.0} if make is MAKE["convolution"] else {}
        if name in options:
            continue
        with pytest.raises(ValueError, match=f"{name} is a finite number, not {value!r}"):
            make(**{name: value})


@pytest.mark.parametrize("shape", [(4,), (3, 5), (3, 5, 4)])
def test_an_input_of_other_features_is_refused(shape):
    with pytest.raises(ValueError, match="variational dropout of 4 features needs"):
        VariationalDropout(4)(torch.ones(shape))


def test_it_shows_its_arguments():
    assert repr(VariationalDropout(4, 0.25)) == (
        "VariationalDropout(features=4, initial p=0.25, shared=False)"
    )
    assert repr(VariationalLinear(4, 3)) == (
        "VariationalLinear(in_features=4, out_features=3, bias=True, threshold=3.0)"
    )
