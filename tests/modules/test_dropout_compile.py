"""Compiled, each layer draws by the same laws. The draws themselves may be others."""

import math

import pytest
import torch

from modules import (
    ConcreteDropout,
    DropBlock,
    Dropout,
    DropoutSchedule,
    GaussianDropout,
    KWinners,
    LayerDrop,
    dropout_rates,
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_layer_obeys_the_same_laws(case):
    p = 0.25
    compiled = torch.compile(case.make(p), backend="aot_eager")
    x = torch.ones((300, 20, 30), requires_grad=True)
    y = compiled(x)
    if case.masks and case.scaled:
        y.sum().backward()
        assert sorted(set(y.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - p)])
        torch.testing.assert_close(x.grad, y.detach())
    if case.independent:
        draws = math.prod(x.shape[dim] for dim in case.independent)
        # The positions of a block hang together.
        draws /= 9 if case.layer is DropBlock else 1
        rate = 0.5 if case.layer is GaussianDropout else p
        share = case.dropped(y).double().mean().item()
        assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / draws))
        assert not torch.equal(compiled(x), y)
    compiled.eval()
    assert torch.equal(compiled(x), x)
    compiled.train()
    assert any(not torch.equal(compiled(x), x) for _ in range(50))


def test_a_compiled_layer_drop_skips_at_its_rate():
    layer = LayerDrop(torch.nn.Linear(2, 2), 0.25, torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(3, 2)
    skipped = sum(torch.equal(compiled(x), x) for _ in range(400))
    assert skipped == pytest.approx(100, abs=4 * math.sqrt(400 * 0.25 * 0.75))


def test_a_compiled_concrete_dropout_learns_its_rate():
    layer = ConcreteDropout(20, 0.3)
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.ones(2000, 20)
    y = compiled(x)
    assert (y * 0.7 < 0.5).float().mean().item() == pytest.approx(0.3, abs=0.01)
    (y.square().mean() + layer.penalty() / 100).backward()
    assert layer.logit.grad.abs() > 0


def test_compiled_winners_are_the_same():
    x = torch.rand(50, 12, 5)
    layer, twin = KWinners(12, 0.5), KWinners(12, 0.5)
    compiled = torch.compile(twin, backend="aot_eager")
    for _ in range(3):
        assert torch.equal(layer(x), compiled(x))
    torch.testing.assert_close(layer.duty_cycle, twin.duty_cycle)


def test_a_compiled_layer_follows_a_schedule():
    model = torch.nn.Sequential(Dropout(0.5))
    rates, x = dropout_rates(model), torch.ones(400, 400)
    compiled = torch.compile(model, backend="aot_eager")
    for step, rate in ((0, 0.0), (5, 0.25), (10, 0.5)):
        DropoutSchedule("linear", steps=10).apply(model, rates, step)
        share = (compiled(x) == 0).float().mean().item()
        assert share == pytest.approx(rate, abs=4 * math.sqrt(0.25 / x.numel()))


def test_compiled_to_machine_code_too():
    compiled = torch.compile(Dropout(0.25))
    x = torch.ones(400, 400, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=4 * 0.44 / 400)
    torch.testing.assert_close(x.grad, y.detach())
