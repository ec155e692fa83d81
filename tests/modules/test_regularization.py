import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import modules
from modules import (
    ChannelDropout,
    Dropout,
    DropPath,
    LockedDropout,
    MaskedBatchNorm,
    MaskedIdentity,
    Regularization,
    SubSpectralBatchNorm,
)

RATES = ["dropout", "input_dropout", "head_dropout", "drop_path", "label_smoothing"]


def test_default_asks_for_nothing():
    reg = Regularization()
    assert not reg.normalized
    for dims in range(4):
        assert type(reg.norm_layer(8, dims)) is nn.Identity
        assert type(reg.dropout_layer(dims)) is nn.Identity
    for bands in (1, 5):
        assert type(reg.masked_norm_layer(8, dims=2, bands=bands)) is MaskedIdentity
    assert type(reg.sequence_dropout_layer()) is nn.Identity
    assert type(reg.input_dropout_layer()) is nn.Identity
    assert type(reg.embedding_dropout_layer()) is nn.Identity
    assert type(reg.head_dropout_layer()) is nn.Identity
    assert type(reg.drop_path_layer(block=3, blocks=4)) is nn.Identity
    assert (reg.weight_decay, reg.label_smoothing, reg.early_stopping) == (0.0, 0.0, 0)


def test_channel_kind_without_a_rate_asks_for_nothing():
    reg = Regularization(dropout_kind="channel")
    assert type(reg.dropout_layer(dims=2)) is nn.Identity
    assert type(reg.sequence_dropout_layer()) is nn.Identity


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} is a rate") as refusal:
        Regularization(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalization", "layer"),
        ("normalization", None),
        ("normalization", True),
        ("dropout_kind", "word"),
        ("dropout_kind", None),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("weight_decay", "0.1"),
        ("weight_decay", True),
        ("weight_decay", None),
        ("early_stopping", -1),
        ("early_stopping", 1.5),
        ("early_stopping", math.nan),
        ("early_stopping", "3"),
        ("early_stopping", True),
        ("early_stopping", None),
    ],
)
def test_wrong_value_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as refusal:
        Regularization(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


@pytest.mark.parametrize("name", RATES)
def test_good_rates_are_kept(name):
    for value in (0, 0.0, 0.5, 0.99):
        assert getattr(Regularization(**{name: value}), name) == value


def test_good_amounts_are_kept():
    reg = Regularization(weight_decay=5.0, early_stopping=3)
    assert (reg.weight_decay, reg.early_stopping) == (5.0, 3)
    assert Regularization(weight_decay=1).weight_decay == 1


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
def test_norm_layer_fits_the_dimensions(dims, kind):
    reg = Regularization(normalization="batch")
    assert reg.normalized
    norm = reg.norm_layer(8, dims)
    assert type(norm) is kind
    assert norm.num_features == 8


def test_masked_norm_layer_fits_the_dimensions_and_bands():
    reg = Regularization(normalization="batch")
    for dims, kind in ((1, nn.BatchNorm1d), (2, nn.BatchNorm2d)):
        norm = reg.masked_norm_layer(8, dims)
        assert type(norm) is MaskedBatchNorm
        assert type(norm.norm) is kind
        assert norm.norm.num_features == 8
    banded = reg.masked_norm_layer(8, dims=2, bands=5)
    assert type(banded) is SubSpectralBatchNorm
    assert banded.bands == 5
    assert banded.norm.norm.num_features == 40


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("kind", ["unit", "channel"])
def test_dropout_layer_drops_the_chosen_kind(kind, dims):
    layer = Regularization(dropout=0.3, dropout_kind=kind).dropout_layer(dims)
    # The channel of a vector is its unit.
    channels = kind == "channel" and dims > 0
    assert type(layer) is (ChannelDropout if channels else Dropout)
    assert layer.p == 0.3


@pytest.mark.parametrize(("kind", "expected"), [("unit", Dropout), ("channel", LockedDropout)])
def test_sequence_dropout_layer_drops_the_chosen_kind(kind, expected):
    layer = Regularization(dropout=0.3, dropout_kind=kind).sequence_dropout_layer()
    assert type(layer) is expected
    assert layer.p == 0.3


@pytest.mark.parametrize("kind", ["unit", "channel"])
def test_each_site_has_its_own_rate(kind):
    reg = Regularization(dropout=0.1, dropout_kind=kind, input_dropout=0.2, head_dropout=0.3)
    for layer, expected, p in (
        (reg.input_dropout_layer(), Dropout, 0.2),
        (reg.embedding_dropout_layer(), LockedDropout, 0.2),
        (reg.head_dropout_layer(), Dropout, 0.3),
    ):
        assert type(layer) is expected
        assert layer.p == p
    assert type(reg.drop_path_layer(0, 1)) is nn.Identity


def test_drop_path_grows_linearly_to_the_given_rate():
    reg = Regularization(drop_path=0.2)
    layers = [reg.drop_path_layer(block, blocks=4) for block in range(4)]
    assert all(type(layer) is DropPath for layer in layers)
    assert [layer.p for layer in layers] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_layers_are_made_anew():
    # One dropout may be shared, one norm may not; nobody should have to know.
    reg = Regularization(normalization="batch", dropout=0.3, drop_path=0.2)
    assert reg.norm_layer(8, 2) is not reg.norm_layer(8, 2)
    assert reg.masked_norm_layer(8, 2) is not reg.masked_norm_layer(8, 2)
    assert reg.dropout_layer(2) is not reg.dropout_layer(2)


def test_importing_the_layers_loads_no_framework():
    code = "import sys, modules; print(*sys.modules)"
    root = Path(modules.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "torch" in loaded
    for name in ("lightning", "transformers", "torchvision.datasets", "wandb", "tasks"):
        assert not [module for module in loaded if f"{module}.".startswith(f"{name}.")]
