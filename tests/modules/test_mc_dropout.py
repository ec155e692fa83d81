"""Dropout at test time: what is on, what the passes say together."""

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn

from modules import (
    ConcreteDropout,
    DropBlock,
    Dropout,
    DropPath,
    EmbeddingDropout,
    KWinners,
    LayerDrop,
    WeightDrop,
    mc_dropout,
    mc_predict,
)


def test_dropout_is_on_and_nothing_else():
    layers = [Dropout(0.5), DropPath(0.5), ConcreteDropout(4), DropBlock(0.1), nn.Dropout2d(0.5)]
    others = [nn.BatchNorm1d(4), KWinners(4), nn.Linear(4, 4)]
    model = nn.ModuleList([*layers, *others]).train()
    others[0].eval()
    modes = [layer.training for layer in model.modules()]
    with mc_dropout(model):
        assert all(layer.training for layer in layers)
        assert not any(layer.training for layer in others)
    assert [layer.training for layer in model.modules()] == modes
    with pytest.raises(RuntimeError), mc_dropout(model):
        raise RuntimeError
    assert [layer.training for layer in model.modules()] == modes


def enumerated(p):
    """A model of three inputs under dropout, and its probabilities under each of eight masks."""
    torch.manual_seed(0)
    model = nn.Sequential(Dropout(p), nn.Linear(3, 4)).double()
    x = torch.randn(5, 3, dtype=torch.float64) * 2
    weights, passes = [], []
    for mask in product((0, 1), repeat=3):
        kept = torch.tensor(mask, dtype=torch.float64)
        weights.append((1 - p) ** sum(mask) * p ** (3 - sum(mask)))
        passes.append(model[1](x * kept / (1 - p)).softmax(1).detach())
    return model, x, torch.tensor(weights, dtype=torch.float64), torch.stack(passes)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_passes_come_to_what_all_masks_say(p):
    model, x, weights, passes = enumerated(p)
    mean = (weights.view(-1, 1, 1) * passes).sum(0)
    entropy = torch.special.entr(mean).sum(1)
    expected = (weights.view(-1, 1) * torch.special.entr(passes).sum(2)).sum(0)
    assert (entropy - expected).max() > 0.1
    count = 40_000
    found = mc_predict(model, x, passes=count, limit=100_000)
    # Four standard errors of a mean of numbers between 0 and 1, or log 4.
    torch.testing.assert_close(found.mean.double(), mean, atol=2 / math.sqrt(count), rtol=0)
    bound = 4 * math.log(4) / 2 / math.sqrt(count)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=bound, rtol=0)
    information = entropy - expected
    torch.testing.assert_close(found.mutual_information.double(), information, atol=bound, rtol=0)


def test_without_dropout_the_passes_agree():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    model(torch.randn(20, 3))
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 3)
    found = mc_predict(model, x, passes=3)
    expected = model.eval()(x).softmax(1)
    torch.testing.assert_close(found.mean, expected.detach())
    torch.testing.assert_close(found.entropy, torch.special.entr(expected).sum(1).detach())
    assert found.mutual_information.abs().max() < 1e-6
    assert (found.mutual_information >= 0).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not found.mean.requires_grad


@pytest.mark.parametrize(
    ("passes", "limit", "sizes"),
    [
        (6, 4096, [30]),
        (6, 10, [10, 10, 10]),
        (5, 10, [10, 10, 5]),
        # One pass has more than the limit by itself.
        (3, 2, [5, 5, 5]),
        (1, 1, [5]),
    ],
)
def test_passes_run_together_up_to_the_limit(passes, limit, sizes):
    seen = []
    model = nn.Sequential(Dropout(0.5), nn.Linear(3, 4))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = mc_predict(model, torch.randn(5, 3), passes=passes, limit=limit)
    assert seen == sizes
    assert found.mean.shape == (5, 4)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(5))


def test_further_inputs_are_repeated_alike():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, lengths):
            # Each example's own length, whatever the repetition.
            assert torch.equal(lengths, (x[:, :, 0] != 0).sum(1))
            return self.dropout(x).sum(1)

    lengths = torch.tensor([3, 1, 2])
    x = torch.rand(3, 4, 5) + 1
    x = x * (torch.arange(4) < lengths[:, None]).unsqueeze(2)
    assert mc_predict(Padded(), x, lengths, passes=7).mean.shape == (3, 5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(WeightDrop(nn.Linear(3, 4), p=0.5)),
        nn.Sequential(LayerDrop(nn.Linear(3, 3), 0.5), nn.Linear(3, 4)),
        nn.Sequential(EmbeddingDropout(nn.Embedding(9, 3), 0.5), nn.Flatten(), nn.Linear(6, 4)),
    ],
)
def test_a_draw_that_a_batch_shares_is_drawn_for_each_pass(model):
    torch.manual_seed(0)
    x = torch.randn(5, 3) * 3
    if isinstance(model[0], EmbeddingDropout):
        x = torch.randint(9, (5, 2))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = mc_predict(model, x, passes=30)
    assert sizes == [5] * 30
    assert found.mutual_information.min() > 1e-3


@pytest.mark.parametrize("name", ["passes", "limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_wrong_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*{value!r}"):
        mc_predict(nn.Linear(3, 4), torch.randn(5, 3), **{name: value})
