"""Image classification as a Lightning module."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from regain import ImageAugmentation, Regularization
from regain.augment import alternating_flip
from tasks.base import ClassificationTask
from tasks.building import build_model
from tasks.data import Batch
from tasks.optimization import Optimization
from tasks.run.presets import CONFIGS
from tasks.training import TrainingRegularization
from tasks.vision.data import VisionData, VisionSpec
from tasks.vision.libraries import LIBRARIES
from tasks.vision.models import MODELS


class VisionTask(ClassificationTask):
    """Classifies images.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model: a name, `package.module:Name` or `path/to/file.py:Name` of your own (see
            `tasks.building`), or `timm/NAME`, `torchvision/NAME` or `hf/ID_OR_FOLDER`.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Channels or units of the model, likewise.
        options: Further keyword arguments of the model.
        pretrained: Of a library's model: true for its pretrained weights, or a file or folder of
            weights.
        reg: Regularization inside the model.
        training: Regularization by the training, such as weight decay.
        augment: Augmentation of training images.
        optim: Optimizer and schedule.
        test_views: Views of an image whose logits are averaged in the test: the image alone; it and
            its mirror image; or both of them, and shifted by a pixel up and left and down and right
            too (multi-crop evaluation, Krizhevsky et al. 2012). Validation chooses by the first.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.
    """

    data_class = VisionData
    config = CONFIGS / "vision.yaml"
    models = MODELS
    presets = "vision"

    def __init__(
        self,
        spec: VisionSpec,
        arch: str = "cnn",
        depth: int | None = None,
        width: int | None = None,
        options: dict[str, Any] | None = None,
        pretrained: bool | str | None = None,
        reg: Regularization = Regularization(),
        training: TrainingRegularization = TrainingRegularization(),
        augment: ImageAugmentation = ImageAugmentation(),
        optim: Optimization = Optimization(),
        test_views: Literal[1, 2, 6] = 1,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        if test_views > 1 and not spec.allow_flip:
            raise ValueError(
                f"test_views={test_views} evaluates mirror images, which data.allow_flip=false "
                "excludes; use 1"
            )
        model = build_model(
            MODELS,
            arch,
            spec,
            reg,
            options,
            depth=depth,
            width=width,
            pretrained=pretrained,
            libraries=LIBRARIES,
        )
        model = model.to(memory_format=torch.channels_last)
        super().__init__(model, spec, reg, training, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment if spec.allow_flip else replace(augment, flip=0.0)
        self.test_views = test_views

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the images, and with mixup or cutmix the targets."""
        flipped = None
        if self.augmentation.flip_kind == "alternating":
            flipped = alternating_flip(batch.indices, self.current_epoch)
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
