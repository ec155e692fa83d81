"""Where a norm of ours stands for one of PyTorch's: errors, devices, tracing, state dicts."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from modules import (
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

# By the name of a kind: a norm of four channels.
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
    with pytest.raises(ValueError, match=r"expected 4D input|dims=2 is for") as found:
        norm(noise(*shape))
    if name not in ("ghost", "split", "masked"):
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
        # PyTorch counts the batch before it looks at it.
        assert torch.equal(value, before[key]) or key.endswith("num_batches_tracked")


def inner(norm):
    return [layer for layer in norm.modules() if isinstance(layer, _BatchNorm)]


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
def test_the_functions_hand_on_device_and_type(make, kind):
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
def test_a_norm_that_is_made_of_running_statistics_refuses_to_go_without(name):
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
def test_resetting_gives_the_first_statistics_back(name):
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
def test_masked_norms_over_channels_take_an_empty_batch(shape):
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
    plain.load_state_dict(layers[0].state_dict())
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
    # Tracing is a call.
    twin(x)
    torch.testing.assert_close(traced(x + 1), twin(x + 1))
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


class Network(nn.Module):
    """A norm between two layers, as tracers meet one."""

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


@pytest.mark.parametrize("name", ["ghost", "split", "renorm", "frozen", "sync", "bands"])
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


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("masked", ["norm"]),
        ("masked renorm", ["norm.norm"]),
        ("masked frozen", ["norm.norm"]),
        ("masked sync", ["norm"]),
        ("ghost", ["norm.norm"]),
        ("renorm", ["norm"]),
        ("frozen", ["norm"]),
        ("split", ["clean.norm", "augmented.norm"]),
    ],
)
@pytest.mark.parametrize("assign", [True, False])
def test_state_dicts_of_batch_norm_and_older_ones_load(kind, names, assign):
    masked, _, inside = kind.partition(" ")
    norm = MaskedBatchNorm(4, 2, inside) if inside else MAKERS[masked]()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    plain = nn.Sequential(*model)
    plain[1] = trained_norm()
    state = copy.deepcopy(plain.state_dict())
    model.load_state_dict(state, strict=True, assign=assign)
    # What was handed over is as it was.
    torch.testing.assert_close(state, plain.state_dict())
    for name in names:
        found = model[1].get_submodule(name).state_dict()
        torch.testing.assert_close(found, plain[1].state_dict())
    x = noise(4, 3, 5, 5)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    # Training moves what belongs to the layer, each tensor once.
    tensors = [*model[1].parameters(), *model[1].buffers()]
    assert len({value.data_ptr() for value in tensors}) == 5 * len(names)
    # The names of before.
    older = {f"{name}.{part}": plain[1].state_dict()[part] for name in names for part in STOCK}
    fresh = MaskedBatchNorm(4, 2, inside) if inside else MAKERS[masked]()
    fresh.load_state_dict(older, strict=True)
    torch.testing.assert_close(fresh.state_dict(), model[1].state_dict())


@pytest.mark.parametrize("name", ["masked", "ghost", "renorm", "frozen", "split"])
def test_what_is_missing_or_of_another_size_is_told(name):
    state = trained_norm().state_dict()
    # As torchvision's older files: no count of the batches.
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


@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "sync", "frozen", "split"])
def test_a_resnet_with_our_norms_opens_a_stock_checkpoint(kind):
    torch.manual_seed(0)
    stock = torchvision.models.resnet18(num_classes=3)
    for _ in range(2):
        stock(torch.randn(4, 3, 32, 32))
    ours = torchvision.models.resnet18(
        num_classes=3, norm_layer=lambda features: batch_norm(features, dims=2, kind=kind)
    )
    ours.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))
    # And what it saves opens again, in a copy and as the arguments of a call.
    twin = copy.deepcopy(ours)
    twin.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(twin(x), ours(x))
    torch.testing.assert_close(functional_call(twin, ours.state_dict(), (x,)), ours(x))
    # What follows the batches works on the layers inside.
    recompute_statistics(ours, [torch.randn(4, 3, 32, 32)])
    average_buffers(ours)
    moved = kind != "frozen"
    assert torch.equal(ours(x), stock(x)) != moved
