"""Compatibility of the norms with PyTorch's: errors, devices, tracing, state dicts."""

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.func import functional_call

from regain import (
    BatchRenorm,
    ChannelNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    MaskedGroupNorm,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    SyncBatchNorm,
    average_buffers,
    batch_norm,
    masked_norm,
    recompute_statistics,
)
from regain.torchnorm import BATCH_NORMS

# By kind: a norm of four channels.
MAKERS = {
    "ghost": partial(GhostBatchNorm, 4, 2, 4),
    "renorm": partial(BatchRenorm, 4, 2),
    "sync": partial(SyncBatchNorm, 4, 2),
    "frozen": partial(FrozenBatchNorm, 4, 2),
    "split": partial(SplitBatchNorm, 4, 2),
    "bands": partial(SubSpectralBatchNorm, 4, 2),
    "masked": partial(MaskedBatchNorm, 4, 2),
    "layer": partial(ChannelNorm, 4),
    "group": partial(MaskedGroupNorm, 4, 2),
}
OVER_CHANNELS = ("layer", "group")
every_norm = pytest.mark.parametrize("name", MAKERS)
batch_norms = pytest.mark.parametrize("name", [n for n in MAKERS if n not in OVER_CHANNELS])
modes = pytest.mark.parametrize("training", [True, False])
STOCK = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def trained_norm(features=4, kind=nn.BatchNorm2d):
    norm = kind(features)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2.0)
    norm.num_batches_tracked.fill_(7)
    return norm


@batch_norms
@modes
@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 6), (8, 4, 6, 6, 6)])
def test_a_wrong_number_of_dimensions_is_the_error_of_batch_norm(name, training, shape):
    norm = MAKERS[name]().train(training)
    with pytest.raises(ValueError, match="expected 4D input") as expected:
        nn.BatchNorm2d(4)(noise(*shape))
    with pytest.raises(ValueError, match="expected 4D input") as found:
        norm(noise(*shape))
    assert str(found.value) == str(expected.value)
    assert all(layer.num_batches_tracked == 0 for layer in inner(norm))


@batch_norms
@modes
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("features", [1, 3, 5])
def test_a_wrong_number_of_channels_is_the_error_of_batch_norm(name, training, affine, features):
    norm = MAKERS[name](affine=affine).train(training)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(RuntimeError, match=r"running_mean should contain \d+ elements not \d+"):
        norm(noise(8, features, 6, 6))
    for key, value in norm.state_dict().items():
        # PyTorch counts the batch before it checks it.
        assert torch.equal(value, before[key]) or key.endswith("num_batches_tracked")


def inner(norm):
    return [layer for layer in norm.modules() if isinstance(layer, BATCH_NORMS)]


@every_norm
def test_device_and_type_are_those_asked_for(name):
    norm = MAKERS[name](device="meta", dtype=torch.float64)
    tensors = norm.state_dict()
    assert tensors
    assert all(value.is_meta for value in tensors.values())
    kinds = {value.dtype for key, value in tensors.items() if "num_batches" not in key}
    assert kinds == {torch.float64}
    assert MAKERS[name](dtype=torch.float64)(noise(8, 4, 6, 6).double()).dtype == torch.float64


@pytest.mark.parametrize(
    "kind", ["batch", "ghost", "renorm", "sync", "frozen", "split", "layer", "group", "rms"]
)
@pytest.mark.parametrize("make", [batch_norm, masked_norm])
def test_the_functions_pass_on_device_and_type(make, kind):
    norm = make(4, 1, kind, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in norm.parameters())
    if kind not in ("renorm", "frozen"):
        bare = make(4, 1, kind, track_running_stats=False)
        assert not list(bare.buffers())


@pytest.mark.parametrize("name", ["ghost", "sync", "bands", "masked", "split"])
def test_without_running_statistics_evaluation_uses_those_of_the_batch(name):
    norm = MAKERS[name](track_running_stats=False)
    assert not list(norm.buffers())
    x = noise(8, 4, 6, 6)
    norm(x)
    y = norm.eval()(x)
    if name == "bands":
        y = y.view(8, 8, 3, 6)
    moments = torch.stack((y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0) - 1))
    assert moments.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["renorm", "frozen"])
def test_a_norm_that_needs_running_statistics_cannot_do_without(name):
    with pytest.raises(ValueError, match=r"track_running_stats=False"):
        MAKERS[name](track_running_stats=False)
    with pytest.raises(ValueError, match=r"track_running_stats=False"):
        batch_norm(4, 2, name, track_running_stats=False)


@every_norm
@modes
def test_on_the_meta_device_it_is_made_shown_reset_and_called(name, training):
    with torch.device("meta"):
        norm = MAKERS[name]().train(training)
        y = norm(torch.empty(8, 4, 6, 6))
    assert y.is_meta
    assert y.shape == (8, 4, 6, 6)
    assert "device" not in repr(norm)
    norm.reset_parameters()
    filled = norm.to_empty(device="cpu")
    filled.reset_parameters()
    torch.testing.assert_close(filled.state_dict(), MAKERS[name]().state_dict())


@batch_norms
def test_resetting_restores_the_initial_statistics(name):
    norm = MAKERS[name]()
    first = copy.deepcopy(norm.state_dict())
    for layer in inner(norm):
        layer.running_mean.fill_(3.0)
        layer.running_var.fill_(3.0)
        layer.num_batches_tracked.fill_(3)
    norm.reset_running_stats()
    torch.testing.assert_close(norm.state_dict(), first)
    for parameter in norm.parameters():
        nn.init.constant_(parameter, 3.0)
    norm.reset_parameters()
    torch.testing.assert_close(norm.state_dict(), first)


@every_norm
@modes
def test_an_empty_batch_gives_an_empty_output_and_moves_no_statistic(name, training):
    norm = MAKERS[name]().train(training)
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(0, 4, 6, 6, requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    for key, value in norm.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 4), (0, 4, 3, 5)])
def test_masked_norms_over_channels_accept_an_empty_batch(shape):
    mask = torch.ones(0, shape[-1], dtype=torch.bool) if len(shape) > 2 else None
    for norm in (ChannelNorm(4), MaskedGroupNorm(4)):
        assert norm(torch.randn(shape), mask).shape == shape


@batch_norms
def test_without_epsilon_it_evaluates_as_batch_norm_does(name):
    norm = MAKERS[name](eps=0.0)
    layers = inner(norm)
    for layer in layers:
        layer.load_state_dict(trained_norm(layer.num_features).state_dict())
    x = noise(8, 4, 6, 6)
    y = norm.eval()(x)
    if name == "bands":
        x, y = x.view(8, 8, 3, 6), y.view(8, 8, 3, 6)
    plain = nn.BatchNorm2d(len(layers[0].weight), eps=0.0).eval()
    plain.load_state_dict({name: layers[0].state_dict()[name] for name in STOCK})
    torch.testing.assert_close(y, plain(x))


@every_norm
@modes
def test_a_trace_of_torchscript_does_the_same(name, training):
    norm = MAKERS[name]().train(training)
    twin = copy.deepcopy(norm)
    x = noise(8, 4, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(norm, x, check_trace=False)
    # Tracing calls the norm.
    twin(x)
    torch.testing.assert_close(traced(x + 1), twin(x + 1))
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


class Network(nn.Module):
    """A norm between two layers, to be traced."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), norm, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@every_norm
@modes
def test_a_graph_of_torch_fx_does_the_same_for_other_batches(name, training):
    model = Network(MAKERS[name]()).train(training)
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    for batch in (8, 13):
        x = noise(batch, 3, 6, 6)
        torch.testing.assert_close(graph(x), model(x))
    expected = model.state_dict()
    for key, value in graph.state_dict().items():
        torch.testing.assert_close(value, expected[key])


@every_norm
@pytest.mark.filterwarnings("ignore")
def test_quantization_prepares_and_converts_a_network_with_it(name):
    x = (noise(8, 3, 6, 6),)
    model = Network(MAKERS[name]()).eval()
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), x)
    torch.testing.assert_close(prepared(*x), model(*x))
    assert convert_fx(prepared)(*x).shape == (8, 2)
    trained = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(), x)
    trained(*x).sum().backward()
    assert trained(*x).shape == (8, 2)


@pytest.mark.parametrize("name", ["ghost", "split", "renorm", "frozen", "sync", "bands", "masked"])
def test_compiled_and_exported_it_trains_on_batches_of_every_size(name):
    model = MAKERS[name]().double()
    x = noise(8, 4, 6, 6).double()
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(other, (x,), dynamic_shapes=dynamic).module()
    for batch in (8, 23, 5):
        x = noise(batch, 4, 6, 6, seed=batch).double().requires_grad_()
        expected = model(x)
        torch.testing.assert_close(exported(x), expected)
        y = compiled(x)
        torch.testing.assert_close(y, expected)
        upstream = noise(*y.shape, seed=1).double()
        torch.testing.assert_close(
            torch.autograd.grad(y, x, upstream), torch.autograd.grad(expected, x, upstream)
        )
    for key, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value)
        torch.testing.assert_close(exported.state_dict()[key], value)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["ghost", "split", "bands", "masked"])
def test_parts_of_a_batch_read_a_mask_as_other_norms_do(name):
    norm = MAKERS[name]()
    twin = copy.deepcopy(norm)
    x, mask = noise(8, 4, 6, 6), torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(norm(x, mask), twin(x, mask.bool().expand(8, 6)))
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


# State dicts.


def made(kind):
    """Make a norm of four channels from names such as `ghost`, or `masked renorm`."""
    masked, _, inside = kind.partition(" ")
    return MaskedBatchNorm(4, 2, inside) if inside else MAKERS[masked]()


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "sync", "frozen"])
@pytest.mark.parametrize("make", [batch_norm, masked_norm])
@pytest.mark.parametrize("affine", [True, False])
def test_each_kind_has_the_keys_of_batch_norm(make, kind, dims, affine):
    stock = batch_norm(4, dims, affine=affine)
    assert isinstance(stock, nn.modules.batchnorm._BatchNorm)
    norm = make(4, dims, kind, affine=affine)
    assert list(norm.state_dict()) == list(stock.state_dict())


@pytest.mark.parametrize(("kind", "stock"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_over_channels_have_the_keys_of_those_of_torch(kind, stock, affine):
    norm, plain = ChannelNorm(4, kind, affine=affine), stock(4, elementwise_affine=affine)
    assert list(norm.state_dict()) == list(plain.state_dict())
    grouped = MaskedGroupNorm(4, 2, affine=affine)
    assert list(grouped.state_dict()) == list(nn.GroupNorm(2, 4, affine=affine).state_dict())


# By kind: the prefix of the keys in earlier releases.
OLDER = {
    "masked": ["norm."],
    "masked renorm": ["norm.norm."],
    "masked frozen": ["norm.norm."],
    "masked sync": ["norm."],
    "ghost": ["norm.norm."],
    "renorm": ["norm."],
    "frozen": ["norm."],
    "split": ["clean.norm.", "augmented.norm."],
}


@pytest.mark.parametrize("kind", OLDER)
@pytest.mark.parametrize("assign", [True, False])
def test_state_dicts_of_batch_norm_load(kind, assign):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), made(kind), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    plain = nn.Sequential(*model)
    plain[1] = trained_norm()
    state = copy.deepcopy(plain.state_dict())
    model.load_state_dict(state, strict=True, assign=assign)
    # The dict itself is not changed.
    torch.testing.assert_close(state, plain.state_dict())
    for norm in inner(model[1]):
        found = {name: norm.state_dict()[name] for name in STOCK}
        torch.testing.assert_close(found, dict(plain[1].state_dict()))
    x = noise(4, 3, 5, 5)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    # No two tensors share memory.
    tensors = [*model[1].parameters(), *model[1].buffers()]
    assert len({value.data_ptr() for value in tensors}) == 5 * len(inner(model[1]))


@pytest.mark.parametrize("kind", OLDER)
def test_state_dicts_of_earlier_releases_load(kind):
    olders = [trained_norm() for _ in OLDER[kind]]
    older = {
        f"0.{prefix}{name}": value
        for prefix, norm in zip(OLDER[kind], olders, strict=True)
        for name, value in norm.state_dict().items()
    }
    norm = made(kind)
    nn.Sequential(norm).load_state_dict(older, strict=True)
    for found, wanted in zip(inner(norm), olders, strict=True):
        for name in STOCK:
            assert torch.equal(found.state_dict()[name], wanted.state_dict()[name])


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("batch", "norm."),
        ("ghost", "norm.norm."),
        ("renorm", "norm.norm."),
        ("split", "clean.norm."),
    ],
)
def test_older_state_dicts_of_bands_load(kind, prefix):
    norm, older = SubSpectralBatchNorm(4, 2, kind), trained_norm(8).state_dict()
    state = {f"norm.{prefix}{name}": value for name, value in older.items()}
    if kind == "split":
        state |= {f"norm.augmented.norm.{name}": value for name, value in older.items()}
    norm.load_state_dict(state, strict=True)
    for name in STOCK:
        assert torch.equal(norm.norm.state_dict()[name], older[name])


@pytest.mark.parametrize(
    ("norm", "stock"),
    [
        (ChannelNorm(4), nn.LayerNorm(4)),
        (ChannelNorm(4, "rms"), nn.RMSNorm(4)),
        (MaskedGroupNorm(4, 2), nn.GroupNorm(2, 4)),
    ],
)
@pytest.mark.parametrize("prefix", ["", "norm."])
def test_state_dicts_of_norms_over_channels_load(norm, stock, prefix):
    for value in stock.parameters():
        nn.init.uniform_(value, 0.5, 2.0)
    state = {prefix + name: value for name, value in stock.state_dict().items()}
    norm.load_state_dict(state, strict=True)
    torch.testing.assert_close(dict(norm.state_dict()), dict(stock.state_dict()))


@pytest.mark.parametrize("name", ["masked", "ghost", "renorm", "frozen", "split"])
def test_missing_keys_and_wrong_sizes_are_reported(name):
    state = trained_norm().state_dict()
    # Like older files of torchvision: without `num_batches_tracked`.
    del state["num_batches_tracked"]
    state._metadata = {}
    MAKERS[name]().load_state_dict(state)
    del state["running_var"]
    with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
        MAKERS[name]().load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        MAKERS[name]().load_state_dict(trained_norm(5).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*extra"):
        MAKERS[name]().load_state_dict(trained_norm().state_dict() | {"extra": torch.ones(4)})


LIBRARIES = {
    "torchvision": lambda norm: torchvision.models.resnet18(num_classes=3, norm_layer=norm),
    "timm": lambda norm: timm.create_model("resnet18", num_classes=3, norm_layer=norm),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("make", [batch_norm, masked_norm])
@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "sync", "frozen", "split"])
def test_a_resnet_with_our_norms_and_a_stock_one_exchange_checkpoints(kind, make, library):
    torch.manual_seed(0)
    stock = LIBRARIES[library](nn.BatchNorm2d)
    for _ in range(2):
        stock(torch.randn(4, 3, 32, 32))
    ours = LIBRARIES[library](partial(make, dims=2, kind=kind))
    ours.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))
    # Back again after a training step.
    ours.train()(torch.randn(8, 3, 32, 32)).square().mean().backward()
    if kind != "split":
        assert set(ours.state_dict()) == set(stock.state_dict())
        stock.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(stock(x), ours.eval()(x))
    # Into a copy, and by `functional_call`.
    twin = copy.deepcopy(ours).eval()
    twin.load_state_dict(ours.state_dict(), strict=True)
    expected = ours.eval()(x)
    torch.testing.assert_close(twin(x), expected)
    torch.testing.assert_close(functional_call(twin, ours.state_dict(), (x,)), expected)
    recompute_statistics(ours, [torch.randn(4, 3, 32, 32)])
    average_buffers(ours)
    assert torch.equal(ours(x), expected) == (kind == "frozen")
