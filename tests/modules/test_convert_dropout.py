"""Dropout and drop path in models of other libraries under `convert`."""

import copy
import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from regain import (
    ChannelDropout,
    Dropout,
    DropPath,
    GaussianDropout,
    Regularization,
    VariationalDropout,
    conversions,
    convert,
    dropout_rates,
    mc_dropout,
    mc_predict,
    to_plain,
)
from tests.modules.foreignmodels import (
    BY_NAME,
    Model,
    differ,
    evaluated,
    fixture_of,
    images,
    inputs_of,
    layers_of,
    logits,
    made,
    report,
    wav2vec2,
    words,
)

foreign = fixture_of()
branched = fixture_of(choose=lambda model: model.branches)


def test_the_default_turns_all_dropout_off_and_changes_nothing_else(foreign: Model) -> None:
    model, x = made(foreign), inputs_of(foreign)
    expected, state = evaluated(model, x), copy.deepcopy(model.state_dict())
    kinds = [type(layer) for layer in model.modules()]
    convert(model, Regularization())
    assert [type(layer) for layer in model.modules()] == kinds
    assert torch.equal(evaluated(model, x), expected)
    assert list(model.state_dict()) == list(state)
    assert not differ(model.train(), x)


@pytest.mark.filterwarnings("ignore:mc_dropout cannot turn on the dropout of .*attn")
@pytest.mark.filterwarnings("ignore:mc_dropout cannot turn on the dropout of .*attention")
@pytest.mark.parametrize(
    "setting", ["dropout", "head_dropout", "input_dropout", "weight_drop", "drop_path"]
)
def test_each_rate_acts_in_training_alone(foreign: Model, setting: str) -> None:
    if setting == "drop_path" and foreign.branches is None:
        pytest.skip("its branches are not known")
    model, x = made(foreign), inputs_of(foreign)
    expected, keys = evaluated(model, x), list(model.state_dict())
    convert(model, Regularization(**{setting: 0.3}))
    assert list(model.state_dict()) == keys
    assert (evaluated(model, x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert differ(model.train(), x)
    assert conversions(model)
    with mc_dropout(model):
        assert differ(model, x)


def test_the_head_is_found(foreign: Model) -> None:
    model = convert(made(foreign), Regularization(head_dropout=0.3))
    rates = {name: p for name, p in dropout_rates(model).items() if p}
    assert [*rates.values()] == [0.3]
    assert [name.removesuffix(".regain_input_dropout") for name in rates] == [foreign.head]


def test_dropout_follows_each_activation_of_a_model_without_its_own() -> None:
    model = convert(made(BY_NAME["torchvision-resnet18"]), Regularization(dropout=0.1))
    blocks = [f"layer{stage}.{block}.relu" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert dropout_rates(model) == {f"{n}.regain_dropout": 0.1 for n in ("relu", *blocks)}
    # A block calls its one ReLU twice.
    block, seen = model.layer1[0], []
    block.relu.regain_dropout.register_forward_hook(lambda *call: seen.append(call))
    block.train()(torch.randn(2, 64, 4, 4))
    assert len(seen) == 2


def test_dropout_is_not_put_into_gates() -> None:
    model = convert(made(BY_NAME["torchvision-mobilenet"]), Regularization(dropout=0.1))
    sites = [name for name, p in dropout_rates(model).items() if p]
    assert sites
    assert not [name for name in sites if "fc" in name or ".block.2.activation" in name]
    assert any(type(m).__name__ == "SqueezeExcitation" for m in model.modules())


def test_dropout_of_its_own_gets_the_rate_and_no_other_is_added() -> None:
    model = made(BY_NAME["bert"])
    names = list(dropout_rates(model))
    reg = Regularization(dropout=0.2, attention_dropout=0.3, head_dropout=0.4)
    rates = dropout_rates(convert(model, reg))
    assert list(rates) == names
    for name, p in rates.items():
        assert p == (0.4 if name == "dropout" else 0.3 if ".self." in name else 0.2), name


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("torchvision-vit", "encoder.layers.encoder_layer_1.self_attention.dropout"),
        ("torchvision-swin", "features.1.0.attn.attention_dropout"),
        ("timm-vit", "blocks.1.attn.attn_drop.p"),
        ("distilbert", "distilbert.transformer.layer.1.attention.dropout.p"),
        ("hf-vit", "vit.layers.1.attention.attention_dropout"),
        ("wav2vec2", "wav2vec2.encoder.layers.1.attention.dropout"),
    ],
)
def test_attention_has_a_rate_of_its_own(name: str, rate: str) -> None:
    kind = BY_NAME[name]
    for reg, p in [
        (Regularization(attention_dropout=0.3), 0.3),
        (Regularization(dropout=0.2), 0.2),
        (Regularization(dropout=0.2, attention_dropout=0.0), 0.0),
    ]:
        model = convert(made(kind), reg)
        assert _at(model, rate) == p
    x = inputs_of(kind)
    assert differ(convert(model, Regularization(attention_dropout=0.3)).train(), x)


def test_the_projection_of_attention_has_the_rate_of_hidden_layers() -> None:
    reg = Regularization(dropout=0.2, attention_dropout=0.3)
    model = convert(made(BY_NAME["timm-vit"]), reg)
    assert model.blocks[1].attn.proj_drop.p == 0.2
    assert model.blocks[1].attn.attn_drop.p == 0.3
    # By the name of the layer alone.
    mixer = nn.ModuleDict({"attn_drop": nn.Dropout(0.5), "drop": nn.Dropout(0.5)})
    assert dropout_rates(convert(mixer, reg)) == {"attn_drop": 0.3, "drop": 0.2}


def _at(model: nn.Module, path: str) -> Any:
    owner, _, attribute = path.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def test_a_kind_of_dropout_follows_the_layer_before_it() -> None:
    model = convert(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 8),
            nn.GELU(),
            nn.Linear(8, 2),
            nn.Tanh(),
        ),
        Regularization(dropout=0.2, dropout_kind="channel"),
    )
    assert isinstance(model[2].regain_dropout, ChannelDropout)
    assert isinstance(model[5].regain_dropout, Dropout)
    # What follows the head is no hidden layer.
    assert [*dropout_rates(model)] == ["2.regain_dropout", "5.regain_dropout"]


def test_own_dropout_becomes_another_kind_and_back() -> None:
    kind = BY_NAME["bert"]
    model, x = made(kind), inputs_of(kind)
    own = [name for name in dropout_rates(model) if name != "dropout" and ".self." not in name]
    convert(model, Regularization(dropout=0.2, dropout_kind="gaussian"))
    assert [*layers_of(model, GaussianDropout)] == own
    assert differ(model.train(), x)
    to_plain(model)
    for name in own:
        assert type(model.get_submodule(name)) is nn.Dropout
        assert model.get_submodule(name).p == 0.2


def test_a_kind_with_state_needs_a_sequence_that_shows_its_width() -> None:
    reg = Regularization(dropout=0.2, dropout_kind="variational")
    model = convert(nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2)), reg)
    (layer,) = layers_of(model, VariationalDropout).values()
    assert layer(torch.ones(2, 7)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"dropout_kind=variational.*relu.*ResNet"):
        convert(made(BY_NAME["torchvision-resnet18"]), reg)


def test_text_drops_features_of_the_embedding() -> None:
    model = convert(made(BY_NAME["bert"]), Regularization(input_dropout=0.5)).train()
    embedded = model.bert.embeddings.word_embeddings(words())
    dropped = embedded == 0
    assert 0.2 < dropped.float().mean() < 0.8
    # One mask for all steps.
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


def test_weights_are_dropped_for_the_whole_batch_at_once() -> None:
    kind = BY_NAME["torchvision-resnet18"]
    model = convert(made(kind), Regularization(weight_drop=0.5))
    x = torch.ones(6, 512)
    y = model.fc.train()(x)
    assert torch.equal(y, y[:1].expand_as(y))
    assert not torch.equal(y, model.fc(x))
    # Passes with one draw for the batch run one by one.
    model.eval()
    assert mc_predict(model, inputs_of(kind), passes=4).mutual_information.max() > 1e-6


def test_rates_of_functions_become_zero_and_dropout_is_a_layer_instead() -> None:
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5, drop_rate=0.4)
    x = images()
    assert differ(model.train(), x)
    convert(model, Regularization())
    assert not differ(model, x)
    assert "drop_rate of _DenseLayer set to 0.0" in report(model)
    model = convert(timm.create_model("resnet18", drop_rate=0.4), Regularization())
    assert not differ(model.train(), x)


def test_layer_drop_is_set_in_a_copy_of_the_configuration() -> None:
    model = wav2vec2(layerdrop=0.4).train()
    config = model.config
    convert(model, Regularization(layer_drop=0.25))
    assert config.layerdrop == 0.4
    assert model.config.layerdrop == 0.25
    assert model.wav2vec2.encoder.config is model.config
    with pytest.raises(ValueError, match=r"layer_drop=0.25 .* ResNet"):
        convert(made(BY_NAME["torchvision-resnet18"]), Regularization(layer_drop=0.25))


def test_dropout_between_recurrent_layers() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, num_layers=2, dropout=0.5))
    assert convert(model, Regularization(dropout=0.1))[0].dropout == 0.1
    with pytest.raises(ValueError, match=r"dropout=0.1 finds no activation layer"):
        convert(nn.Sequential(nn.LSTM(3, 4)), Regularization(dropout=0.1))


def test_drop_path_drops_the_whole_branch(branched: Model) -> None:
    model, x = convert(made(branched), Regularization(drop_path=0.5)), inputs_of(branched)
    paths = [*layers_of(model, DropPath).values()]
    inside = [p for name, p in model.named_parameters() if re.search(branched.branches, name)]
    assert len(inside) > 3

    def moved(p: float) -> float:
        """How far the output moves with the weights of the branches."""
        for path in paths:
            path.p = p
        with mc_dropout(model), torch.no_grad():
            before = logits(model, x)
            for parameter in inside:
                parameter.mul_(1.5)
            after = logits(model, x)
            for parameter in inside:
                parameter.div_(1.5)
        return float((after - before).abs().max())

    assert moved(0.0) > 1e-4
    assert moved(1.0) == 0.0


def test_a_branch_that_ends_in_a_sequence_is_dropped_once() -> None:
    kind = BY_NAME["torchvision-vit"]
    model = convert(made(kind), Regularization(drop_path=0.5)).train()
    calls = []
    for name, layer in layers_of(model, DropPath).items():
        layer.register_forward_hook(lambda *call, name=name: calls.append(name))
    logits(model, inputs_of(kind))
    ends = ("dropout", "mlp.4")
    assert calls == [
        f"encoder.layers.encoder_layer_{block}.{end}.regain_drop_path"
        for block in (0, 1)
        for end in ends
    ]


def test_drop_path_grows_linearly_with_depth(branched: Model) -> None:
    model = convert(made(branched), Regularization(drop_path=0.4))
    rates = [layer.p for layer in layers_of(model, DropPath).values()]
    blocks = len(set(rates))
    assert sorted(set(rates)) == pytest.approx([0.4 * (i + 1) / blocks for i in range(blocks)])
    assert rates == sorted(rates)
    assert blocks >= 2


@pytest.mark.parametrize(
    "name",
    ["torchvision-mobilenet", "torchvision-vgg", "torchvision-densenet"],
)
def test_unknown_branches_are_refused_and_the_model_stays(name: str) -> None:
    model = made(BY_NAME[name])
    rates, kinds = dropout_rates(model), [type(layer) for layer in model.modules()]
    reg = Regularization(normalization="ghost", dropout=0.3, drop_path=0.1)
    with pytest.raises(ValueError, match=rf"drop_path=0.1 .* {type(model).__name__}"):
        convert(model, reg)
    assert dropout_rates(model) == rates
    assert [type(layer) for layer in model.modules()] == kinds
    assert conversions(model) == []


def test_drop_path_of_the_model_is_turned_off() -> None:
    for kind in (BY_NAME["timm-mobilenet"], BY_NAME["torchvision-swin"]):
        model, x = made(kind), inputs_of(kind)
        assert differ(model.train(), x)
        assert not differ(convert(model, Regularization()), x)
