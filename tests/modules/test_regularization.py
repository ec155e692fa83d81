import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import regain
from regain import (
    AlphaDropout,
    AttentionDropout,
    BatchRenorm,
    ChannelDropout,
    ChannelNorm,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    FrozenBatchNorm,
    GaussianDropout,
    GhostBatchNorm,
    KWinners,
    LayerDrop,
    LockedDropout,
    MaskedBatchNorm,
    MaskedGroupNorm,
    MaskedIdentity,
    Regularization,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    TokenDropout,
    VariationalDropout,
    WeightDrop,
)
from regain.dropoutkinds import DROPOUT_KINDS

RATES = """dropout input_dropout embedding_dropout head_dropout weight_drop drop_path layer_drop
    token_dropout attention_head_dropout""".split()
COUNTS = ["ghost_size"]
NOT_COUNTS = [-1, 1.5, math.nan, "3", True, None]


def test_the_default_makes_no_layers():
    reg = Regularization()
    assert not reg.normalized
    assert not reg.needs_batch
    assert reg.prepare_layer(nn.Linear(2, 2)).bias is not None
    for dims in range(4):
        assert type(reg.norm_layer(8, dims)) is nn.Identity
        assert type(reg.dropout_layer(8, dims)) is nn.Identity
    for bands in (1, 5):
        assert type(reg.masked_norm_layer(8, dims=2, bands=bands)) is MaskedIdentity
    assert type(reg.input_dropout_layer()) is nn.Identity
    assert type(reg.words_dropout_layer()) is nn.Identity
    assert type(reg.head_dropout_layer()) is nn.Identity
    assert type(reg.drop_path_layer(block=3, blocks=4)) is nn.Identity
    assert type(reg.attention_dropout_layer()) is nn.Identity
    assert type(reg.attention_head_dropout_layer(dim=2)) is nn.Identity
    assert reg.token_dropout_layer() is None
    layer = nn.Embedding(4, 4)
    assert reg.embedding_layer(layer) is layer
    assert reg.weight_drop_layer(layer) is layer
    assert reg.layer_drop_layer(layer) is layer
    for name in RATES:
        assert getattr(reg, name) == 0


KINDS = DROPOUT_KINDS.names()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_without_a_rate_makes_no_layer(kind):
    # Even if the kind does not suit the layer.
    reg = Regularization(dropout_kind=kind)
    assert type(reg.dropout_layer(8, dims=0)) is nn.Identity
    assert type(reg.dropout_layer(8, dims=2)) is nn.Identity


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} is a rate") as refusal:
        Regularization(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in COUNTS for value in NOT_COUNTS),
        ("norm_affine", 1),
        ("norm_affine", "yes"),
        ("zero_init_gamma", None),
    ],
)
def test_wrong_value_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as refusal:
        Regularization(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"normalization": "batch", "norm_momentum": 2.0}, "momentum .*2.0"),
        ({"normalization": "batch", "norm_eps": -1.0}, "eps .*-1.0"),
        ({"normalization": "ghost", "ghost_size": 0}, "size .*0"),
        ({"dropout_kind": "block", "dropout_block": 0}, "block .*0"),
    ],
)
def test_invalid_values_are_refused_at_construction(options, named):
    with pytest.raises(ValueError, match=named):
        Regularization(**options)


@pytest.mark.parametrize("name", RATES)
def test_good_rates_are_kept(name):
    for value in (0, 0.0, 0.5, 0.99):
        assert getattr(Regularization(**{name: value}), name) == value


@pytest.mark.parametrize("value", ["word", "unti", None, True])
@pytest.mark.parametrize("name", ["normalization", "dropout_kind"])
def test_a_kind_that_is_not_registered_is_refused_with_those_that_are(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} is not known; ") as refusal:
        Regularization(**{name: value})
    meant = {"word": "choose one of", "unti": "did you mean unit?"}.get(value, "choose one of")
    if name == "dropout_kind":
        assert meant in str(refusal.value)


def test_plain_data_that_cannot_change():
    reg = Regularization(normalization="batch", dropout=0.3)
    for name in [field.name for field in dataclasses.fields(reg)]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(reg, name, getattr(reg, name))
    assert Regularization(**dataclasses.asdict(reg)) == reg
    assert hash(Regularization(**dataclasses.asdict(reg))) == hash(reg)
    assert dataclasses.replace(reg, dropout=0.4) != reg


@pytest.mark.parametrize(
    ("dims", "kind"),
    [(0, nn.BatchNorm1d), (1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)],
)
@pytest.mark.parametrize("sync_bn", ["auto", True, False])
def test_norm_layer_is_the_batch_norm_of_torch(dims, kind, sync_bn):
    reg = Regularization(normalization="batch", sync_bn=sync_bn)
    assert reg.normalized
    norm = reg.norm_layer(8, dims)
    assert type(norm) is kind
    assert norm.num_features == 8


@pytest.mark.parametrize("sync_bn", ["auto", True])
def test_batch_norm_is_synchronized_by_default(sync_bn):
    joined = Regularization(normalization="batch", sync_bn=sync_bn)
    assert joined.synchronized
    assert not dataclasses.replace(joined, sync_bn=False).synchronized


@pytest.mark.parametrize("kind", ["none", "ghost", "renorm", "split", "layer"])
def test_other_kinds_of_norm_are_not_synchronized(kind):
    assert not Regularization(normalization=kind).synchronized
    with pytest.raises(ValueError, match=f"sync_bn=true is for .*, and normalization={kind} has"):
        Regularization(normalization=kind, sync_bn=True)


@pytest.mark.parametrize("value", [0, 1, "true", "yes", None])
def test_synchronization_is_auto_or_true_or_false(value):
    with pytest.raises(ValueError, match=f"sync_bn is 'auto' or True or False, not {value!r}"):
        Regularization(sync_bn=value)


NORMS = {
    "batch": (nn.BatchNorm2d, MaskedBatchNorm),
    "ghost": (GhostBatchNorm, GhostBatchNorm),
    "renorm": (BatchRenorm, MaskedBatchNorm),
    "frozen": (FrozenBatchNorm, MaskedBatchNorm),
    "split": (SplitBatchNorm, SplitBatchNorm),
    "layer": (ChannelNorm, ChannelNorm),
    "group": (MaskedGroupNorm, MaskedGroupNorm),
    "rms": (ChannelNorm, ChannelNorm),
}


@pytest.mark.parametrize("kind", NORMS)
def test_each_normalization_is_made_and_trains_with_and_without_a_mask(kind):
    reg = Regularization(normalization=kind)
    plain, masked = reg.norm_layer(8, dims=2), reg.masked_norm_layer(8, dims=2)
    assert (type(plain), type(masked)) == NORMS[kind]
    x = torch.randn(64, 8, 4, 5, requires_grad=True)
    mask = torch.arange(5) < torch.randint(2, 6, (64, 1))
    for y in (plain(x), masked(x, mask)):
        assert y.shape == x.shape
        y.square().sum().backward()
    banded = reg.masked_norm_layer(8, dims=2, bands=2)
    own = kind not in ("layer", "group", "rms")
    assert type(banded) is (SubSpectralBatchNorm if own else NORMS[kind][1])
    assert banded(x, mask).shape == x.shape


@pytest.mark.parametrize("kind", NORMS)
def test_a_bias_is_redundant_before_a_norm_over_the_batch_only(kind):
    reg = Regularization(normalization=kind)
    assert (reg.prepare_layer(nn.Linear(2, 2)).bias is None) == reg.needs_batch
    torch.manual_seed(0)
    norm = reg.norm_layer(8, dims=0)
    for _ in range(3):
        norm(torch.randn(64, 8))
    x, shift = torch.randn(64, 8), torch.randn(8)
    assert torch.allclose(norm.train()(x), norm(x + shift), atol=1e-5) == reg.needs_batch


def test_norm_options_reach_the_norm():
    reg = Regularization(normalization="batch", norm_momentum=None, norm_eps=0.5, norm_affine=False)
    banded = reg.masked_norm_layer(8, dims=2, bands=2).norm
    for norm in (reg.norm_layer(8, dims=2), reg.masked_norm_layer(8, dims=1), banded):
        assert (norm.momentum, norm.eps, norm.affine) == (None, 0.5, False)
    ghost = Regularization(normalization="ghost", ghost_size=5)
    assert ghost.norm_layer(8, dims=2).size == 5
    assert ghost.masked_norm_layer(8, dims=1).size == 5


def test_masked_norm_layer_fits_the_dimensions_and_bands():
    reg = Regularization(normalization="batch", sync_bn=False)
    for dims in (1, 2):
        norm = reg.masked_norm_layer(8, dims)
        assert type(norm) is MaskedBatchNorm
        assert (norm.num_features, norm.dims, norm.kind) == (8, dims, "batch")
    banded = reg.masked_norm_layer(8, dims=2, bands=5)
    assert type(banded) is SubSpectralBatchNorm
    assert banded.bands == 5
    assert banded.norm.num_features == 40


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("kind", ["unit", "channel"])
def test_dropout_layer_drops_the_chosen_kind(kind, dims):
    layer = Regularization(dropout=0.3, dropout_kind=kind).dropout_layer(8, dims)
    # In a vector each channel is a single unit.
    channels = kind == "channel" and dims > 0
    assert type(layer) is (ChannelDropout if channels else Dropout)
    assert layer.p == 0.3


@pytest.mark.parametrize(
    ("kind", "expected", "site"),
    [
        ("locked", LockedDropout, {"time": True}),
        ("block", DropBlock, {}),
        ("gaussian", GaussianDropout, {}),
        ("alpha", AlphaDropout, {"selu": True}),
        ("concrete", ConcreteDropout, {}),
        ("variational", VariationalDropout, {}),
        ("kwinners", KWinners, {}),
    ],
)
def test_dropout_layer_of_each_further_kind(kind, expected, site):
    reg = Regularization(dropout=0.3, dropout_kind=kind, dropout_block=5)
    layer = reg.dropout_layer(8, dims=2, **site)
    assert type(layer) is expected
    assert torch.as_tensor(layer.p).item() == pytest.approx(0.3)
    assert getattr(layer, "block", 5) == 5
    # The mask is the same at all steps of the last dimension, which is time.
    if kind == "locked":
        dropped = layer(torch.ones(4, 8, 6, 5)) == 0
        assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
        assert not torch.equal(dropped, dropped[..., :1, :].expand_as(dropped))


@pytest.mark.parametrize(
    ("kind", "dims", "reason"),
    [
        ("block", 0, "the hidden layers are vectors"),
        ("locked", 2, "no time dimension"),
        ("alpha", 2, "is for SELU units"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused_with_the_reason(kind, dims, reason):
    with pytest.raises(ValueError, match=f"^dropout_kind={kind} .*{reason}"):
        Regularization(dropout=0.3, dropout_kind=kind).dropout_layer(8, dims)


@pytest.mark.parametrize("kind", ["unit", "channel"])
def test_each_site_has_its_own_rate(kind):
    reg = Regularization(
        dropout=0.1,
        dropout_kind=kind,
        input_dropout=0.2,
        head_dropout=0.3,
        embedding_dropout=0.4,
        weight_drop=0.5,
        layer_drop=0.6,
        token_dropout=0.7,
        attention_head_dropout=0.8,
    )
    for layer, expected, p in (
        (reg.input_dropout_layer(), Dropout, 0.2),
        (reg.words_dropout_layer(), LockedDropout, 0.2),
        (reg.head_dropout_layer(), Dropout, 0.3),
        (reg.embedding_layer(nn.Embedding(4, 4)), EmbeddingDropout, 0.4),
        (reg.weight_drop_layer(nn.Linear(4, 4)), WeightDrop, 0.5),
        (reg.layer_drop_layer(nn.Linear(4, 4)), LayerDrop, 0.6),
        (reg.token_dropout_layer(), TokenDropout, 0.7),
        (reg.attention_head_dropout_layer(dim=2), DropHead, 0.8),
        (reg.attention_dropout_layer(), AttentionDropout, 0.1),
    ):
        assert type(layer) is expected
        assert layer.p == p
    assert type(reg.drop_path_layer(0, 1)) is nn.Identity
    recurrent = reg.weight_drop_layer(nn.LSTM(4, 4), "weight_hh_l0")
    assert recurrent.names == ("weight_hh_l0",)


@pytest.mark.parametrize(("given", "expected"), [(None, 0.1), (0.3, 0.3), (0.0, None)])
def test_attention_dropout_is_that_of_the_hidden_layers_unless_it_is_given(given, expected):
    layer = Regularization(dropout=0.1, attention_dropout=given).attention_dropout_layer()
    assert getattr(layer, "p", None) == expected


@pytest.mark.parametrize("value", [1, -0.1, math.nan, "0.5", True])
def test_a_wrong_attention_dropout_is_refused(value):
    with pytest.raises(ValueError, match=f"^attention_dropout is a rate .*not {value!r}"):
        Regularization(attention_dropout=value)


def test_drop_path_grows_linearly_to_the_given_rate():
    reg = Regularization(drop_path=0.2)
    layers = [reg.drop_path_layer(block, blocks=4) for block in range(4)]
    assert all(type(layer) is DropPath for layer in layers)
    assert [layer.p for layer in layers] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_each_call_makes_a_new_layer():
    # A dropout layer could be shared, a norm could not: each call makes a new layer.
    reg = Regularization(normalization="batch", dropout=0.3, drop_path=0.2)
    assert reg.norm_layer(8, 2) is not reg.norm_layer(8, 2)
    assert reg.masked_norm_layer(8, 2) is not reg.masked_norm_layer(8, 2)
    assert reg.dropout_layer(8, 2) is not reg.dropout_layer(8, 2)


def test_importing_the_layers_loads_no_framework():
    code = "import sys, regain; print(*sys.modules)"
    root = Path(regain.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "torch" in loaded
    for name in ("lightning", "transformers", "torchvision.datasets", "wandb", "tasks"):
        assert not [module for module in loaded if f"{module}.".startswith(f"{name}.")]
