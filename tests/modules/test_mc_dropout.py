"""Dropout at test time: which layers are on, and the prediction of several passes."""

import copy
import math
from itertools import product

import pytest
import timm
import torch
import torchvision
from torch import nn

from regain import (
    AttentionDropout,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    KWinners,
    LayerDrop,
    TokenDropout,
    VariationalDropout,
    VariationalLinear,
    WeightDrop,
    mc_dropout,
    mc_predict,
)


def test_dropout_is_on_and_nothing_else():
    layers = [Dropout(0.5), DropPath(0.5), ConcreteDropout(4), DropBlock(0.1), nn.Dropout2d(0.5)]
    layers += [AttentionDropout(0.1), DropHead(0.1), TokenDropout(0.5)]
    layers += [VariationalDropout(4), VariationalLinear(4, 4)]
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
    """A model with dropout of three inputs, and its probabilities for each of eight masks."""
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
def test_passes_converge_to_the_mean_over_all_masks(p):
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
    with pytest.warns(UserWarning, match="finds no dropout"):
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
        # A single pass exceeds the limit.
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


def test_further_inputs_are_repeated_too():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, lengths):
            # Repeated examples have their own lengths.
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
def test_a_draw_shared_by_the_batch_is_repeated_for_each_pass(model):
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


class Head(nn.Module):
    """Averages the output of a layer, and classifies it."""

    def __init__(self, part, features):
        super().__init__()
        self.part, self.linear = part, nn.Linear(features, 4)
        # Large differences, to distinguish disagreement of passes from rounding.
        nn.init.normal_(self.linear.weight, std=3.0)

    def forward(self, x):
        y = self.part(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.linear(y.flatten(2).mean(2) if y.dim() > 2 else y)


class Residual(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return x + self.drop(x.square())


class Attend(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].transpose(1, 2)


class Swapped(nn.Module):
    """Moves the features to the last dimension."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        y = self.part(x)
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)


IMAGES, TEXTS = torch.randn(3, 8, 9, 9), torch.randn(3, 5, 8)
FOREIGN = {
    "timm drop path": (lambda: Residual(timm.layers.DropPath(0.5)), IMAGES),
    "timm drop block": (lambda: timm.layers.DropBlock2d(0.3, 3), IMAGES),
    "torchvision row": (lambda: Residual(torchvision.ops.StochasticDepth(0.5, "row")), IMAGES),
    "torchvision batch": (lambda: Residual(torchvision.ops.StochasticDepth(0.5, "batch")), IMAGES),
    "torchvision drop block": (lambda: torchvision.ops.DropBlock2d(0.3, 3), IMAGES),
    "attention": (Attend, TEXTS),
    "lstm": (lambda: Swapped(nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)), TEXTS),
    "gru": (lambda: Swapped(nn.GRU(8, 8, 2, dropout=0.5, batch_first=True)), TEXTS),
    # Without gradients, its evaluation mode has a fast path without dropout.
    "transformer": (
        lambda: Swapped(nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True)),
        TEXTS,
    ),
    "transformers": (
        lambda: Swapped(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True), 2)
        ),
        TEXTS,
    ),
    "timm attention": (
        lambda: Swapped(timm.layers.Attention(8, 2, attn_drop=0.5)),
        TEXTS,
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_dropout_of_other_libraries_is_turned_on(name, recwarn):
    torch.manual_seed(0)
    make, x = FOREIGN[name]
    model = Head(make(), 8)
    modes = [layer.training for layer in model.modules()]
    norm = nn.BatchNorm1d(4)
    found = mc_predict(nn.Sequential(model, norm), x, passes=20)
    assert not recwarn.list
    assert found.mutual_information.min() > 1e-4
    assert [layer.training for layer in model.modules()] == modes
    assert norm.num_batches_tracked == 0


def test_batch_wide_draws_of_other_libraries_run_one_by_one():
    for drop in FOREIGN["torchvision batch"][0], lambda: Batchwise(0.5):
        sizes = []
        model = Head(Residual(drop()), 8)
        model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        mc_predict(model, IMAGES, passes=4)
        assert sizes == [3] * 4


class Batchwise(nn.Dropout):
    batchwise = True


class ByFunction(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.linear, self.attention_dropout = nn.Linear(8, 8), rate

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), self.attention_dropout, self.training)


def test_a_warning_names_dropout_that_stays_off():
    model = nn.Sequential(ByFunction(0.5), nn.Dropout(0.5), nn.Linear(8, 4))
    expected = r"cannot turn on the dropout of 0 \(attention_dropout\): replace it by a layer"
    with pytest.warns(UserWarning, match=expected) as warned:
        mc_predict(model, torch.randn(2, 8))
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Identity(),
        Dropout(0.0),
        nn.Dropout(0.0),
        timm.layers.DropPath(0.0),
        nn.MultiheadAttention(8, 2),
        # A single layer has no dropout between layers.
        KWinners(8),
    ],
)
def test_a_model_without_dropout_gives_a_warning(layer):
    part = Attend() if isinstance(layer, nn.MultiheadAttention) else layer
    if isinstance(part, Attend):
        part.attention.dropout = 0.0
        x = TEXTS
    else:
        x = torch.randn(2, 8)
    with pytest.warns(UserWarning, match="mc_predict finds no dropout") as warned:
        found = mc_predict(Head(part, 8), x)
    assert found.mutual_information.abs().max() < 1e-6
    assert len(warned) == 1


def test_an_empty_batch_has_no_predictions():
    found = mc_predict(nn.Sequential(Dropout(0.5), nn.Linear(3, 4)), torch.randn(0, 3), passes=5)
    assert [len(part) for part in found] == [0, 0, 0]
