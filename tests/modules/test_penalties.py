import copy
import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from regain import (
    elastic,
    l1_penalty,
    l2_penalty,
    max_norm_,
    parameter_groups,
    r_drop_loss,
)


def names(model, weight_decay=0.1):
    """Names of the parameters with and without decay."""
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
        # The weight of a norm, although it is a matrix.
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
    """A small model with each kind of layer, one layer used twice and one frozen."""

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
    # A weight that is shared with an embedding does not decay.
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


def test_rows_that_attention_adds_do_not_decay():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    decayed = {id(p) for p in parameter_groups(attention, 0.1)[0]["params"]}
    assert {id(attention.bias_k), id(attention.bias_v)}.isdisjoint(decayed)
    assert id(attention.in_proj_weight) in decayed


@pytest.fixture
def model():
    """A network with 2 * 3 and 4 * 1 penalized weights, and other parameters."""
    torch.manual_seed(0)
    layers = [nn.Embedding(5, 3), nn.Linear(3, 2), nn.BatchNorm1d(2), nn.LayerNorm(2)]
    net = nn.Sequential(*layers, nn.Conv1d(1, 4, 1)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def test_penalties_are_sums_over_the_decayed_weights(model):
    weights = torch.cat([model[1].weight.flatten(), model[4].weight.flatten()])
    torch.testing.assert_close(l1_penalty(model), weights.abs().sum())
    torch.testing.assert_close(l2_penalty(model), weights.square().sum() / 2)
    expected = 0.3 * weights.abs().sum() + 0.7 * weights.square().sum() / 2
    torch.testing.assert_close(elastic(model, 0.3, 0.7), expected)
    assert elastic(model, 0.0, 0.0) == 0


def test_the_gradient_of_l2_is_the_weight_and_of_l1_its_sign(model):
    l2_penalty(model).backward()
    torch.testing.assert_close(model[1].weight.grad, model[1].weight.detach())
    assert model[1].bias.grad is None
    model.zero_grad()
    l1_penalty(model).backward()
    torch.testing.assert_close(model[4].weight.grad, model[4].weight.detach().sign())


def test_a_model_without_weights_has_no_penalty():
    assert l1_penalty(nn.ReLU()) == l2_penalty(nn.ReLU()) == 0


def test_l2_is_weight_decay_under_plain_sgd_and_not_under_adamw():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 2)

    def trained(optimizer, decay, l2):
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        steps = optimizer(parameter_groups(model, decay), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            (nn.functional.mse_loss(model(x), y) + elastic(model, 0.0, l2)).backward()
            steps.step()
        return model.weight.detach()

    sgd, adamw = torch.optim.SGD, torch.optim.AdamW
    torch.testing.assert_close(trained(sgd, 0.5, 0.0), trained(sgd, 0.0, 0.5))
    assert not torch.allclose(trained(sgd, 0.5, 0.0), trained(sgd, 0.0, 0.0))
    assert not torch.allclose(trained(adamw, 0.5, 0.0), trained(adamw, 0.0, 0.5), atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "name", "unit"),
    [
        (nn.Linear(6, 5), "weight", 0),
        (nn.Conv2d(6, 5, 3), "weight", 0),
        (nn.Conv2d(6, 4, 3, groups=2), "weight", 0),
        (nn.ConvTranspose1d(6, 5, 3), "weight", 1),
        (nn.LSTM(6, 5), "weight_hh_l0", 0),
    ],
)
def test_max_norm_changes_only_weights_above_the_limit(layer, name, unit):
    weight = layer.get_parameter(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        # The norm of every other unit is within the limit.
        rows = weight.movedim(unit, 0)
        rows[::2] *= 1e-3
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    max_norm_(layer, 0.5)
    old, new = before[name].movedim(unit, 0), weight.detach().movedim(unit, 0)
    assert torch.equal(new[::2], old[::2])
    lengths = new[1::2].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=1e-4, atol=0)
    # The direction does not change.
    cosines = nn.functional.cosine_similarity(new[1::2].flatten(1), old[1::2].flatten(1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    for key, value in layer.state_dict().items():
        assert "weight" in key or torch.equal(value, before[key])


def divergence(p, q):
    """KL(p || q) of logits, averaged over the batch."""
    return nn.functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean"
    )


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_r_drop_is_cross_entropy_and_both_divergences(soft, smoothing):
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    targets = torch.randint(4, (6,))
    if soft:
        targets = torch.randn(6, 4, dtype=torch.float64).softmax(1)
    entropies = sum(
        nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        for logits in (first, second)
    )
    both = divergence(first, second) + divergence(second, first)
    found = r_drop_loss(first, second, targets, 0.7, smoothing)
    torch.testing.assert_close(found, entropies / 2 + 0.7 * both / 2)
    # As the docstring says: the loss of the paper is twice this one with half of its alpha.
    paper = entropies + 0.7 * both / 2
    torch.testing.assert_close(2 * r_drop_loss(first, second, targets, 0.35, smoothing), paper)
    swapped = r_drop_loss(second, first, targets, 0.7, smoothing)
    torch.testing.assert_close(found, swapped)
    agreed = r_drop_loss(first, first, targets, 0.7, smoothing)
    torch.testing.assert_close(
        agreed, nn.functional.cross_entropy(first, targets, label_smoothing=smoothing)
    )


def test_the_gradient_of_r_drop_goes_through_both_passes():
    first, second = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    first, second = first.requires_grad_(), second.clone().requires_grad_()
    targets = torch.tensor([0, 1, 3])
    assert torch.autograd.gradcheck(lambda a, b: r_drop_loss(a, b, targets, 0.7), (first, second))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_wrong_amounts_are_refused_by_name(value, model):
    logits, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    for name, call in (
        ("l1", lambda: elastic(model, value, 0.0)),
        ("l2", lambda: elastic(model, 0.0, value)),
        ("limit", lambda: max_norm_(model, value)),
        ("alpha", lambda: r_drop_loss(logits, logits, targets, value)),
    ):
        with pytest.raises(ValueError, match=f"{name} is .*{value!r}"):
            call()


def test_a_limit_of_zero_is_refused(model):
    with pytest.raises(ValueError, match=r"limit is more than 0, not 0\.0"):
        max_norm_(model, 0.0)


def depthwise():
    return nn.ConvTranspose2d(6, 4, 3, groups=2)


def used_norms(layer, x):
    """Norms of the weights into each unit: the layer's outputs for one-hot inputs, squared."""
    bias, layer.bias = layer.bias, None
    try:
        layer(x)
        weight = layer.weight.detach()
    finally:
        layer.bias = bias
    if isinstance(layer, nn.ConvTranspose2d):
        group = weight.chunk(layer.groups, 0)
        return torch.cat([w.transpose(0, 1).flatten(1).norm(dim=1) for w in group])
    return weight.flatten(1).norm(dim=1)


def test_max_norm_of_a_grouped_transposed_convolution_treats_groups_separately():
    layer = depthwise()
    with torch.no_grad():
        layer.weight.normal_()
        # Norms are small in the second group, and large in the first.
        layer.weight[3:] *= 1e-3
    before = layer.weight.detach().clone()
    max_norm_(layer, 0.5)
    assert torch.equal(layer.weight[3:], before[3:])
    norms = used_norms(layer, torch.randn(1, 6, 5, 5))
    torch.testing.assert_close(norms[:2], torch.full((2,), 0.5))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("way", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Linear(6, 4), torch.randn(2, 6)),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), torch.randn(1, 6, 5, 5)),
        (lambda: nn.ConvTranspose2d(6, 4, 3), torch.randn(1, 6, 5, 5)),
        (depthwise, torch.randn(1, 6, 5, 5)),
    ],
)
def test_max_norm_limits_the_weight_that_a_layer_under_weight_norm_uses(layer, x, dim, way):
    torch.manual_seed(0)
    plain = layer()
    with torch.no_grad():
        plain.weight.normal_()
        plain.weight[:1] *= 0.01
    normed = way(copy.deepcopy(plain), dim=dim)
    limit = used_norms(plain, x).median().item()
    max_norm_(plain, limit)
    max_norm_(normed, limit)
    norms = used_norms(normed, x)
    assert norms.max() <= limit * (1 + 1e-5)
    torch.testing.assert_close(norms, used_norms(plain, x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normed(x), plain(x), rtol=1e-4, atol=1e-5)
    # Weights within the limit do not change, bit for bit.
    state = {name: value.clone() for name, value in normed.state_dict().items()}
    max_norm_(normed, 2 * limit)
    assert all(torch.equal(value, state[name]) for name, value in normed.state_dict().items())


def pruned(layer):
    return nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (parametrizations.spectral_norm, "SpectralNorm"),
        (nn.utils.spectral_norm, "SpectralNorm"),
        (parametrizations.orthogonal, "Orthogonal"),
        (pruned, "L1Unstructured"),
    ],
)
def test_max_norm_refuses_by_name_a_weight_that_something_else_computes(way, name):
    model = nn.Sequential(nn.Linear(3, 3), way(nn.Linear(3, 3)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"max_norm_ cannot limit 1\.weight: {name} computes it"):
        max_norm_(model, 1e-3)
    # No weight was changed.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # Frozen weights and weights without penalty are ignored.
    model[1].requires_grad_(False)
    max_norm_(model, 1e-3)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("way", "length"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original0"),
        (nn.utils.weight_norm, "weight_g"),
    ],
)
@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 5)])
def test_lengths_of_weight_norm_do_not_decay(layer, way, length):
    decayed, kept = names(way(copy.deepcopy(layer)))
    assert length in kept
    assert len(decayed) == 1


def kept_matrices(model):
    """Parameters of several dimensions that do not decay."""
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    return {name for name in names(model)[1] if shapes[name] > 1}


def test_positions_tokens_and_scales_of_known_models_do_not_decay():
    vit = timm.create_model("test_vit", num_classes=3)
    assert kept_matrices(vit) == {"pos_embed", "cls_token"}
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16)
    assert kept_matrices(model) == {"class_token", "encoder.pos_embedding"}
    convnext = torchvision.models.convnext_tiny()
    kept = kept_matrices(convnext)
    assert kept == {n for n, _ in convnext.named_parameters() if n.endswith("layer_scale")}
    assert len(kept) == 18
    assert not kept_matrices(timm.create_model("test_convnext", num_classes=3))
    # In a submodule too.
    swin = nn.ModuleDict(
        {"model": timm.create_model("swin_tiny_patch4_window7_224", depths=(1,) * 4)}
    )
    assert kept_matrices(swin) == {
        name for name, _ in swin.named_parameters() if "relative_position_bias_table" in name
    }


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))
        self.query = nn.Parameter(torch.randn(1, 5, 4))
        self.positional_embedding = nn.Parameter(torch.randn(5, 4))

    def no_weight_decay(self):
        return {"matrix"}


def test_only_listed_matrices_of_a_model_do_not_decay():
    assert names(Raw()) == [[], ["matrix", "gamma", "query", "positional_embedding"]]
    Raw.no_weight_decay, listed = None, Raw.no_weight_decay
    try:
        assert names(Raw())[0] == ["matrix"]
    finally:
        Raw.no_weight_decay = listed


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_r_drop_skips_targets_that_are_ignored(smoothing):
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    targets = torch.tensor([0, -100, 3, -100, 1, 2])
    seen = targets >= 0
    expected = r_drop_loss(first[seen], second[seen], targets[seen], 0.7, smoothing)
    torch.testing.assert_close(r_drop_loss(first, second, targets, 0.7, smoothing), expected)
    # With several targets per example too.
    many = torch.stack((first.T, second.T))[:, None].requires_grad_()
    found = r_drop_loss(many[0], many[1], targets[None], 0.7, smoothing)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert not many.grad[..., ~seen].any()
