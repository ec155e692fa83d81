"""Compiled layers have the same distribution of draws; the draws may differ."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from regain import (
    AlphaDropout,
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    Dropout,
    DropoutSchedule,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    KWinners,
    LayerDrop,
    LockedDropout,
    WeightDrop,
    WordDropout,
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
        # The positions of a block are dependent.
        draws /= 9 if case.layer is DropBlock else 1
        rate = 0.5 if case.layer is GaussianDropout else p
        fraction = case.dropped(y).double().mean().item()
        assert fraction == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / draws))
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
        fraction = (compiled(x) == 0).float().mean().item()
        assert fraction == pytest.approx(rate, abs=4 * math.sqrt(0.25 / x.numel()))


def test_compiled_to_machine_code_too():
    compiled = torch.compile(Dropout(0.25))
    x = torch.ones(400, 400, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=4 * 0.44 / 400)
    torch.testing.assert_close(x.grad, y.detach())


# Layers of (batch, 6, 8), whose rate can be set.
RATED = {
    "dropout": lambda: Dropout(0.5),
    "channel": lambda: ChannelDropout(0.5),
    "locked": lambda: LockedDropout(0.5),
    "gaussian": lambda: GaussianDropout(0.5),
    "alpha": lambda: AlphaDropout(0.5),
    "path": lambda: DropPath(0.5),
    "block": lambda: DropBlock(0.5),
    "weights": lambda: WeightDrop(torch.nn.Linear(8, 8)),
    "layer": lambda: LayerDrop(torch.nn.Linear(8, 8), 0.5),
}
LEARNT = {"concrete": lambda: ConcreteDropout(6, 0.5), "winners": lambda: KWinners(6, 0.5)}


class Counting:
    """A backend that counts compilations."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph


@pytest.mark.parametrize("name", RATED)
def test_a_rate_that_changes_at_each_step_is_compiled_a_few_times(name):
    backend, layer = Counting(), RATED[name]()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    x = torch.ones(40, 6, 8)
    fractions = []
    for step in range(30):
        layer.p = step / 29
        y = compiled(x)
        assert y.shape == x.shape
        fractions.append((y == 0).float().mean().item())
    # A rate of zero, one rate, any rate, and a rate of one.
    assert backend.graphs <= 4
    if name in ("dropout", "channel", "locked", "path"):
        assert fractions == pytest.approx([step / 29 for step in range(30)], abs=0.25)


def test_words_and_tables_are_compiled_a_few_times():
    ids = torch.randint(2, 9, (40, 50))
    for layer in (WordDropout(0.5, 1), EmbeddingDropout(torch.nn.Embedding(9, 3), 0.5)):
        backend = Counting()
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        for step in range(30):
            layer.p = step / 29
            assert compiled(ids).shape[:2] == ids.shape
        assert backend.graphs <= 4


@pytest.mark.parametrize("name", RATED | LEARNT)
def test_batches_of_any_size_are_compiled_at_once(name):
    backend, layer = Counting(), (RATED | LEARNT)[name]()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for size in (5, 9, 17, 33):
        y = compiled(torch.randn(size, 6, 8, requires_grad=True))
        y.sum().backward()
        assert y.shape == (size, 6, 8)
    assert backend.graphs == 1


@pytest.mark.parametrize("name", RATED | LEARNT)
def test_layers_are_exported_in_training_for_batches_of_any_size(name):
    torch.manual_seed(0)
    layer = (RATED | LEARNT)[name]()
    x = torch.ones(800, 6, 8)
    shapes = {0: torch.export.Dim("batch", min=2)}
    # These accept any input.
    shapes = ((shapes,),) if name in ("weights", "layer") else (shapes,)
    exported = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    for size in (800, 3):
        y = exported(torch.ones(size, 6, 8))
        assert y.shape == (size, 6, 8)
    if name == "winners":
        for size in (800, 3):
            layer(torch.ones(size, 6, 8))
        torch.testing.assert_close(exported.duty_cycle, layer.duty_cycle)
        return
    y = exported(x)
    draws = torch.stack([exported(x) for _ in range(10)])
    assert (draws != draws[0]).any()
    if name in ("dropout", "channel", "locked", "path"):
        assert (y == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_compiled_layer_drop_without_a_generator_skips_at_its_rate_with_gradients():
    layer = LayerDrop(torch.nn.Linear(2, 2), 0.25)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2, requires_grad=True)
    skipped = 0
    for _ in range(400):
        layer.zero_grad()
        x.grad = None
        y = compiled(x)
        y.sum().backward()
        if torch.equal(y, x):
            skipped += 1
            assert torch.equal(x.grad, torch.ones_like(x))
            assert not layer.layer.weight.grad.any()
        else:
            torch.testing.assert_close(y, layer.layer(x))
            assert layer.layer.weight.grad.any()
    assert skipped == pytest.approx(100, abs=4 * math.sqrt(400 * 0.25 * 0.75))


@pytest.mark.parametrize("name", ["dropout", "layer", "concrete"])
def test_compiled_checkpoints_repeat_their_draws(name):
    layer = torch.nn.Sequential(torch.nn.Conv1d(6, 6, 1), (RATED | LEARNT)[name]())

    def call(x):
        return checkpoint(layer, x.sin(), use_reentrant=False).square().sum()

    compiled = torch.compile(call, backend="aot_eager_decomp_partition", fullgraph=True)
    x = torch.randn(8, 6, 8, requires_grad=True)
    for _ in range(3):
        x.grad = None
        before = torch.get_rng_state()
        compiled(x).backward()
        # The directional derivative is the change of the loss with the same draw.
        gradient, step = x.grad.clone(), 1e-3
        losses = []
        for sign in (-1, 1):
            torch.set_rng_state(before)
            with torch.no_grad():
                moved = (x + sign * step * gradient / gradient.norm()).detach()
            losses.append(compiled(moved.requires_grad_()).item())
        slope = (losses[1] - losses[0]) / (2 * step)
        assert slope == pytest.approx(gradient.norm().item(), rel=0.02)


def winners_trained(way):
    """Gradients of k-winners, whose choice depends on earlier winners."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), KWinners(8, 0.5, boost=20.0, period=10))
    call = way(layer.double())
    found = []
    for _ in range(3):
        x = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
        layer.zero_grad()
        call(x).square().sum().backward()
        found += [x.grad, layer[0].weight.grad.clone(), layer[1].duty_cycle.clone()]
    return found


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_compiled_winners_chooses_the_same(reentrant):
    def compiled(layer):
        inner = torch.compile(layer, backend="aot_eager")
        return lambda x: checkpoint(inner, x, use_reentrant=reentrant)

    wanted = winners_trained(lambda layer: layer)
    for one, other in zip(winners_trained(compiled), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_checkpoint_of_winners_is_refused():
    def compiled(layer):
        return torch.compile(
            lambda x: checkpoint(layer, x, use_reentrant=False), backend="aot_eager"
        )

    with pytest.raises(RuntimeError, match="KWinners is called in a backward pass"):
        winners_trained(compiled)
