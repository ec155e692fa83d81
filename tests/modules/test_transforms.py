"""Layers with kernels under vmap, tracing, compilation and on the meta device."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

from regain import (
    AlphaDropout,
    ChannelNorm,
    DropBlock,
    Dropout,
    MaskedBatchNorm,
    MaskedGroupNorm,
    drop_block,
    dropout,
)

# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")

MASK = torch.tensor([[1] * 20, [1] * 12 + [0] * 8, [0, 1] * 10, [1] + [0] * 19] * 2).bool()
LAYERS = {
    "Dropout": lambda: Dropout(0.5),
    "AlphaDropout": lambda: AlphaDropout(0.5),
    "DropBlock": lambda: DropBlock(0.5),
    "coupled": lambda: DropBlock(0.5, couple_channels=True),
    "MaskedBatchNorm": lambda: MaskedBatchNorm(4, dims=2),
    "MaskedGroupNorm": lambda: MaskedGroupNorm(4),
    "ChannelNorm": lambda: ChannelNorm(4),
}
NORMS = [name for name in LAYERS if "Norm" in name]


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def inputs(layer, batch=8, seed=0):
    x = torch.randn(batch, 4, 15, 20, generator=torch.Generator().manual_seed(seed))
    return (x, MASK[:batch]) if "Norm" in type(layer).__name__ else (x,)


def test_gradients_may_be_batched(layer):
    x, *mask = inputs(layer)
    x.requires_grad_()
    y = layer(x, *mask)
    wanted = (x, *layer.parameters())
    upstream = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, wanted, upstream, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, wanted, one, retain_graph=True) for one in upstream]
    for found, expected in zip(batched, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_jacobians_may_be_vectorized(name):
    layer = LAYERS[name]()
    x, mask = inputs(layer, 2)
    x = x[:, :, :2]

    def some(x):
        return layer(x, mask)[:, 0, 0, :5]

    torch.testing.assert_close(jacobian(some, x, vectorize=True), jacobian(some, x))


def test_jacobians_of_dropout_may_be_vectorized():
    x = torch.randn(2, 4, 15, 40)
    for function in (dropout, drop_block):
        seen = []

        def some(x, function=function, seen=seen):
            y = function(x, 0.5)
            seen.append(y.detach()[0, 0, 0, :5])
            return y[0, 0, 0, :5]

        found = jacobian(some, x, vectorize=True)
        expected = torch.zeros_like(found)
        for index in range(5):
            expected[index, 0, 0, 0, index] = 2.0 * (seen[0][index] != 0)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
@pytest.mark.parametrize("name", ["MaskedBatchNorm", "MaskedGroupNorm"])
def test_each_input_of_a_masked_norm_may_have_a_tangent(name, which):
    norm = LAYERS[name]().double()
    x, mask = inputs(norm)
    given = {"x": x.double(), **{k: v.detach() for k, v in norm.named_parameters()}}

    def of(value):
        values = given | {which: value}
        return torch.func.functional_call(copy.deepcopy(norm), values, (values.pop("x"), mask))

    tangent, small = torch.randn_like(given[which]), 1e-6
    with forward_ad.dual_level():
        y = of(forward_ad.make_dual(given[which], tangent))
        found = forward_ad.unpack_dual(y).tangent
    about = (of(given[which] + small * tangent) - of(given[which] - small * tangent)) / (2 * small)
    torch.testing.assert_close(found, about, rtol=1e-5, atol=1e-5)


def test_another_default_device_changes_nothing(layer):
    given = inputs(layer)
    torch.manual_seed(0)
    expected = layer(*given)
    with torch.device("meta"):
        torch.manual_seed(0)
        assert torch.equal(layer(*given), expected)
    torch.set_default_device("meta")
    try:
        torch.manual_seed(0)
        assert torch.equal(layer(*given), expected)
    finally:
        torch.set_default_device(None)


def test_shapes_are_known_on_meta(layer):
    given = [one.to("meta") for one in inputs(layer)]
    given[0].requires_grad_()
    y = layer.to("meta")(*given)
    y.sum().backward()
    assert y.shape == given[0].grad.shape == given[0].shape


class Model(nn.Module):
    """A layer between other layers."""

    def __init__(self, layer):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)
        self.layer = layer

    def forward(self, x, mask=None):
        x = self.convolution(x)
        return self.layer(x) if mask is None else self.layer(x, mask)


def with_mask(layer):
    """The model in a form that `torch.fx` can trace: without a mask, the argument is None."""
    fixed = {} if len(inputs(layer)) == 2 else {"mask": None}
    return Model(layer), fixed


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_can_be_traced_by_fx(layer, training):
    model, fixed = with_mask(layer)
    model.train(training)
    twin = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(model, concrete_args=fixed or None)
    given = inputs(layer)
    torch.manual_seed(0)
    expected = twin(*given)
    torch.manual_seed(0)
    y = traced(*given)
    if training and len(given) == 1:
        # The mask may differ from that of the layer, and differs in each call.
        assert 0 < (y == traced(*given)).float().mean() < 0.9
    else:
        torch.testing.assert_close(y, expected)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(traced.get_buffer(name), value)
    # The graph follows the mode, as with PyTorch's own layers.
    torch.testing.assert_close(traced.eval()(*given), twin.eval()(*given))


@pytest.mark.parametrize("name", NORMS)
def test_a_masked_norm_by_itself_can_be_traced_by_fx(name):
    layer = LAYERS[name]()
    given, twin = inputs(layer), copy.deepcopy(layer)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(*given), twin(*given))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_can_be_quantized(layer, training):
    if len(inputs(layer)) == 1:
        model, given = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer), inputs(layer)
    else:
        model, given = Model(layer), inputs(layer)
    prepare = prepare_qat_fx if training else prepare_fx
    mapping = get_default_qat_qconfig_mapping() if training else get_default_qconfig_mapping()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare(model.train(training), mapping, given)
        assert prepared(*given).shape == given[0].shape


def test_a_layer_can_be_traced_by_jit(layer):
    given = inputs(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(copy.deepcopy(layer), given, check_trace=False)
    y = traced(*given)
    if len(given) == 2:
        torch.testing.assert_close(y, layer(*given))
    else:
        assert 0 < (y == layer.p * 0).float().mean() < 1 or isinstance(layer, AlphaDropout)


def test_a_layer_is_one_graph_for_any_batch(layer):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    # Dynamo without a compiler: graphs that it accepts work in each backend.
    compiled = torch.compile(copy.deepcopy(layer), backend=count, fullgraph=True)
    for batch in (8, 5, 6):
        given = inputs(layer, batch)
        for one in given:
            torch._dynamo.mark_dynamic(one, 0)
        y = compiled(*given)
        if len(given) == 2:
            torch.testing.assert_close(y, layer(*given))
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_can_be_exported_in_training(name):
    layer = LAYERS[name]()
    given = inputs(layer)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(
        copy.deepcopy(layer), given, dynamic_shapes=tuple({0: batch} for _ in given)
    )
    module, fewer = exported.module(), inputs(layer, 5)
    y = module(*fewer)
    if len(given) == 2:
        torch.testing.assert_close(y, layer(*fewer))
        for buffer, value in zip(module.buffers(), layer.buffers(), strict=True):
            torch.testing.assert_close(buffer, value)
    else:
        assert not torch.equal(y, module(*fewer))


@pytest.mark.parametrize("kind", ["strided", "jagged"])
def test_nested_tensors(kind):
    parts = [torch.ones(200, 40), torch.ones(30, 40)]
    x = torch.nested.nested_tensor(parts, layout=getattr(torch, kind))
    y = Dropout(0.5)(x)
    assert y.is_nested
    for part, one in zip(y.unbind(), parts, strict=True):
        assert part.shape == one.shape
        assert set(part.unique().tolist()) == {0.0, 2.0}


def test_a_compiled_norm_refuses_too_few_values_at_each_call():
    torch._dynamo.reset()
    norm = MaskedBatchNorm(4)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    x, mask = torch.randn(2, 4, 6), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :2] = True
    compiled(x, mask)
    mask[0, 1] = False
    with pytest.raises(RuntimeError, match="more than one valid value a channel"):
        compiled(x, mask)
    torch._dynamo.reset()
