"""Gradient checkpointing changes nothing but the memory, for every layer."""

import copy

import pytest
import torch
from torch import nn

from regain import (
    AttentionDropout,
    CheckpointedBlock,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    GaussianDropout,
    KWinners,
    LayerDrop,
    TokenDropout,
    VariationalConv2d,
    VariationalDropout,
    VariationalLinear,
    WeightDrop,
    batch_norm,
    recomputed,
)
from tests.modules.conftest import OfImages


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class OfTokens(nn.Module):
    """Applies a layer for (batch, tokens, features) to (batch, features, time)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


def conv():
    return nn.Conv1d(4, 4, 3, padding=1)


LAYERS = {
    **{
        kind: lambda kind=kind: batch_norm(4, dims=1, kind=kind)
        for kind in ("batch", "sync", "ghost", "renorm", "frozen", "split", "layer", "group")
    },
    "plain average": lambda: batch_norm(4, dims=1, momentum=None),
    "dropout": lambda: Dropout(0.5),
    "own generator": lambda: Dropout(0.5, torch.Generator().manual_seed(3)),
    "gaussian": lambda: GaussianDropout(0.3),
    "block": lambda: DropBlock(0.3),
    "path": lambda: DropPath(0.5),
    "concrete": lambda: ConcreteDropout(4, 0.3),
    "variational": lambda: VariationalDropout(4, 0.3),
    "variational, own generator": lambda: VariationalDropout(4, 0.3, generator=seeded(3)),
    "variational linear": lambda: VariationalLinear(6, 6, log_sigma2=-3.0),
    "variational convolution": lambda: OfImages(
        VariationalConv2d(4, 4, 3, padding=1, log_sigma2=-3.0, generator=seeded(3))
    ),
    "attention": lambda: AttentionDropout(0.3, renormalize=True),
    "heads": lambda: DropHead(0.5),
    "tokens": lambda: OfTokens(TokenDropout(0.5)),
    "winners": lambda: KWinners(4, 0.5, period=20),
    "weights": lambda: WeightDrop(conv(), p=0.5),
    # Its generator is made at the first call.
    "layer drop": lambda: LayerDrop(conv(), 0.5),
}


def trained(model, call, steps=6):
    """Outputs, gradients and buffers of some steps, and the next random number."""
    torch.manual_seed(1)
    found = []
    for _ in range(steps):
        x = (3 * torch.randn(8, 4, 6) + 1).requires_grad_()
        y = call(model, x)
        model.zero_grad()
        y.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found += [y.detach(), x.grad, *grads, *(b.clone() for b in model.buffers())]
    return [*found, torch.rand(1)]


@pytest.mark.parametrize("name", LAYERS)
def test_recomputation_gives_the_same_result(name):
    torch.manual_seed(0)
    model = nn.Sequential(conv(), LAYERS[name](), nn.ReLU(), conv())
    if name == "renorm":
        # After the warmup, when it uses the running statistics.
        model[1].warmup = 0
        model[1].num_batches_tracked.fill_(5)
    twin = copy.deepcopy(model)
    for layer, other in zip(model.modules(), twin.modules(), strict=True):
        if getattr(layer, "generator", None) is not None:
            other.generator = torch.Generator().manual_seed(3)
    wanted = trained(twin, lambda layer, x: layer(x))
    found = trained(model, recomputed)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_no_activation_is_saved_and_the_layer_is_called_again():
    kept, calls = [], []
    model = nn.Sequential(*(nn.Sequential(conv(), nn.Tanh()) for _ in range(3)))
    model[1].register_forward_hook(lambda *_: calls.append(1))

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(8, 4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
        plain = sum(kept)
        y = recomputed(model, x).sum()
    assert sum(kept) - plain < plain / 2
    calls.clear()
    y.backward()
    assert len(calls) == 1


def test_buffers_are_the_same_tensors_afterwards():
    norm = nn.BatchNorm1d(4)
    before = norm.running_mean
    recomputed(norm, torch.randn(8, 4, requires_grad=True)).sum().backward()
    assert norm.running_mean is before
    assert norm.num_batches_tracked == 1


class Block(CheckpointedBlock):
    def __init__(self):
        super().__init__()
        self.conv, self.calls = conv(), 0

    def forward(self, x, mask):
        self.calls += 1
        return self.conv(x).tanh() * mask


@pytest.mark.parametrize(
    ("checkpointing", "training", "grad", "calls"),
    [(True, True, True, 2), (False, True, True, 1), (True, False, True, 1), (True, True, False, 1)],
)
def test_a_block_is_recomputed_in_training_alone(checkpointing, training, grad, calls):
    block = Block().train(training)
    block.checkpointing = checkpointing
    with torch.set_grad_enabled(grad):
        y = block(torch.randn(2, 4, 6), torch.ones(6))
        if grad:
            y.sum().backward()
    assert block.calls == calls
