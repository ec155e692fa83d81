"""The airbench network and its test-time views; `test_models` tests the rest."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from regain import Regularization
from tasks.data import Batch
from tasks.vision.data import VisionSpec, patch_covariance
from tasks.vision.models import Whitening, airbench
from tasks.vision.task import VisionTask

CLASSES = ["a", "b", "c"]
IMAGES = VisionSpec(
    CLASSES, [3, 16, 16], [120.0, 130.0, 90.0], [60.0, 50.0, 70.0], True, torch.eye(12).tolist()
)


def test_whitened_patches_have_variance_one_on_each_axis():
    generator = torch.Generator().manual_seed(0)
    # Neighbouring pixels and channels are correlated, as in images.
    images = torch.randn(300, 3, 9, 9, generator=generator)
    images = images.cumsum(2).cumsum(3) + images.sum(1, keepdim=True)
    spec = VisionSpec(CLASSES, [3, 9, 9], [0.0] * 3, [1.0] * 3, True, None)
    spec = replace(spec, patches=patch_covariance(images).tolist())
    out = Whitening(spec)(images)
    assert out.shape == (300, 24, 8, 8)
    values = out.movedim(1, 0).flatten(1)
    covariance = torch.cov(values[:12])
    # Except for the constant that is added to small variances.
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.02)
    assert torch.equal(values[:12], -values[12:])


def test_airbench_is_initialized_to_pass_its_input_on():
    model = airbench(IMAGES, Regularization(), depth=1, width=32)
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 24, 5, 5)
    kept = convolution(x)[:, :24] - convolution.bias[:24].view(-1, 1, 1)
    torch.testing.assert_close(kept, x)


@pytest.mark.parametrize("views", [1, 2, 6])
def test_the_logits_of_all_views_are_averaged(views):
    task = VisionTask(IMAGES, arch="cnn", depth=1, width=4, test_views=views).eval()
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    seen = [images.float()]
    if views == 6:
        wide = nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect")
        seen += [wide[:, :, :16, :16], wide[:, :, 2:, 2:]]
    if views > 1:
        seen += [view.flip(3) for view in seen]
    assert len(seen) == views
    expected = sum(task(view) for view in seen) / views
    batch = Batch(images, torch.zeros(5), torch.arange(5))
    torch.testing.assert_close(task.evaluate(batch), expected)


def test_mirror_images_are_not_a_view_if_flips_change_the_class():
    with pytest.raises(ValueError, match="test_views=2 evaluates mirror images"):
        VisionTask(replace(IMAGES, allow_flip=False), test_views=2)
