"""Keyword recognition as a Lightning module."""

from typing import Literal

from torch import Tensor

from modules import AudioAugmentation, Regularization
from tasks.base import ClassificationTask, chosen_sizes
from tasks.data import Batch
from tasks.optimization import Optimization
from tasks.speech.data import SpeechSpec
from tasks.speech.models import MODELS, as_floats


class SpeechTask(ClassificationTask):
    """Classifies waveforms.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Channels of the model, likewise.
        reg: Regularization inside the model and of its weights.
        augment: Augmentation of training clips.
        optim: Optimizer and schedule.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        arch: Literal["tc_resnet", "bc_resnet", "m5"] = "tc_resnet",
        depth: int | None = None,
        width: int | None = None,
        reg: Regularization = Regularization(),
        augment: AudioAugmentation = AudioAugmentation(),
        optim: Optimization = Optimization(),
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - As PyTorch calls it.
    ) -> None:
        if reg.normalization == "split":
            raise ValueError(
                "normalization=split keeps clean and augmented examples apart, and speech models "
                "mask the spectrograms of all examples inside; use another normalization"
            )
        given = chosen_sizes(depth=depth, width=width)
        model = MODELS[arch](spec, reg, augment, **given)
        super().__init__(model, spec, reg, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the waveforms; the model itself changes their spectrograms."""
        waveforms = as_floats(batch.inputs)
        waveforms = self.augmentation.waveform(waveforms, self.spec.sample_rate, batch.lengths)
        return batch._replace(inputs=waveforms), targets
