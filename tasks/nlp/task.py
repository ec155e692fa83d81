"""Text classification as a Lightning module."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from regain import Regularization, TextAugmentation
from tasks.base import ClassificationTask, Links
from tasks.building import build_model
from tasks.data import Batch
from tasks.nlp.data import TextData, TextSpec
from tasks.nlp.models import LIBRARIES, MODELS
from tasks.optimization import Optimization
from tasks.run.presets import CONFIGS
from tasks.training import TrainingRegularization


def tokenizer_of(arch: str, pretrained: bool | str | None) -> str | None:
    """Return whose tokenizer a model needs: that of its pretrained encoder, if it has one.

    Example:
        >>> tokenizer_of("hf/my_bert", True), tokenizer_of("text_cnn", None)
        ('my_bert', None)
    """
    if pretrained is True and arch.startswith("hf/"):
        return arch.removeprefix("hf/")
    return pretrained if isinstance(pretrained, str) else None


class TextTask(ClassificationTask):
    """Classifies texts.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model: a name, `package.module:Name` or `path/to/file.py:Name` of your own (see
            `tasks.building`), or `hf/ID_OR_FOLDER`, an encoder of `transformers`.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Features of the model, likewise.
        options: Further keyword arguments of the model.
        pretrained: Of a transformer: hub id or folder of a pretrained encoder and its tokenizer; of
            `arch=hf/ID_OR_FOLDER` also true, for its own.
        reg: Regularization inside the model.
        training: Regularization by the training, such as weight decay.
        augment: Augmentation of training texts.
        optim: Optimizer and schedule.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.

    Raises:
        ValueError: `pretrained` is given to a model that cannot use it, or with a size of its own.
    """

    data_class = TextData
    config = CONFIGS / "nlp.yaml"
    models = MODELS
    presets = "nlp"
    links: ClassVar[Links] = {"data.tokenizer": (("model.arch", "model.pretrained"), tokenizer_of)}

    def __init__(
        self,
        spec: TextSpec,
        arch: str = "text_cnn",
        depth: int | None = None,
        width: int | None = None,
        options: dict[str, Any] | None = None,
        pretrained: bool | str | None = None,
        reg: Regularization = Regularization(),
        training: TrainingRegularization = TrainingRegularization(),
        augment: TextAugmentation = TextAugmentation(),
        optim: Optimization = Optimization(),
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        if pretrained is True and arch == "transformer":
            raise ValueError(
                "pretrained=true does not say which encoder; use arch=hf/ID_OR_FOLDER with it, or "
                "pretrained=ID_OR_FOLDER"
            )
        if pretrained and arch == "transformer" and (depth is not None or width is not None):
            raise ValueError("a pretrained encoder has its own depth and width; leave them out")
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
        super().__init__(model, spec, reg, training, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the tokens, but not the special ones."""
        special = torch.tensor(self.spec.special, device=batch.inputs.device)
        keep = torch.isin(batch.inputs, special)
        ids = self.augmentation(batch.inputs, self.spec.unknown, keep)
        return batch._replace(inputs=ids), targets
