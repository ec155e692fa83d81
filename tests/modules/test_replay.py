"""With PyTorch's gradient checkpointing the second call of a layer repeats the first."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed._composable import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    KWinners,
    LayerDrop,
    LockedDropout,
    TokenDropout,
    VariationalConv2d,
    VariationalDropout,
    WeightDrop,
    WordDropout,
    recomputed,
    replay,
)
from tests.modules.conftest import OfImages

pytestmark = [
    pytest.mark.usefixtures("way"),
    # With a call without gradients between forward and backward.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def conv():
    return nn.Conv1d(4, 4, 3, padding=1)


class OfWords(nn.Module):
    """Embeds words after word dropout; the words are the signs of the input."""

    def __init__(self, generator):
        super().__init__()
        self.words = WordDropout(0.5, 1, (), generator)
        self.table = nn.Embedding(3, 6)

    def forward(self, x):
        return x * self.table(self.words(torch.full(x.shape[:2], 2)))


class OfTable(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.rows = EmbeddingDropout(nn.Embedding(4, 6), 0.5, generator)

    def forward(self, x):
        return x * self.rows(torch.arange(4))


class OfTokens(nn.Module):
    """Multiplies by the mean of the kept tokens."""

    def __init__(self, generator):
        super().__init__()
        self.tokens = TokenDropout(0.5, generator=generator)

    def forward(self, x):
        return x * self.tokens(x.transpose(1, 2)).mean(1).unsqueeze(2)


LAYERS = {
    "dropout": lambda: Dropout(0.5, seeded(3)),
    "channel": lambda: ChannelDropout(0.5, seeded(3)),
    "locked": lambda: LockedDropout(0.5, seeded(3)),
    "gaussian": lambda: GaussianDropout(0.3, seeded(3)),
    "alpha": lambda: AlphaDropout(0.3, seeded(3)),
    "path": lambda: DropPath(0.5, seeded(3)),
    "block": lambda: DropBlock(0.3, generator=seeded(3)),
    "words": lambda: OfWords(seeded(3)),
    "rows": lambda: OfTable(seeded(3)),
    "concrete": lambda: ConcreteDropout(4, 0.3, seeded(3)),
    "variational": lambda: VariationalDropout(4, 0.3, generator=seeded(3)),
    "noisy weights": lambda: OfImages(
        VariationalConv2d(4, 4, 3, padding=1, log_sigma2=-3.0, generator=seeded(3))
    ),
    "attention": lambda: AttentionDropout(0.3, generator=seeded(3)),
    "heads": lambda: DropHead(0.5, generator=seeded(3)),
    "tokens": lambda: OfTokens(seeded(3)),
    "weights": lambda: WeightDrop(conv(), p=0.5, generator=seeded(3)),
    "rows of weights": lambda: WeightDrop(conv(), p=0.5, generator=seeded(3), variational=True),
    "layer": lambda: LayerDrop(conv(), 0.5, seeded(3)),
    # With the default generator: the second call must not draw another seed.
    "layer by default": lambda: nn.Sequential(LayerDrop(conv(), 0.5), nn.Dropout(0.5)),
    "two layers": lambda: nn.Sequential(LayerDrop(conv(), 0.5), LayerDrop(conv(), 0.5)),
    "nested layers": lambda: LayerDrop(nn.Sequential(conv(), LayerDrop(conv(), 0.4)), 0.3),
    # Not random, but the winners depend on earlier winners.
    "winners": lambda: KWinners(4, 0.5, boost=5.0, period=20),
}


def plainly(layer, x):
    return layer(x)


def nested(inner, outer, layer, x):
    """A checkpoint around two layers, and one around the layer alone."""
    once = partial(checkpoint, layer, use_reentrant=inner)

    def both(x):
        return layer(once(once(x)))

    return checkpoint(both, x, use_reentrant=outer)


WAYS = {
    "non-reentrant": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "reentrant": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "to the end": lambda layer, x: checkpoint(layer, x, use_reentrant=False, early_stop=False),
    "recomputed": recomputed,
}


class Net(nn.Module):
    """Calls one layer several times with one generator, with and without a checkpoint."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = conv(), make(), conv()

    def forward(self, x, way):
        def block(x):
            return self.last(self.layer(self.layer(self.first(x)).tanh()))

        x = way(block, x) if way is not recomputed else recomputed(self, x, call=block)
        x = self.layer(x.sin())
        x = way(self.layer, x)
        with torch.no_grad():
            # Between forward and backward, with the same generator.
            way(self.layer, x.detach())
            self.layer(x.detach())
        return way(self.layer, x.sin())


def trained(model, way, steps=2):
    model.double()
    torch.manual_seed(1)
    found = []
    for _ in range(steps):
        x = (3 * torch.randn(8, 4, 6, dtype=torch.float64) + 1).requires_grad_()
        y = model(x, way)
        model.zero_grad()
        # A call in evaluation mode has no effect.
        model.eval()(x.detach(), plainly)
        model.train()
        y.square().mean().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found += [y.detach(), x.grad, *grads]
    return [*found, torch.rand(1)]


def assert_equal(found, wanted):
    # Gradients of several calls are added in another order; other masks would differ much more.
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way_of_calling", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_without_checkpointing(name, way_of_calling):
    wanted = trained(Net(LAYERS[name]), plainly)
    assert_equal(trained(Net(LAYERS[name]), WAYS[way_of_calling]), wanted)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("name", ["dropout", "concrete", "layer by default", "winners"])
def test_checkpoints_may_be_nested(name, inner, outer):
    # The layer alone in the checkpoint: reentrant ones need an input with a gradient.
    wanted = trained(Net(LAYERS[name]), lambda layer, x: layer(layer(layer(x))))
    assert_equal(trained(Net(LAYERS[name]), partial(nested, inner, outer)), wanted)


@pytest.mark.parametrize("name", ["dropout", "concrete", "layer by default", "winners"])
def test_a_composable_checkpoint_repeats_its_draws(name):
    def built(wrap):
        torch.manual_seed(0)
        return wrap(nn.Sequential(conv(), LAYERS[name](), conv()).double())

    found = []
    for wrap in (lambda layer: layer, composable, checkpoint_wrapper):
        model = built(wrap)
        x = torch.randn(8, 4, 6, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            model(x).square().mean().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_hooks_within_a_checkpoint_do_not_hide_it():
    drop = Dropout(0.5, seeded(0))

    def offloaded(x):
        with torch.autograd.graph.save_on_cpu():
            return (drop(x).sin() * drop(x.cos())).exp()

    gradients = []
    for way in (plainly, WAYS["non-reentrant"], WAYS["reentrant"]):
        drop.generator.manual_seed(0)
        x = torch.ones(50, requires_grad=True)
        way(offloaded, x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])


def test_a_sequence_of_segments_repeats_its_draws():
    model = nn.Sequential(*(nn.Sequential(conv(), Dropout(0.5, seeded(n))) for n in range(4)))
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4, 6, requires_grad=True)
    y = checkpointing.checkpoint_sequential(model, 2, x, use_reentrant=False)
    wanted = twin(x)
    for output, layers in ((y, model), (wanted, twin)):
        output.square().sum().backward(inputs=list(layers.parameters()))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("way_of_calling", WAYS)
def test_retained_graphs_allow_another_backward_pass(way_of_calling):
    layer = nn.Sequential(conv(), Dropout(0.5, seeded(0)), nn.BatchNorm1d(4), KWinners(4))
    x = torch.randn(8, 4, 6, requires_grad=True)
    loss = WAYS[way_of_calling](layer, x).square().sum()
    state = layer[1].generator.get_state()
    gradients = []
    for _ in range(3):
        x.grad = None
        loss.backward(retain_graph=True)
        gradients.append(x.grad.clone())
    assert gradients[0].any()
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert torch.equal(layer[1].generator.get_state(), state)


def test_backward_passes_of_several_steps_may_come_in_any_order():
    layers = [nn.Sequential(conv(), Dropout(0.5, seeded(0))) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    inputs = torch.randn(3, 8, 4, 6)
    found = []
    for layer, way in zip(layers, (plainly, WAYS["reentrant"]), strict=True):
        # Three steps, and the backward passes from the second one on.
        xs = [x.clone().requires_grad_() for x in inputs]
        losses = [way(layer, x).square().sum() for x in xs]
        for step in (1, 0, 2):
            losses[step].backward()
        found.append([x.grad for x in xs])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way_of_calling", WAYS)
def test_stored_states_are_freed_with_the_graph(way_of_calling, monkeypatch):
    kept = []

    class Remembered(replay._FirstCalls):
        def __init__(self):
            super().__init__()
            kept.append(weakref.ref(self))

    monkeypatch.setattr(replay, "_FirstCalls", Remembered)
    layer = nn.Sequential(conv(), Dropout(0.5, seeded(0)), KWinners(4))
    x = torch.randn(8, 4, 6, requires_grad=True)
    for _ in range(3):
        y = WAYS[way_of_calling](layer, x)
    assert len(kept) == 3
    gc.collect()
    assert sum(one() is not None for one in kept) == 1
    y.sum().backward()
    del y
    gc.collect()
    assert not any(one() for one in kept)


class Foreign(torch.autograd.Function):
    """Gradient checkpointing by other code than PyTorch's."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            ctx.layer(x.detach())
        return upstream, None


@pytest.mark.parametrize("name", ["dropout", "concrete", "winners", "layer by default"])
def test_a_second_call_by_other_code_is_refused(name):
    layer = LAYERS[name]()
    y = Foreign.apply(torch.randn(8, 4, 6, requires_grad=True), layer)
    with pytest.raises(RuntimeError, match="in a backward pass, and not by torch"):
        y.sum().backward()


def test_layers_without_a_generator_work_under_any_checkpoint():
    y = Foreign.apply(torch.randn(8, 4, 6, requires_grad=True), Dropout(0.5))
    y.sum().backward()


def test_calls_that_differ_are_refused():
    drop, calls = Dropout(0.5, seeded(0)), []

    def changing(x):
        calls.append(1)
        return (drop(x) if len(calls) == 2 else x).sin().cos()

    y = checkpoint(changing, torch.randn(8, 4, requires_grad=True), use_reentrant=True)
    with pytest.raises(RuntimeError, match="second call of Generator finds no first call"):
        y.sum().backward()


def test_the_private_parts_of_torch_exist():
    assert torch._C._current_graph_task_id() == -1
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    function = checkpointing.CheckpointFunction
    for name in ("forward", "backward"):
        code = getattr(function, name).__code__
        assert code.co_filename == replay.FILE
        assert code.co_qualname in {**replay.FIRST, **replay.AGAIN}
        assert "ctx" in code.co_varnames
    hook = checkpointing._checkpoint_hook.__init__.__code__
    (again,) = (code for code in hook.co_consts if getattr(code, "co_name", "") == "unpack_hook")
    assert again.co_qualname in replay.AGAIN
    assert "frame" in again.co_freevars
    assert "gid" in again.co_varnames
    (pack,) = (code for code in hook.co_consts if getattr(code, "co_name", "") == "pack_hook")
    assert pack.co_qualname == replay.HOOK
    assert "frame" in pack.co_freevars
