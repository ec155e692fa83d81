"""Text classification as a Lightning module."""

from typing import Any, Literal

import torch
from torch import Tensor

from modules import Regularization, TextAugmentation
from tasks.base import ClassificationTask, chosen_sizes
from tasks.data import Batch
from tasks.nlp.data import TextSpec
from tasks.nlp.models import MODELS
from tasks.optimization import Optimization


class TextTask(ClassificationTask):
    """Classifies texts.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Features of the model, likewise.
        pretrained: Of a transformer: hub id or folder of a pretrained encoder and its tokenizer.
        reg: Regularization inside the model and of its weights.
        augment: Augmentation of training texts.
        optim: Optimizer and schedule.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.

    Raises:
        ValueError: `pretrained` is given to a model that cannot use it, or with a size of its own.
    """

    def __init__(
        self,
        spec: TextSpec,
        arch: Literal["text_cnn", "lstm", "transformer"] = "text_cnn",
        depth: int | None = None,
        width: int | None = None,
        pretrained: str | None = None,
        reg: Regularization = Regularization(),
        augment: TextAugmentation = TextAugmentation(),
        optim: Optimization = Optimization(),
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        if pretrained is not None and arch != "transformer":
            raise ValueError(f"pretrained is for arch=transformer, not for {arch}")
        if pretrained is not None and (depth is not None or width is not None):
            raise ValueError("a pretrained encoder has its own depth and width; leave them out")
        given: dict[str, Any] = {**chosen_sizes(depth=depth, width=width)}
        if pretrained is not None:
            given["pretrained"] = pretrained
        model = MODELS[arch](spec, reg, **given)
        super().__init__(model, spec, reg, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes); the ids themselves tell where a text ends."""
        logits: Tensor = self.model(inputs)
        return logits

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the tokens, but not the special ones."""
        special = torch.tensor(self.spec.special, device=batch.inputs.device)
        keep = torch.isin(batch.inputs, special)
        ids = self.augmentation(batch.inputs, self.spec.unknown, keep)
        return batch._replace(inputs=ids), targets
