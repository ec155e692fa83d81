import pytest
import torch
from torch import nn

from modules import parameter_groups


def names(model, weight_decay=0.1):
    """The names of the parameters that decay and of those that do not."""
    called = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model, weight_decay)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (weight_decay, 0.0)
    return [[called[id(p)] for p in group["params"]] for group in (decayed, kept)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        nn.Bilinear(3, 4, 5),
        nn.Conv1d(3, 4, 5),
        nn.Conv2d(3, 4, 5),
        nn.Conv2d(4, 4, 5, groups=4),
        nn.ConvTranspose2d(3, 4, 5),
        nn.Linear(1, 1),
    ],
)
def test_weights_decay_and_biases_do_not(layer):
    assert names(layer) == [["weight"], ["bias"]]


def test_recurrent_weights_decay():
    decayed, kept = names(nn.LSTM(3, 4, num_layers=2, bidirectional=True))
    assert len(decayed) == len(kept) == 8
    assert all(name.startswith(("weight_ih_", "weight_hh_")) for name in decayed)
    assert all(name.startswith("bias_") for name in kept)


def test_attention_weights_decay():
    decayed, kept = names(nn.MultiheadAttention(4, 2))
    assert decayed == ["in_proj_weight", "out_proj.weight"]
    assert kept == ["in_proj_bias", "out_proj.bias"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.LayerNorm(3),
        # Its weight is a matrix, and still that of a norm.
        nn.LayerNorm((3, 4)),
        nn.RMSNorm((3, 4)),
        nn.PReLU(3),
        nn.Embedding(3, 4),
        nn.EmbeddingBag(3, 4),
    ],
)
def test_norms_and_embeddings_do_not_decay(layer):
    assert names(layer) == [[], [name for name, _ in layer.named_parameters()]]


class Tied(nn.Module):
    """Small, but with a part of each kind, one part used twice and one frozen."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 4)
        self.again = self.lstm
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight


def test_every_trainable_parameter_is_in_one_group_once():
    model = Tied()
    # What also serves as the embedding is an embedding.
    decayed = ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    kept = ["embedding.weight", "norm.weight", "norm.bias", "lstm.bias_ih_l0", "lstm.bias_hh_l0"]
    actual = names(model)
    assert sorted(actual[0]) == sorted(decayed)
    assert sorted(actual[1]) == sorted([*kept, "scale", "head.bias"])


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert names(model) == [["1.weight"], ["1.bias"]]


def test_an_optimizer_shrinks_only_what_decays():
    model = Tied()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        shrunk = 0.95 if name.startswith("lstm.weight") else 1.0
        torch.testing.assert_close(value.detach(), shrunk * before[name])
