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
    ) -> None:
        if reg.normalization == "split":
            raise ValueError(
                "normalization=split keeps clean and augmented examples apart, and speech models "
                "mask the spectrograms of all examples inside; use another normalization"
            )
        given = chosen_sizes(depth=depth, width=width)
        super().__init__(MODELS[arch](spec, reg, augment, **given), spec, reg, optim)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the waveforms; the model itself changes their spectrograms."""
        waveforms = as_floats(batch.inputs)
        waveforms = self.augmentation.waveform(waveforms, self.spec.sample_rate, batch.lengths)
        return batch._replace(inputs=waveforms), targets
