"""Image classification as a Lightning module."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from modules import ImageAugmentation, Regularization
from modules.augment import alternating_flip
from tasks.base import ClassificationTask, chosen_sizes
from tasks.data import Batch
from tasks.optimization import Optimization
from tasks.vision.data import VisionSpec
from tasks.vision.models import MODELS


class VisionTask(ClassificationTask):
    """Classifies images.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Channels or units of the model, likewise.
        reg: Regularization inside the model and of its weights.
        augment: Augmentation of training images.
        optim: Optimizer and schedule.
        test_views: Views of an image whose logits are averaged in the test: the image alone; it and
            its mirror image; or both of them, and shifted by a pixel up and left and down and right
            too (multi-crop evaluation, Krizhevsky et al. 2012). Validation chooses by the first.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.
    """

    def __init__(
        self,
        spec: VisionSpec,
        arch: Literal["mlp", "cnn", "resnet", "wide_resnet", "airbench"] = "cnn",
        depth: int | None = None,
        width: int | None = None,
        reg: Regularization = Regularization(),
        augment: ImageAugmentation = ImageAugmentation(),
        optim: Optimization = Optimization(),
        test_views: Literal[1, 2, 6] = 1,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        if test_views > 1 and not spec.mirror:
            raise ValueError(
                f"test_views={test_views} looks at mirror images, and data.mirror=false says that "
                "they are none of their class; use 1"
            )
        given = chosen_sizes(depth=depth, width=width)
        model = MODELS[arch](spec, reg, **given).to(memory_format=torch.channels_last)
        super().__init__(model, spec, reg, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment if spec.mirror else replace(augment, flip=0.0)
        self.test_views = test_views

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the images, and with mixup or cutmix the targets."""
        flipped = None
        if self.augmentation.flip_kind == "alternating":
            flipped = alternating_flip(batch.places, self.current_epoch)
        images, targets = self.augmentation(batch.inputs, targets, flipped)
        return batch._replace(inputs=images), targets

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the mean logits (batch, classes) of the views of each image."""
        images = batch.inputs
        views = [images]
        if self.test_views == 6:
            mirrored = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
            views += [mirrored[..., :-2, :-2], mirrored[..., 2:, 2:]]
        if self.test_views > 1:
            views += [view.flip(-1) for view in views]
        logits: Tensor = torch.stack([self(view) for view in views]).mean(dim=0)
        return logits
