"""Folding of batch norms into the layers before them."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils._pytree import tree_leaves

from regain import (
    BatchRenorm,
    Dropout,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    MaskedIdentity,
    Regularization,
    SplitBatchNorm,
    SyncBatchNorm,
    fold_batchnorm,
    unfolded_norms,
)
from regain.torchnorm import BATCH_NORMS


def norms(model):
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS)]


def randomized(model):
    """Give all norms statistics and parameters that reveal a wrong fold."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, BATCH_NORMS):
            if norm.running_mean is not None:
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 2.0)
                nn.init.normal_(norm.bias)
    return model


def outputs(model, example):
    with torch.no_grad():
        return [x for x in tree_leaves(model(*example)) if isinstance(x, torch.Tensor)]


def assert_folds(model, *example, left, further=(), rtol=1e-5):
    """Fold a model, and check its outputs and that `left` norms remain; return the folded model."""
    model = randomized(model)
    before = copy.deepcopy(model.state_dict())
    modes = [layer.training for layer in model.modules()]
    folded = fold_batchnorm(model, *example, further=further)
    assert len(unfolded_norms(model, *example, further=further)) == left
    assert not any(layer.training for layer in folded.modules())
    # The model itself is not changed.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes
    model.eval()
    for inputs in (example, *further):
        expected, found = outputs(model, inputs), outputs(folded, inputs)
        assert len(found) == len(expected) > 0
        for x, y in zip(found, expected, strict=True):
            assert y.isfinite().all()
            assert x.dtype == y.dtype
            size = float(y.abs().max()) if y.numel() else 0.0
            torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * size)
    # The state dict can be loaded.
    twin = copy.deepcopy(folded)
    twin.load_state_dict(folded.state_dict())
    return folded


def assert_left(model, *example, reason, further=()):
    """Check that one norm is not folded, for this reason."""
    assert_folds(model, *example, left=1, further=further)
    (found,) = unfolded_norms(model, *example, further=further).values()
    assert reason in found


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 4, 8, 8)),
        (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 5)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), (2, 6, 5, 5)),
        (nn.ConvTranspose3d(4, 8, 2, groups=4), nn.BatchNorm3d(8), (2, 4, 3, 3, 3)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), (5, 3)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), (5, 3)),
        (nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Linear(3, 4), nn.SyncBatchNorm(4), (5, 3)),
        (nn.Conv1d(3, 4, 3), SyncBatchNorm(4, dims=1), (2, 3, 8)),
        (nn.Conv1d(3, 4, 3), FrozenBatchNorm(4, dims=1), (2, 3, 8)),
        (nn.Conv1d(3, 4, 3), BatchRenorm(4, dims=1), (2, 3, 8)),
        (nn.Conv1d(3, 4, 3), MaskedBatchNorm(4, kind="frozen"), (2, 3, 8)),
        (nn.Conv1d(3, 4, 3), GhostBatchNorm(4, dims=1, size=1), (2, 3, 8)),
    ],
    ids=lambda part: part if isinstance(part, tuple) else type(part).__name__,
)
def test_a_norm_is_folded_into_the_layer_before_it(layer, norm, shape):
    model = nn.Sequential(layer, norm, nn.ReLU())
    model(torch.randn(shape))
    folded = assert_folds(model, torch.randn(shape), left=0)
    assert norms(folded) == []
    assert type(folded[0]) is type(layer)


def test_a_folded_masked_norm_still_masks():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 4, 1), MaskedBatchNorm(4)

        def forward(self, x, mask=None):
            return self.norm(self.conv(x), mask)

    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    x = torch.randn(2, 3, 5)
    folded = assert_folds(Masked(), x, left=0, further=[(x, mask)])
    assert not folded(x, mask)[1, :, 3:].any()


def test_the_clean_norm_of_a_split_norm_is_folded():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), SplitBatchNorm(4, dims=1))
    folded = assert_folds(model, torch.randn(2, 3, 5), left=0)
    assert type(folded[1]) is MaskedIdentity


def test_layers_that_run_only_in_training_may_be_between():
    model = nn.Sequential(nn.Linear(3, 4), Dropout(0.5), nn.Dropout(0.5), nn.BatchNorm1d(4))
    assert_folds(model, torch.randn(5, 3), left=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_types_layouts_and_gradients_are_kept(dtype, layout):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    model[0].to(dtype=dtype, memory_format=layout).requires_grad_(False)
    if dtype == torch.float64:
        model[1].double()
    x = torch.randn(2, 3, 8, 8, dtype=dtype).to(memory_format=layout)
    folded = assert_folds(model, x, left=0, rtol=1e-10 if dtype == torch.float64 else 0.03)
    for parameter in (folded[0].weight, folded[0].bias):
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
    assert folded[0].weight.is_contiguous(memory_format=layout)


class Reused(nn.Module):
    """Uses the output of its layer in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x):
        if self.how == "weight" and self.conv.weight.abs().sum() < 0:
            return x
        y = self.conv(x)
        match self.how:
            case "shape":
                # Reading the shape does not count as a use.
                return self.norm(y).view(y.shape[0], y.size(1), -1)
            case "residual":
                return self.norm(y) + y
            case "in place":
                return self.norm(y.relu_())
            case "in place, in a view":
                y[0].zero_()
                return self.norm(y)
            case "in place, in its data":
                y.data.mul_(2)
                return self.norm(y)
            case "in place, by NumPy":
                y.numpy()[:] *= 2
                return self.norm(y)
            case "a view":
                return self.norm(y.transpose(1, 2).contiguous().transpose(1, 2))
            case "its value":
                return self.norm(y) if y.mean() > -100 else x
            case "conv twice":
                return self.norm(y) + self.conv(x + 1)
            case "norm twice":
                return self.norm(y) + self.norm(x)
            case "norm of it twice":
                return self.norm(y).relu_() + self.norm(y)
            case "pairs":
                return self.norm(y) + self.norm(self.conv(x + 1))
            case "norm first":
                return self.conv(self.norm(x))
            case "output":
                return {"features": [y], "out": self.norm(y)}
            case "a view as output":
                return self.norm(y), y[:1].flatten()
            case "attribute":
                self.features = y
                return self.norm(y)
            case "forward of the conv":
                return self.norm(y) + self.conv.forward(x + 1)
            case "forward of the norm":
                return self.norm(y) + self.norm.forward(x + 1)
            case "parameters of the norm":
                return self.norm(y) * self.norm.weight.view(-1, 1)
        return self.norm(y)


@pytest.mark.parametrize("how", ["shape", "pairs"])
def test_a_norm_is_folded_where_it_uses_all_outputs_of_its_layer(how):
    assert_folds(Reused(how), torch.randn(2, 3, 5), left=0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("residual", "the output of conv is also used by aten.add"),
        ("in place", "the output of conv is also used by aten.relu_"),
        ("in place, in a view", "the output of conv is also used by aten.select"),
        ("in place, in its data", "the output of conv is also used by aten.detach"),
        ("in place, by NumPy", "the output of conv is also used by aten.detach"),
        ("a view", "its input is not the output of a convolution"),
        ("its value", "the output of conv is also used by aten.mean"),
        ("conv twice", "the output of conv is also used by aten.add"),
        ("norm twice", "its input is not the output of a convolution"),
        ("norm of it twice", "the output of conv does not always go to it, once"),
        ("norm first", "its input is not the output of a convolution"),
        ("output", "the output of conv is kept"),
        ("a view as output", "the output of conv is also used by aten.slice"),
        ("attribute", "the output of conv is kept"),
        ("weight", "conv has parameters that aten.abs.default uses elsewhere"),
        ("forward of the conv", "conv has parameters that aten.convolution.default uses"),
        ("forward of the norm", "it has parameters that aten.native_batch_norm.default uses"),
        ("parameters of the norm", "it has parameters that aten.view.default uses elsewhere"),
    ],
)
def test_a_norm_whose_input_is_also_used_elsewhere_is_not_folded(how, reason):
    assert_left(Reused(how), torch.randn(2, 3, 5), reason=reason)


class Standardized(nn.Conv1d):
    """Weight standardization: its weight is computed from the stored one."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return F.conv1d(x, weight, self.bias)


class ActivatedNorm(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


class Inert(nn.Conv1d):
    """Returns its input."""

    def forward(self, x):
        return x


def hooked(module, kind):
    getattr(module, f"register_{kind}")(lambda *_: None)
    return module


def with_own_forward(module):
    module.forward = lambda x: type(module).forward(module, x) * 2
    return module


@pytest.mark.parametrize(
    ("layer", "norm", "reason"),
    [
        (Standardized(3, 4, 1), nn.BatchNorm1d(4), "0 is a Standardized, which may"),
        (nn.Conv1d(3, 4, 1), ActivatedNorm(4), "it is a ActivatedNorm, which may"),
        (nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4, track_running_stats=False), "no running statistics"),
        (hooked(nn.Conv1d(3, 4, 1), "forward_hook"), nn.BatchNorm1d(4), "0 has hooks"),
        (hooked(nn.Conv1d(3, 4, 1), "forward_pre_hook"), nn.BatchNorm1d(4), "0 has hooks"),
        (nn.Conv1d(3, 4, 1), hooked(nn.BatchNorm1d(4), "forward_hook"), "it has hooks"),
        (nn.Conv1d(3, 4, 1), hooked(nn.BatchNorm1d(4), "full_backward_hook"), "it has hooks"),
        (with_own_forward(nn.Conv1d(3, 4, 1)), nn.BatchNorm1d(4), "0 has a replaced forward"),
        (weight_norm(nn.Conv1d(3, 4, 1)), nn.BatchNorm1d(4), "0 has hooks"),
        (spectral_norm(nn.Conv1d(3, 4, 1)), nn.BatchNorm1d(4), "0 has hooks"),
        (prune.l1_unstructured(nn.Conv1d(3, 4, 1), "weight", 0.5), nn.BatchNorm1d(4), "has hooks"),
        (parametrizations.weight_norm(nn.Conv1d(3, 4, 1)), nn.BatchNorm1d(4), "0 is parametrized"),
        (parametrizations.spectral_norm(nn.Linear(3, 4)), nn.BatchNorm1d(5), "0 is parametrized"),
        # (batch, length, channels): the norm sees the length as channels.
        (nn.Linear(3, 4), nn.BatchNorm1d(5), "the channels of 0 are not in the second dimension"),
        # Without a batch dimension.
        (nn.Linear(5, 4), nn.BatchNorm1d(3), "the channels of 0 are not in the second dimension"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_norm_or_layer_with_other_behaviour_is_not_folded(layer, norm, reason):
    shape = (2, 3, 5)
    if isinstance(layer, nn.Linear) and norm.num_features == 5:
        shape = (2, 5, 3)
    model = nn.Sequential(layer, norm)
    x = torch.randn(shape)
    # In training mode, so that computed weights are part of a graph.
    model(x)
    assert_left(model, x, reason=reason)


def test_a_norm_that_stays_in_training_mode_is_not_folded():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    model[1].train = lambda mode=True: model[1]
    assert unfolded_norms(model, torch.randn(2, 3, 5)) == {
        "1": "it takes its statistics from the batch"
    }


def test_permanently_pruned_layers_are_folded():
    conv = prune.l1_unstructured(nn.Conv1d(3, 4, 1), "weight", 0.5)
    prune.remove(conv, "weight")
    assert_folds(nn.Sequential(conv, nn.BatchNorm1d(4)), torch.randn(2, 3, 5), left=0)


def test_a_convolution_without_a_batch_is_not_folded():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(5))
    assert_left(model, torch.randn(3, 5), reason="the channels of 0 are not in the second")


@pytest.mark.parametrize("used", [True, False])
def test_a_layer_with_a_shared_weight_is_not_folded(used):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.last = nn.Conv1d(4, 4, 1)
            self.last.weight = self.conv.weight

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.last(x) if used else x

    reason = "conv shares parameters with another module"
    assert_left(Tied(), torch.randn(2, 4, 5), reason=reason)


def test_weights_in_one_storage_are_folded():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1))
    memory = torch.randn(12 + 16)
    model[0].weight = nn.Parameter(memory[:12].view(4, 3, 1))
    model[2].weight = nn.Parameter(memory[12:].view(4, 4, 1))
    assert_folds(model, torch.randn(2, 3, 5), left=0)


def test_a_layer_that_returns_the_output_of_another_is_a_use_of_it():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.inert = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), Inert(3, 3, 1)

        def forward(self, x):
            return self.norm(self.conv(x)), self.inert(self.conv(x + 1)).clone()

    assert_left(Sometimes(), torch.randn(2, 3, 5), reason="the output of conv is also used by")


def test_a_module_that_is_registered_twice_is_replaced_twice():
    block = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.norm = block, block, block[1]

        def forward(self, x):
            return self.second(self.first(x))

    folded = assert_folds(Twice(), torch.randn(2, 3, 5), left=0)
    assert norms(folded) == []


class Dynamic(nn.Module):
    """Its path depends on its inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x, mask=None):
        y = self.conv(x)
        for _ in range(int(x[0, 0, 0].clamp(0, 3))):
            y = self.conv(self.norm(y))
        return self.norm(y if mask is None else y * mask)


def test_all_paths_that_the_examples_take_are_checked():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5)
    x[0, 0, 0] = 0.0
    more = x + 2.5
    assert_folds(Dynamic(), x, left=0)
    assert_folds(Dynamic(), x, left=0, further=[(more,)])
    masked = (x, (torch.rand(2, 1, 5) > 0.5).float())
    assert_left(Dynamic(), x, reason="not the output of a conv", further=[masked])
    assert_left(Dynamic(), *masked, reason="not the output of a conv", further=[(x,)])


def test_several_inputs_and_nested_outputs():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
            self.right = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

        def forward(self, pair, scale):
            left, right = self.left(pair["left"]), self.right(pair["right"])
            pair["left"].zero_()
            return {"maps": (left, [right]), "count": len(right), "index": right.argmax(1)}

    pair = {"left": torch.randn(2, 3, 6), "right": torch.randn(2, 5)}
    model = randomized(Several()).eval()
    folded = fold_batchnorm(model, pair, 2.0)
    # The examples are not changed.
    assert pair["left"].any()
    twin = copy.deepcopy(pair)
    expected, found = outputs(model, (pair, 2.0)), outputs(folded, (twin, 2.0))
    assert norms(folded) == []
    torch.testing.assert_close(found, expected)


def test_both_runs_use_the_same_random_numbers_and_restore_the_generator():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

        def forward(self, x):
            return F.dropout(self.norm(self.conv(x)), 0.5, training=True)

    model, x = randomized(Noisy()), torch.randn(2, 3, 5)
    state = torch.get_rng_state()
    assert norms(fold_batchnorm(model, x)) == []
    assert torch.equal(state, torch.get_rng_state())


def test_the_state_of_the_model_does_not_change():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.norm(self.conv(x)) * self.calls

    folded = fold_batchnorm(randomized(Counts()), torch.randn(2, 3, 5))
    assert norms(folded) == []
    assert folded.calls == 0


def test_a_fold_that_would_be_wrong_is_an_error():
    class Hidden(nn.Module):
        """Calls its norm through a list, in which it cannot be replaced."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
            self.norms = [self.norm]

        def forward(self, x):
            return self.norms[0](self.conv(x))

    with pytest.raises(RuntimeError, match=r"output of the folded model differs .* one by one"):
        fold_batchnorm(randomized(Hidden()), torch.randn(2, 3, 5))

    class Asks(Hidden):
        def forward(self, x):
            return self.norm(self.conv(x)) if self.norm.num_features else x

    with pytest.raises(RuntimeError, match=r"folded model fails .*num_features.*reads attributes"):
        fold_batchnorm(Asks(), torch.randn(2, 3, 5))


def test_the_norms_that_are_not_folded_are_logged(caplog):
    caplog.set_level(logging.INFO, "regain.folding")
    fold_batchnorm(Reused("residual"), torch.randn(2, 3, 5))
    (line,) = caplog.messages
    assert line.startswith("1 batch norms are not folded: norm: the output of conv is also used by")


def test_a_compiled_model_is_folded():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    model.compile(backend="eager")
    model(torch.randn(2, 3, 5))
    assert_folds(model, torch.randn(2, 3, 5), left=0)
    whole = torch.compile(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), backend="eager")
    assert_folds(whole, torch.randn(2, 3, 5), left=0)


TORCHVISION = {
    "resnet18": 0,
    "vgg11_bn": 0,
    "mobilenet_v2": 0,
    "mobilenet_v3_small": 0,
    "shufflenet_v2_x0_5": 0,
    "mnasnet0_5": 0,
    "efficientnet_b0": 0,
    "regnet_y_400mf": 0,
    # Pre-activation: these norms are after a concatenation.
    "densenet121": 62,
    "lraspp_mobilenet_v3_large": 0,
}


@pytest.mark.parametrize(("name", "left"), TORCHVISION.items())
def test_models_of_torchvision_are_folded(name, left):
    from torchvision.models import get_model

    options = {"weights_backbone": None} if "lraspp" in name else {}
    model = get_model(name, weights=None, **options)
    if name == "vgg11_bn":
        # The large layers of its head have no norm.
        model.classifier = nn.Linear(25_088, 10)
    assert_folds(model.double(), torch.randn(1, 3, 64, 64).double(), left=left, rtol=1e-8)


# Most norms of timm are subclasses that also compute an activation.
TIMM = {
    "efficientnet_b0": 49,
    "mobilenetv3_small_100": 34,
    "resnetv2_50": 49,
    "regnety_002": 44,
    "densenet121": 121,
    "ghostnet_050": 1,
    "resnet18": 0,
    "dla46_c": 0,
    "levit_128s": 48,
    "repvit_m0_9": 25,
    "skresnet18": 24,
    "hrnet_w18_small": 0,
    "starnet_s1": 1,
    "rexnet_100": 49,
    "efficientformer_l1": 0,
}


@pytest.mark.parametrize(("name", "left"), TIMM.items())
def test_models_of_timm_are_folded(name, left):
    from timm import create_model

    size = 224 if name.startswith(("levit", "efficientformer")) else 64
    model = create_model(name).double()
    assert_folds(model, torch.randn(1, 3, size, size).double(), left=left, rtol=1e-8)


BATCH = Regularization(normalization="batch", dropout=0.1, dropout_kind="channel")


@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("mlp", {"depth": 2, "width": 16}, 0),
        ("cnn", {"depth": 2, "width": 8}, 0),
        ("resnet", {"depth": 18, "width": 8}, 0),
        # Pre-activation: the first norm of a block and the last norm of the model are after a sum.
        ("wide_resnet", {"depth": 10, "width": 1}, 4),
        # The first norm of a stage is after a pooling layer.
        ("airbench", {"width": 8}, 3),
    ],
)
def test_vision_models_are_folded(arch, size, left):
    from tasks.vision.data import VisionSpec
    from tasks.vision.models import MODELS

    patches = torch.eye(12).tolist()
    spec = VisionSpec(["a", "b"], [3, 16, 16], [120.0] * 3, [60.0] * 3, True, patches)
    model = MODELS.find(arch)(spec, BATCH, **size)
    for parameter in model.parameters():
        # Branches initialized to zero would hide errors in them.
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randint(0, 256, (4, 3, 16, 16)).byte()
    assert_folds(model, images, left=left)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("tc_resnet", {"width": 8}, 0),
        ("m5", {"width": 8}, 0),
        # Its sub-spectral norms are after a reshape, one in each of the 12 blocks.
        ("bc_resnet", {"width": 8}, 12),
    ],
)
def test_folded_speech_models_still_mask(arch, size, left, padded):
    from regain import AudioAugmentation
    from tasks.speech.data import SpeechSpec
    from tasks.speech.models import MODELS

    model = MODELS.find(arch)(SpeechSpec(["a", "b"], 16_000), BATCH, AudioAugmentation(), **size)
    clips = torch.randn(3, 8000)
    lengths = (torch.tensor([8000, 6400, 3200]),) if padded else ()
    assert_folds(model, clips, *lengths, left=left)
    assert_folds(model, clips, left=left, further=[(clips, *lengths)])


@pytest.mark.parametrize("arch", ["text_cnn", "lstm", "transformer"])
def test_the_norms_of_text_models_are_not_folded(arch):
    from tasks.nlp.data import TextSpec
    from tasks.nlp.models import MODELS

    spec = TextSpec(["a", "b"], vocabulary=50, padding=0, unknown=1, special=[0])
    model = MODELS.find(arch)(
        spec, Regularization(normalization="batch", dropout=0.1), depth=1, width=16
    )
    ids = torch.randint(1, 50, (3, 9))
    ids[1, 5:] = 0
    # Their norms are after a concatenation, a recurrent layer and a transformer.
    assert_left(model, ids, reason="its input is not the output of a convolution or linear layer")
