"""Image classification as a Lightning module."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from modules import ImageAugmentation, Regularization
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
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.
    """

    def __init__(
        self,
        spec: VisionSpec,
        arch: Literal["mlp", "cnn", "resnet", "wide_resnet"] = "cnn",
        depth: int | None = None,
        width: int | None = None,
        reg: Regularization = Regularization(),
        augment: ImageAugmentation = ImageAugmentation(),
        optim: Optimization = Optimization(),
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        given = chosen_sizes(depth=depth, width=width)
        model = MODELS[arch](spec, reg, **given).to(memory_format=torch.channels_last)
        super().__init__(model, spec, reg, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment if spec.mirror else replace(augment, flip=0.0)

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the images, and with mixup or cutmix the targets."""
        images, targets = self.augmentation(batch.inputs, targets)
        return batch._replace(inputs=images), targets
