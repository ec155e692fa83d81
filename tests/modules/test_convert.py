"""Converted models of other libraries: training, copies, traces, and back to PyTorch."""

import copy
import io

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from regain import (
    Dropout,
    DropoutSchedule,
    DropPath,
    FrozenBatchNorm,
    GaussianDropout,
    GhostBatchNorm,
    Regularization,
    conversions,
    convert,
    dropout_rates,
    to_plain,
)
from tests.modules.foreignmodels import (
    BY_NAME,
    FULL,
    LABELS,
    SMALL,
    Model,
    differ,
    evaluated,
    fixture_of,
    hooks,
    inputs_of,
    layers_of,
    logits,
    made,
    ours,
    report,
)

foreign = fixture_of()

# As the presets in `configs/reg` set them.
PRESETS = {
    "none": Regularization(),
    "dropout": Regularization(dropout=0.05, dropout_kind="channel", head_dropout=0.2),
    "batchnorm": Regularization(normalization="batch"),
    "both": Regularization(normalization="batch", head_dropout=0.2),
    "drop-path": Regularization(normalization="batch", drop_path=0.1),
    "norm-ghost": Regularization(normalization="ghost", ghost_size=4),
    "norm-frozen": Regularization(normalization="frozen"),
    "norm-group": Regularization(normalization="group"),
}


@pytest.mark.parametrize("preset", [*PRESETS])
def test_presets_train(foreign: Model, preset: str) -> None:
    if preset == "drop-path" and foreign.branches is None and foreign.name != "timm-mobilenet":
        pytest.skip("its branches are not known")
    model, x = convert(made(foreign), PRESETS[preset]).train(), inputs_of(foreign)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    losses = []
    for _ in range(5):
        # The same masks in each step.
        torch.manual_seed(2)
        loss = nn.functional.cross_entropy(logits(model, x), LABELS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in model.state_dict().values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["torchvision-resnet18", "timm-mobilenet", "bert"])
def test_a_model_stays_in_its_mode(name: str, training: bool) -> None:
    model = made(BY_NAME[name]).train(training)
    convert(model, FULL)
    assert {layer.training for layer in model.modules()} == {training}
    convert(model, Regularization(normalization="ghost", dropout=0.2, dropout_kind="gaussian"))
    to_plain(model.train(not training))
    assert {layer.training for layer in model.modules()} == {not training}


def test_a_plain_model_holds_no_layer_of_ours(foreign: Model) -> None:
    model, x = made(foreign), inputs_of(foreign)
    # The first call of an encoder adds hooks.
    logits(model, x)
    kinds, own_hooks = [type(layer) for layer in model.modules()], hooks(model)
    path = 0.1 if foreign.branches else 0.0
    reg = Regularization(
        normalization="frozen",
        dropout=0.2,
        input_dropout=0.1,
        head_dropout=0.2,
        weight_drop=0.1,
        drop_path=path,
    )
    convert(model, reg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(logits(model, x), LABELS).backward()
    optimizer.step()
    expected, keys = evaluated(model, x), list(model.state_dict())
    assert to_plain(model) is model
    assert not ours(model)
    assert (evaluated(model, x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert list(model.state_dict()) == keys
    assert hooks(model) == own_hooks
    # Drop path of the model itself is gone.
    skipped = ("DropPath", "StochasticDepth", "NoneType", "Identity")
    back = [type(layer) for layer in model.modules()]
    assert [k for k in back if k.__name__ not in skipped] == [
        k for k in kinds if k.__name__ not in skipped
    ]
    fresh = foreign.make()
    fresh.load_state_dict(model.state_dict(), strict=True)


def test_what_pytorch_has_no_counterpart_of_stays() -> None:
    model = convert(made(BY_NAME["torchvision-resnet18"]), Regularization(normalization="layer"))
    convert(model, Regularization(dropout=0.1))
    with pytest.raises(ValueError, match=r"ResNet: bn1 \(ChannelNorm\)"):
        to_plain(model)
    assert layers_of(model, Dropout)


def test_dropout_of_ours_in_the_model_becomes_pytorchs() -> None:
    model = to_plain(nn.Sequential(Dropout(0.3), nn.Linear(2, 2), GaussianDropout(0.1)))
    assert [type(layer) for layer in model] == [nn.Dropout, nn.Linear, nn.Identity]
    assert model[0].p == 0.3


def test_a_second_conversion_replaces_the_first() -> None:
    kind = BY_NAME["timm-mobilenet"]
    model, x = made(kind), inputs_of(kind)
    kinds, expected = [type(layer) for layer in model.modules()], evaluated(model, x)
    first = Regularization(
        normalization="ghost", dropout=0.2, head_dropout=0.2, weight_drop=0.1, drop_path=0.2
    )
    convert(model, first)
    convert(model, Regularization(normalization="frozen", dropout=0.1))
    assert len(layers_of(model, FrozenBatchNorm)) == kind.norms
    assert not layers_of(model, GhostBatchNorm)
    assert set(dropout_rates(model).values()) == {0.1}
    convert(model, Regularization())
    assert [k for k in map(type, model.modules()) if k in kinds or k is not nn.Identity]
    assert not ours(model)
    assert torch.equal(evaluated(model, x), expected)


@pytest.mark.parametrize("name", ["torchvision-resnet18", "timm-mobilenet", "bert", "distilbert"])
@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_drops_by_its_own_layers(name: str, way: str) -> None:
    kind = BY_NAME[name]
    model, x = convert(made(kind), FULL), inputs_of(kind)
    if way == "copied":
        other = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert torch.equal(evaluated(other, x), evaluated(model, x))
    for layer in model.modules():
        if isinstance(layer, (Dropout, _DropoutNd)):
            layer.p = 0.0
    assert differ(other.train(), x)
    assert conversions(other) == conversions(model)
    assert not ours(to_plain(other))
    assert ours(model)


def test_hooks_of_a_new_process_do_not_replace_those_that_were_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = convert(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), Regularization(dropout=0.5))
    buffer = io.BytesIO()
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    convert(model, Regularization(dropout=0.5))
    torch.save(model, buffer)
    buffer.seek(0)
    # As in a process that has made no hook yet.
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = torch.load(buffer, weights_only=False)
    loaded[0].register_forward_hook(lambda *call: None)
    assert len(loaded[0]._forward_hooks) == 2
    assert differ(loaded.train(), torch.ones(8, 4))


def test_schedules_set_what_was_inserted() -> None:
    kind = BY_NAME["torchvision-resnet18"]
    model = convert(made(kind), Regularization(dropout=0.4, drop_path=0.4, head_dropout=0.4))
    rates, x = dropout_rates(model), inputs_of(kind)
    assert len(rates) == 9 + 8 + 1
    schedule = DropoutSchedule("late", steps=10)
    schedule.apply(model, rates, step=0)
    assert not differ(model.train(), x)
    schedule.apply(model, rates, step=10)
    assert dropout_rates(model) == rates
    assert differ(model, x)


def test_torch_fx_records_what_was_inserted() -> None:
    kind = BY_NAME["torchvision-resnet18"]
    reg = Regularization(normalization="ghost", dropout=0.2, head_dropout=0.2, drop_path=0.2)
    model, x = convert(made(kind), reg), inputs_of(kind)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(evaluated(traced, x), evaluated(model, x))
    for name in ("fc", "layer1.0.bn2", "layer1.0.relu"):
        only = traced.train()
        for layer in layers_of(only, (Dropout, DropPath)).values():
            layer.p = 0.0
        assert not differ(only, x)
        layers = layers_of(only.get_submodule(name), (Dropout, DropPath))
        (layer,) = layers.values()
        layer.p = 0.5
        assert differ(only, x), name


def test_torch_compile_takes_what_was_inserted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    reg = Regularization(normalization="frozen", dropout=0.5, head_dropout=0.5, input_dropout=0.5)
    convert(model, reg)
    x = torch.randn(8, 3, 4, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(evaluated(compiled, x), evaluated(model, x))
    assert differ(compiled.train(), x)


def test_gradients_reach_all_weights_through_what_was_inserted(foreign: Model) -> None:
    model, x = convert(made(foreign), FULL).train(), inputs_of(foreign)
    plain = made(foreign).train()
    missing = []
    for each in (model, plain):
        logits(each, x).square().sum().backward()
        missing.append({name for name, p in each.named_parameters() if p.grad is None})
    assert missing[0] == missing[1]


def test_the_log_says_what_was_changed_where(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    reg = Regularization(normalization="ghost", dropout=0.1, head_dropout=0.2, drop_path=0.1)
    model = convert(made(BY_NAME["torchvision-resnet18"]), reg)
    assert report(model).splitlines() == [
        "BatchNorm2d becomes GhostBatchNorm: bn1, layer1.0.bn1, layer1.0.bn2, layer1.1.bn1 and 16 "
        "more",
        "Dropout(p=0.1) after activations: relu, layer1.0.relu, layer1.1.relu, layer2.0.relu and 5 "
        "more",
        "Dropout(p=0.2) before the head: fc",
        "DropPath, p up to 0.1, in residual branches: layer1.0.bn2, layer1.1.bn2, layer2.0.bn2, "
        "layer2.1.bn2 and 4 more",
    ]
    assert [r.message for r in caplog.records] == [f"ResNet: {c}" for c in conversions(model)]
    assert [len(change.names) for change in conversions(model)] == [20, 9, 1, 8]


@pytest.mark.parametrize(
    ("reg", "said"),
    [
        (Regularization(norm_affine=False, normalization="batch"), "norm_affine=False"),
        (Regularization(weight_standardization=True), "weight_standardization=True .*rename"),
        (Regularization(embedding_dropout=0.1), "embedding_dropout=0.1 .*rename"),
        (Regularization(attention_head_dropout=0.1), "attention_head_dropout=0.1 .*heads"),
        (Regularization(token_dropout=0.1), "token_dropout=0.1 .*ResNet"),
        (Regularization(attention_dropout=0.1), "attention_dropout=0.1 .*ResNet"),
        (Regularization(layer_drop=0.1), "layer_drop=0.1 .*ResNet"),
        (Regularization(dropout=0.1, dropout_kind="locked"), "ResNet, relu: dropout_kind=locked"),
    ],
)
def test_what_has_no_place_is_refused(reg: Regularization, said: str) -> None:
    model = made(BY_NAME["torchvision-resnet18"])
    with pytest.raises(ValueError, match=said):
        convert(model, reg)
    assert not ours(model)


def test_a_body_without_a_classifier_has_no_head() -> None:
    body = transformers.BertModel(transformers.BertConfig(vocab_size=30, **SMALL))
    with pytest.raises(ValueError, match=r"head_dropout=0.1 .*BertModel"):
        convert(body, Regularization(head_dropout=0.1))
    headless = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(ValueError, match=r"head_dropout=0.1 .*ResNet"):
        convert(headless, Regularization(head_dropout=0.1))


def test_a_single_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d has no layers"):
        convert(nn.BatchNorm1d(3), Regularization(normalization="ghost"))
