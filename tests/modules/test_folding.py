"""Batch norms folded into the layers before them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from modules import Dropout, Regularization, fold_batchnorm


def norms(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def randomized(model):
    torch.manual_seed(0)
    for norm in norms(model):
        for value in (norm.running_var, norm.weight):
            nn.init.uniform_(value, 0.5, 2.0)
        for value in (norm.running_mean, norm.bias):
            nn.init.normal_(value)
    return model


def assert_folds(model, *example, left):
    model = randomized(model)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model, *example)
    assert len(norms(folded)) == left
    assert not any(layer.training for layer in folded.modules())
    # The model itself stays.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    model.eval()
    with torch.no_grad():
        expected, found = model(*example), folded(*example)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # What is saved can be loaded.
    twin = copy.deepcopy(folded)
    twin.load_state_dict(folded.state_dict())
    return folded


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 4, 8, 8)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 5, 5)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=True), (5, 3)),
    ],
)
def test_a_norm_is_folded_into_the_layer_before_it(layer, norm, shape):
    assert_folds(nn.Sequential(layer, norm, nn.ReLU()), torch.randn(shape), left=0)


def test_what_runs_in_training_only_may_stand_between():
    model = nn.Sequential(nn.Linear(3, 4), Dropout(0.5), nn.Dropout(0.5), nn.BatchNorm1d(4))
    assert_folds(model, torch.randn(5, 3), left=0)


class Reused(nn.Module):
    """Uses what its layer puts out in a way that is told."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "shape":
            # To ask for the shape is no use.
            return self.norm(y).view(y.shape[0], y.size(1), -1)
        if self.how == "residual":
            return self.norm(y) + y
        if self.how == "in place":
            return self.norm(y.relu_())
        if self.how == "conv twice":
            return self.norm(y) + self.conv(x + 1)
        if self.how == "norm twice":
            return self.norm(y) + self.norm(x)
        return self.conv(self.norm(x))


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("shape", 0),
        ("residual", 1),
        ("in place", 1),
        ("conv twice", 1),
        ("norm twice", 1),
        ("norm first", 1),
    ],
)
def test_a_norm_is_folded_only_where_nothing_else_uses_its_input(how, left):
    assert_folds(Reused(how), torch.randn(2, 3, 5), left=left)


def test_weights_of_other_types_are_folded_in_their_type():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double()
    folded = assert_folds(model, torch.randn(2, 3, 8, dtype=torch.float64), left=0)
    assert folded[0].weight.dtype == torch.float64


BATCH = Regularization(normalization="batch", dropout=0.1, dropout_kind="channel")


@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("mlp", {"depth": 2, "width": 16}, 0),
        ("cnn", {"depth": 2, "width": 8}, 0),
        ("resnet", {"depth": 18, "width": 8}, 0),
        # Pre-activation: the first norm of a block, and the last one of all, follow a sum.
        ("wide_resnet", {"depth": 10, "width": 1}, 4),
    ],
)
def test_vision_models_are_folded(arch, size, left):
    from tasks.vision.data import VisionSpec
    from tasks.vision.models import MODELS

    spec = VisionSpec(["a", "b"], [3, 16, 16], [120.0] * 3, [60.0] * 3, mirror=True)
    model = MODELS[arch](spec, BATCH, **size)
    for parameter in model.parameters():
        # Branches that begin at zero would hide what goes wrong in them.
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randint(0, 256, (4, 3, 16, 16)).byte()
    assert_folds(model, images, left=left)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("tc_resnet", {"width": 8}, 0),
        ("m5", {"width": 8}, 0),
        # Its sub-spectral norms stand behind a change of shape, one in each of the 12 blocks.
        ("bc_resnet", {"width": 8}, 12),
    ],
)
def test_speech_models_are_folded_and_mask_on(arch, size, left, padded):
    from modules import AudioAugmentation
    from tasks.speech.data import SpeechSpec
    from tasks.speech.models import MODELS

    model = MODELS[arch](SpeechSpec(["a", "b"], 16_000), BATCH, AudioAugmentation(), **size)
    clips = torch.randn(3, 8000)
    lengths = (torch.tensor([8000, 6400, 3200]),) if padded else ()
    assert_folds(model, clips, *lengths, left=left)
