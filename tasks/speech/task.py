"""Keyword recognition as a Lightning module."""

from typing import Any

from torch import Tensor

from regain import AudioAugmentation, Regularization
from tasks.base import ClassificationTask
from tasks.building import build_model
from tasks.data import Batch
from tasks.optimization import Optimization
from tasks.run.presets import CONFIGS
from tasks.speech.data import SpeechData, SpeechSpec
from tasks.speech.libraries import LIBRARIES
from tasks.speech.models import MODELS, as_floats
from tasks.training import TrainingRegularization


class SpeechTask(ClassificationTask):
    """Classifies waveforms.

    Args:
        spec: What the model must know of the data; the data module gives it.
        arch: Which model: a name, `package.module:Name` or `path/to/file.py:Name` of your own (see
            `tasks.building`), or `hf/ID_OR_FOLDER`. A model of your own gets waveforms;
            `tasks.speech.models.LogMel` makes spectrograms of them.
        depth: Layers of the model, as its own documentation counts them; its default if None.
        width: Channels of the model, likewise.
        options: Further keyword arguments of the model.
        pretrained: Of a library's model: true for its pretrained weights, or a folder of weights.
        reg: Regularization inside the model.
        training: Regularization by the training, such as weight decay.
        augment: Augmentation of training clips.
        optim: Optimizer and schedule.
        gradient_checkpointing: Whether blocks are computed again in the backward pass, which takes
            less memory and more time.
        compile: Whether the model is compiled for the training.
    """

    data_class = SpeechData
    config = CONFIGS / "speech.yaml"
    models = MODELS
    presets = "speech"

    def __init__(
        self,
        spec: SpeechSpec,
        arch: str = "tc_resnet",
        depth: int | None = None,
        width: int | None = None,
        options: dict[str, Any] | None = None,
        pretrained: bool | str | None = None,
        reg: Regularization = Regularization(),
        training: TrainingRegularization = TrainingRegularization(),
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
            augment=augment,
        )
        super().__init__(model, spec, reg, training, optim, gradient_checkpointing, compile)
        self.save_hyperparameters(logger=False)
        self.spec = spec
        self.augmentation = augment

    def augment(self, batch: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """Change the waveforms; the model itself changes their spectrograms."""
        waveforms = as_floats(batch.inputs)
        waveforms = self.augmentation.waveform(waveforms, self.spec.sample_rate, batch.lengths)
        return batch._replace(inputs=waveforms), targets
