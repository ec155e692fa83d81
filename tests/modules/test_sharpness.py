"""Sharpness-aware minimization."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regain import (
    BatchRenorm,
    ConcreteDropout,
    DropBlock,
    Dropout,
    DropPath,
    GaussianDropout,
    KWinners,
    LayerDrop,
    MaskedBatchNorm,
    SharpnessAware,
    VariationalDropout,
    WeightDrop,
    recomputed,
    sam_perturbation,
)


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


class Point(nn.Module):
    """A module of weights only, for a loss that is a function of them."""

    def __init__(self, *values):
        super().__init__()
        self.w = nn.Parameter(of(*values))


def gradient(model, loss, **options):
    """The gradient of one step, and the number of calls of the loss."""
    sam = SharpnessAware(model, **options)
    model.zero_grad()
    sam.climb(loss).backward()
    sam.restore()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_quadratic_has_the_gradient_that_is_computed_by_hand(adaptive):
    # L = (a w1^2 + b w2^2) / 2 with the gradient (a w1, b w2).
    a, point = of(4.0, 1.0), Point(1.0, -3.0)
    g = a * point.w.detach()  # (4, -3)
    if adaptive:
        # T = |w| + eta = (1.5, 3.5): T g = (6, -10.5), T^2 g = (9, -36.75).
        moved = point.w.detach() + 0.2 * of(9.0, -36.75) / (36 + 110.25) ** 0.5
    else:
        moved = point.w.detach() + 0.2 * g / 5.0
    options = {"rho": 0.2, "adaptive": adaptive, "eta": 0.5}
    (found,) = gradient(point, lambda: (a * point.w.square()).sum() / 2, **options)
    torch.testing.assert_close(found, a * moved, rtol=1e-12, atol=0)
    assert torch.equal(point.w, of(1.0, -3.0))


def test_the_perturbation_has_its_length_over_all_weights():
    weights = [torch.randn(3, 4), torch.randn(5)]
    gradients = [torch.randn(3, 4), torch.randn(5)]
    steps = sam_perturbation(weights, gradients, rho=0.3)
    whole, along = (torch.cat([x.flatten() for x in part]) for part in (steps, gradients))
    assert whole.norm() == pytest.approx(0.3)
    torch.testing.assert_close(whole / whole.norm(), along / along.norm())
    steps = sam_perturbation(weights, gradients, rho=0.3, adaptive=True, eta=0.1)
    relative = [step / (w.abs() + 0.1) for step, w in zip(steps, weights, strict=True)]
    assert torch.cat([x.flatten() for x in relative]).norm() == pytest.approx(0.3)


def test_no_gradient_is_no_perturbation():
    for rho in (0.05, 1e30):
        (step,) = sam_perturbation([torch.ones(2)], [torch.zeros(2)], rho=rho)
        assert torch.equal(step, torch.zeros(2))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def example():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(8) % 3


def test_at_distance_zero_it_is_the_gradient_itself():
    model, (x, labels) = network(), example()
    found = gradient(model, lambda: F.cross_entropy(model(x), labels), rho=0.0)
    model.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))


def cross_entropy(model, x, labels):
    return F.cross_entropy(model(x), labels)


def losses_when_rescaled(adaptive):
    """The loss at the perturbed weights of two networks that compute the same function."""
    for factor in (1.0, 20.0):
        model, (x, labels) = network(), example()
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[0].bias.mul_(factor)
            model[2].weight.div_(factor)
        sam = SharpnessAware(model, rho=0.5, adaptive=adaptive, eta=0.0)
        yield sam.climb(partial(cross_entropy, model, x, labels)).item()


def test_asam_does_not_depend_on_the_scale_of_layers():
    one, other = losses_when_rescaled(adaptive=True)
    assert one == pytest.approx(other, rel=1e-10)
    one, other = losses_when_rescaled(adaptive=False)
    assert abs(one - other) > 0.1 * one


def test_it_leaves_a_sharp_minimum_for_a_flat_one():
    def loss(w):
        # All points with y = 0 are minima, with curvature 2 (1 + x^2).
        x, y = w
        return y.square() * (1 + x.square())

    def end(aware):
        point = Point(2.0, 0.5)
        optimizer = torch.optim.SGD(point.parameters(), lr=0.05)
        sam = SharpnessAware(point, rho=0.3)
        for _ in range(1000):
            optimizer.zero_grad()
            if aware:
                sam.climb(lambda: loss(point.w)).backward()
                sam.restore()
            else:
                loss(point.w).backward()
            optimizer.step()
        return point.w.detach()

    plain, found = end(aware=False), end(aware=True)
    # Both reach a minimum: gradient descent stops at the first one.
    assert loss(plain) < 1e-9
    assert loss(found) < 0.01
    assert plain[0] > 1.8
    assert abs(found[0]) < 0.01


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def own():
    return torch.Generator().manual_seed(5)


STATEFUL = {
    "dropout": lambda: Dropout(0.5),
    "own generator": lambda: Dropout(0.5, own()),
    "torch": lambda: nn.Dropout(0.5),
    "gaussian": lambda: GaussianDropout(0.5),
    "path": lambda: Residual(nn.Linear(6, 6), DropPath(0.5)),
    "layer": lambda: LayerDrop(nn.Linear(6, 6), 0.5),
    "layer, own generator": lambda: LayerDrop(nn.Linear(6, 6), 0.5, own()),
    "weights": lambda: WeightDrop(nn.Linear(6, 6), ("weight",), 0.5),
    "concrete": lambda: ConcreteDropout(6, 0.3),
    "variational": lambda: VariationalDropout(6, 0.3),
    "winners": lambda: KWinners(6, 0.5),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "masked batch norm": lambda: MaskedBatchNorm(6, dims=0),
    "renorm": lambda: BatchRenorm(6, dims=0, warmup=0),
    "block": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), DropBlock(0.4, 2), nn.Flatten(), nn.BatchNorm1d(6)
    ),
    "recomputed": lambda: Recomputed(nn.BatchNorm1d(6), Dropout(0.5), LayerDrop(nn.Linear(6, 6))),
}


class Recomputed(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return recomputed(self.layers, x)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_second_pass_is_the_first_one_but_for_the_weights(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), STATEFUL[name](), nn.Linear(6, 3)).double()
    twin = copy.deepcopy(model)
    x, labels = example()

    def losses(which):
        values = []

        def loss():
            value = F.cross_entropy(which(x), labels)
            values.append(value.item())
            return value

        return loss, values

    for step in range(4):
        torch.manual_seed(step)
        loss, values = losses(model)
        # At distance 0 the weights are the same, so the loss is too.
        found = gradient(model, loss, rho=0.0)
        after = torch.get_rng_state()
        torch.manual_seed(step)
        twin.zero_grad()
        loss, single = losses(twin)
        loss().backward()
        assert values == single * 2
        expected = [p.grad for p in twin.parameters()]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        # State and generators are as after one pass.
        assert torch.equal(after, torch.get_rng_state())
        states = zip(model.state_dict().items(), twin.state_dict().values(), strict=True)
        assert all(torch.equal(value, other) for (_, value), other in states)
        generators = [
            [m.generator.get_state() for m in which.modules() if getattr(m, "generator", None)]
            for which in (model, twin)
        ]
        torch.testing.assert_close(*generators, rtol=0, atol=0)


def test_buffers_are_the_same_tensors_afterwards():
    model, (x, labels) = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double(), example()
    before = [*model.buffers()]
    gradient(model, lambda: F.cross_entropy(model(x), labels), rho=0.1)
    assert all(now is then for now, then in zip(model.buffers(), before, strict=True))
    assert model[1].num_batches_tracked == 1


def test_weights_come_back_bit_for_bit_and_the_others_do_not_move():
    model, (x, labels) = network(), example()
    model.unused = nn.Parameter(torch.ones(2))
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    sam = SharpnessAware(model, rho=0.1)
    value = sam.climb(lambda: F.cross_entropy(model[2](model[1](model[0](x))), labels))
    assert sam.perturbed
    changed = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {"0.weight", "2.weight", "2.bias"}
    # The first pass adds no gradient.
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    sam.restore()
    assert not sam.perturbed
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.unused.grad is None


def test_an_error_in_the_second_pass_restores_the_weights():
    model, (x, labels) = network(), example()
    before = copy.deepcopy(model.state_dict())
    sam = SharpnessAware(model)

    def loss():
        if sam.perturbed:
            raise KeyboardInterrupt
        return F.cross_entropy(model(x), labels)

    with pytest.raises(KeyboardInterrupt):
        sam.climb(loss)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not sam.perturbed


def test_weights_that_were_not_restored_are_not_perturbed_again():
    model, (x, labels) = network(), example()
    sam = SharpnessAware(model)
    sam.climb(lambda: F.cross_entropy(model(x), labels)).backward()
    with pytest.raises(RuntimeError, match=r"call restore\(\) after backward\(\)"):
        sam.climb(lambda: F.cross_entropy(model(x), labels))


def test_under_autocast_the_second_pass_has_the_perturbed_weights():
    model, (x, labels) = network().float(), example()
    # Far enough for half precision.
    sam = SharpnessAware(model, rho=2.0)

    loss = partial(cross_entropy, model, x.float(), labels)
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            plain = loss().item()
            value = sam.climb(loss)
            value.backward()
            moved = copy.deepcopy(model)
            sam.restore()
            assert loss().item() == plain
        moved.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            expected = cross_entropy(moved, x.float(), labels)
        expected.backward()
        assert value.item() == expected.item() > 1.05 * plain
        for p, q in zip(model.parameters(), moved.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", True, None])
@pytest.mark.parametrize("name", ["rho", "eta"])
def test_an_invalid_distance_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is a number of at least 0, not {value!r}"):
        SharpnessAware(nn.Linear(2, 2), **{name: value})


def test_adaptive_is_true_or_false():
    with pytest.raises(ValueError, match="adaptive is True or False, not 'no'"):
        SharpnessAware(nn.Linear(2, 2), adaptive="no")
