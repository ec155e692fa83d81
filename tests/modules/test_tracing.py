"""Layers under tracing, function transforms and lazy initialization."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.fx import symbolic_trace

from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    KWinners,
    LayerDrop,
    LearnedDropout,
    LockedDropout,
    VariationalConv2d,
    VariationalDropout,
    WeightDrop,
    WordDropout,
    alpha_dropout,
    channel_dropout,
    drop_path,
    dropout,
    gaussian_dropout,
    layer_drop,
    locked_dropout,
)

# Layers of images (batch, 4, 6, 6).
LAYERS = {
    "dropout": lambda: Dropout(0.5),
    "channel": lambda: ChannelDropout(0.5),
    "locked": lambda: LockedDropout(0.5),
    "gaussian": lambda: GaussianDropout(0.5),
    "alpha": lambda: AlphaDropout(0.5),
    "path": lambda: DropPath(0.5),
    "block": lambda: DropBlock(0.5),
    "concrete": lambda: ConcreteDropout(4, 0.5),
    "variational": lambda: VariationalDropout(4, 0.5),
    "noisy weights": lambda: VariationalConv2d(4, 4, 1, log_sigma2=0.0),
    "attention": lambda: AttentionDropout(0.5),
    "columns": lambda: AttentionDropout(0.5, columns=True, renormalize=True),
    "heads": lambda: DropHead(0.5),
    "winners": lambda: KWinners(4, 0.5),
    "weights": lambda: WeightDrop(nn.Conv2d(4, 4, 1)),
    "layer": lambda: LayerDrop(nn.Conv2d(4, 4, 1), 0.5),
}
by_layer = pytest.mark.parametrize("name", LAYERS)
RANDOM = [name for name in LAYERS if name != "winners"]


def images():
    torch.manual_seed(0)
    return torch.randn(5, 4, 6, 6)


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv, self.layer, self.last = nn.Conv2d(4, 4, 3, padding=1), layer, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.layer(self.conv(x).relu()))


def drawn(model, x, count=12):
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, LayerDrop):
            layer.generator = None
    return torch.stack([model(x) for _ in range(count)])


@by_layer
def test_symbolic_trace_records_the_layer_itself(name):
    model, x = Net(LAYERS[name]()), images()
    traced = symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "conv",
        "layer",
        "last",
    ]
    torch.testing.assert_close(drawn(traced, x), drawn(copy.deepcopy(model), x))
    if name in RANDOM:
        assert not torch.equal(*drawn(traced, x)[:2]) or name == "layer"
    # The graph follows the mode and the rate.
    torch.testing.assert_close(traced.eval()(x), model.eval()(x))
    traced.train()
    if hasattr(model.layer, "p") and not isinstance(model.layer, LearnedDropout):
        traced.layer.p = 0.0
        model.layer.p = 0.0
        torch.testing.assert_close(traced(x), model(x))


def test_layers_of_words_are_recorded_too():
    table = EmbeddingDropout(nn.Embedding(9, 3), 0.5)
    model = nn.Sequential(WordDropout(0.5, 1), table, nn.Linear(3, 2))
    ids = torch.randint(9, (5, 7))
    traced = symbolic_trace(model)
    torch.testing.assert_close(drawn(traced, ids), drawn(model, ids))
    torch.testing.assert_close(traced.eval()(ids), model.eval()(ids))


@pytest.mark.parametrize(
    "function",
    [dropout, channel_dropout, locked_dropout, gaussian_dropout, alpha_dropout, drop_path],
)
def test_symbolic_trace_records_a_function_as_one_step(function):
    class Called(nn.Module):
        def forward(self, x):
            return function(x * 2, 0.5, self.training).relu()

    traced, x = symbolic_trace(Called()), images()
    assert function in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(drawn(traced, x), drawn(Called(), x))


@pytest.mark.parametrize(
    "name", sorted(LAYERS.keys() - {"weights", "noisy weights", "layer", "winners"})
)
def test_a_layer_can_be_traced_by_itself(name):
    layer, x = LAYERS[name](), images()
    torch.testing.assert_close(drawn(symbolic_trace(layer), x), drawn(layer, x))


def test_tracing_a_single_layer_drop_is_refused():
    inner = nn.Linear(3, 3)

    class Called(nn.Module):
        def forward(self, x):
            return layer_drop(inner, x, p=0.5)

    with pytest.raises(RuntimeError, match=r"torch\.fx would record a single choice of LayerDrop"):
        symbolic_trace(Called())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@by_layer
def test_quantization_takes_the_layers(name):
    model, x = Net(LAYERS[name]()), images()
    prepared = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("fbgemm"), (x,))
    prepared(x).sum().backward()
    assert prepared.get_submodule("conv").weight.grad.any()
    model = Net(LAYERS[name]()).eval()
    prepared = prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (x,))
    with torch.no_grad():
        prepared(x)
        expected = model(x)
        error = (convert_fx(prepared)(x) - expected).abs().mean()
    assert error < 0.1 * expected.abs().mean()


@pytest.mark.parametrize(
    ("name", "training"),
    # torch.jit does not support torch.func.functional_call, which WeightDrop uses in training.
    [(name, mode) for name in LAYERS for mode in (True, False) if not mode or name != "weights"],
)
def test_jit_trace_takes_the_layers(name, training):
    model, x = Net(LAYERS[name]()).train(training), images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x, check_trace=False)
    y = traced(x)
    assert y.shape == x.shape
    if not training or name == "winners":
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    else:
        # Each call draws again instead of repeating the traced draw.
        draws = torch.stack([traced(x) for _ in range(20)])
        assert (draws != draws[0]).any()


def per_example(layer, x, randomness):
    return torch.func.vmap(lambda one: layer(one[None])[0], randomness=randomness)(x)


@pytest.mark.parametrize("name", RANDOM)
def test_vmap_draws_for_each_example_or_for_all(name):
    layer = LAYERS[name]()
    x = torch.ones(300, 4, 6, 6)
    y = per_example(layer, x, "different")
    assert y.shape == x.shape
    assert len(y.unique(dim=0)) > 1
    same = per_example(layer, x, "same")
    torch.testing.assert_close(same, same[:1].expand_as(same))
    assert torch.equal(per_example(layer.eval(), x, "error"), layer(x))


def test_vmap_draws_at_rate_p(assert_rate):
    x = torch.ones(400, 4, 15, 15)
    for layer in (Dropout(0.5), AlphaDropout(0.5)):
        assert_rate(per_example(layer, x, "different") <= 0, 0.5)


@by_layer
def test_gradients_of_each_example_by_vmap(name):
    model, x = Net(LAYERS[name]()), images()
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters, one):
        return torch.func.functional_call(model, parameters, one[None]).square().sum()

    if name == "winners":
        # It updates a buffer, like batch norm, which vmap does not support either.
        model.eval()
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(
        parameters, x
    )
    assert all(value.isfinite().all() for value in gradients.values())
    assert gradients["last.bias"].shape == (5, 4)


def fixed(layer):
    """Return a function of the input with a fixed draw."""

    def call(x):
        torch.manual_seed(3)
        return layer(x)

    return call


@by_layer
def test_derivatives_along_a_direction(name):
    # k-winners updates a buffer in training, like batch norm.
    layer = LAYERS[name]().train(name != "winners")
    call, x, direction = fixed(layer), images(), torch.randn(5, 4, 6, 6)
    y, tangent = torch.func.jvp(call, (x,), (direction,))
    step = 1e-2
    if name not in ("winners", "concrete", "noisy weights", "columns"):
        # The layers are affine in their input.
        expected = (call_under_func(call, x + step * direction) - y) / step
        torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        output = call(dual)
        assert torch.autograd.forward_ad.unpack_dual(output).tangent is not None


def call_under_func(call, x):
    """Call with the same draws as a transformed call."""
    return torch.func.jvp(call, (x,), (torch.zeros_like(x),))[0]


@by_layer
def test_batched_gradients_are_those_of_the_single_ones(name):
    layer, x = LAYERS[name](), images().double().requires_grad_()
    y = layer.double()(x)
    upstream = torch.randn(3, *y.shape, dtype=y.dtype)
    (batched,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    for one, gradient in zip(upstream, batched, strict=True):
        (expected,) = torch.autograd.grad(y, x, one, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


@by_layer
def test_layers_are_made_and_called_on_meta(name):
    with torch.device("meta"):
        model = Net(LAYERS[name]())
        y = model(torch.ones(2, 4, 6, 6))
    assert y.is_meta
    assert y.shape == (2, 4, 6, 6)
    assert repr(model) == repr(Net(LAYERS[name]()))
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.nn.init.ones_(model.conv.weight)
    assert model(images()).isfinite().all()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in Net(LAYERS[name]()).state_dict().items()
    }


def test_what_a_layer_computes_at_construction_is_reset_after_meta():
    with torch.device("meta"):
        words, concrete = WordDropout(0.9, 1, [0, 2]), ConcreteDropout(3, 0.2)
    assert repr(words) == "WordDropout(p=0.9, replacement=1, kept=[0, 2])"
    words.to_empty(device="cpu").reset_parameters()
    assert words.kept.tolist() == [0, 2]
    concrete.to_empty(device="cpu").reset_parameters()
    assert concrete.p.item() == pytest.approx(0.2)


@pytest.mark.parametrize("own_generator", [True, False])
@by_layer
def test_the_default_device_does_not_matter_to_layers_on_the_cpu(name, own_generator):
    layer, x = LAYERS[name](), images()
    if own_generator and hasattr(layer, "generator"):
        layer.generator = torch.Generator().manual_seed(0)
    torch.set_default_device("meta")
    try:
        y = layer(x)
    finally:
        torch.set_default_device(None)
    assert y.device.type == "cpu"


@by_layer
def test_empty_batches_are_taken(name):
    for x in (torch.empty(0, 4, 6, 6), torch.empty(0, 4, 6, 6).requires_grad_()):
        layer = LAYERS[name]()
        for _ in range(4):
            y = layer(x)
            assert y.shape == x.shape
            y.sum().backward() if y.requires_grad else None


def test_empty_texts_are_taken():
    for shape in ((0, 5), (3, 0)):
        ids = torch.zeros(shape, dtype=torch.long)
        assert WordDropout(0.5)(ids).shape == shape
        assert EmbeddingDropout(nn.Embedding(4, 2), 0.5)(ids).shape == (*shape, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("p", [0.25, 1.0])
def test_dropout_takes_nested_tensors_as_that_of_torch_does(layout, p):
    # More values than the minimum for a kernel.
    parts = [torch.ones(n, 900) for n in (3, 5)]
    x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    y = Dropout(p)(x)
    assert [part.shape for part in y.unbind()] == [part.shape for part in parts]
    values = torch.cat([part.flatten() for part in y.unbind()])
    expected = [0.0, 4 / 3] if p < 1 else [0.0]
    assert sorted(set(values.tolist())) == pytest.approx(expected)
    values.sum().backward()
    for part, gradient in zip(y.unbind(), x.grad.unbind(), strict=True):
        torch.testing.assert_close(part, gradient)
