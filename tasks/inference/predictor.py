"""A predictor: from raw inputs, such as files and strings, to classes and probabilities."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from regain.montecarlo import has_dropout, mc_mean, mc_passes
from tasks.data import Batch
from tasks.data.base import EVALUATION_BATCH
from tasks.errors import InputError
from tasks.inference.opening import Opened, open_checkpoint
from tasks.run.checkpoints import repeatable


@dataclass
class Prediction:
    """The prediction for one input.

    Args:
        label: The most probable class.
        confidence: Its probability.
        probabilities: Probability of each class, by its name.
        entropy: Entropy of the probabilities in nats, the uncertainty of the prediction.
        mutual_information: Disagreement of the passes in nats, with Monte Carlo dropout; else None.
        sure: Whether the entropy is at most the threshold, which was chosen on validation data.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float | None
    sure: bool


class Predictor:
    """Classifies raw inputs with a trained model.

    Args:
        opened: The content of a checkpoint.

    Attributes:
        task: The task with the model, in evaluation mode.
        data: The data module, which decodes inputs as in the training.
        facts: Information on the run from the checkpoint: `task`, `data`, `reg`, `name`, `seed`,
            `versions`, `git_commit`, the resolved `config`, and `validation`, the metrics.
        classes: Names of the classes.
        kind: `image`, `audio`, `text`, or the `kind` of your own data module.
        temperature: Divisor of the logits, above 0; fitted on the validation split.
        threshold: Entropy in nats above which a prediction is not sure; chosen on the validation
            split.
        mc_temperature: The temperature for Monte Carlo dropout.
        mc_threshold: The threshold for Monte Carlo dropout.
    """

    def __init__(self, opened: Opened) -> None:
        self.task = opened.task
        self.data = opened.data
        self.facts = opened.facts
        self.classes = list(opened.task.classes)
        self.kind = opened.data.kind
        self.temperature, self.threshold = opened.task.calibration
        self.mc_temperature, self.mc_threshold = opened.mc_calibration

    @overload
    def __call__(
        self, inputs: list[Any], mc: int = 0, batch_size: int = EVALUATION_BATCH
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self, inputs: Any, mc: int = 0, batch_size: int = EVALUATION_BATCH
    ) -> Prediction: ...
    def __call__(
        self, inputs: Any, mc: int = 0, batch_size: int = EVALUATION_BATCH
    ) -> Prediction | list[Prediction]:
        """Classify one input, or each input of a list.

        Args:
            inputs: One or a list of: for images a path, bytes of a file, a Pillow image, an array
                or a tensor; for clips a path, bytes of a file, or (samples, rate); for texts a
                string; else what the data module decodes.
            mc: Number of passes of Monte Carlo dropout; 0 is one pass without dropout.
            batch_size: Largest number of inputs at once.

        Raises:
            InputError: An input cannot be decoded.
        """
        if not isinstance(inputs, list):
            one: list[Prediction] = self([inputs], mc, batch_size)
            return one[0]
        found: list[Prediction] = []
        for first in range(0, len(inputs), batch_size):
            decoded = [
                self._decoded(value, index)
                for index, value in enumerate(inputs[first : first + batch_size], first)
            ]
            found += self.predict(self.data.batch(decoded), mc, batch_size)
        return found

    def decode(self, value: Any) -> Any:
        """Decode one input.

        Raises:
            InputError: It cannot be decoded; the message is the reason, without the input's name.
        """
        try:
            return self.data.decode_input(value)
        except OSError as error:
            raise InputError(error.strerror or str(error)) from error
        except Exception as error:
            # Decoders raise exceptions of all kinds.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(reason) from error

    def _decoded(self, value: Any, index: int) -> Any:
        try:
            return self.decode(value)
        except InputError as error:
            name = value if isinstance(value, str | Path) and self.kind != "text" else index
            raise InputError(f"input {name}: {error}") from error

    def encode(self, inputs: list[Any]) -> Batch:
        """Decode inputs and put them into one batch, as the model takes it.

        Raises:
            InputError: An input cannot be decoded.
        """
        return self.data.batch([self._decoded(value, index) for index, value in enumerate(inputs)])

    @torch.no_grad()
    def predict(
        self, batch: Batch, mc: int = 0, batch_size: int = EVALUATION_BATCH
    ) -> list[Prediction]:
        """Classify the inputs of a batch; its labels are not used.

        Args:
            batch: As `encode` or `data.batch` makes it.
            mc: Number of passes of Monte Carlo dropout; 0 is one pass without dropout.
            batch_size: Largest number of inputs at once, over all passes.

        Raises:
            InputError: Passes are asked for, and the model has no dropout.
        """
        if mc < 0:
            raise InputError(f"mc={mc} is below 0; give the number of passes, or 0 for no dropout")
        device = self.task.device
        lengths = None if batch.lengths is None else batch.lengths.to(device)
        batch = batch._replace(inputs=batch.inputs.to(device), lengths=lengths)
        if not mc:
            logits = self.task.evaluate(batch).double().cpu()
            probabilities = (logits / self.temperature).softmax(1)
            entropy = torch.special.entr(probabilities).sum(1)
            return self._predictions(probabilities, entropy, None, self.threshold)
        if not has_dropout(self.task):
            raise InputError(
                f"mc={mc} needs dropout, and the model has none: leave it out, or train with one, "
                "such as REG=dropout"
            )
        inputs = [one for one in (batch.inputs, batch.lengths) if one is not None]
        with repeatable(self.task):
            log_p = mc_passes(self.task, *inputs, passes=mc, limit=batch_size)
        # In double precision: the disagreement is a small difference of entropies.
        log_p = (log_p.double().cpu() / self.mc_temperature).log_softmax(2)
        return self._predictions(*mc_mean(log_p), self.mc_threshold)

    def _predictions(
        self,
        probabilities: Tensor,
        entropy: Tensor,
        disagreement: Tensor | None,
        threshold: float,
    ) -> list[Prediction]:
        confidence, predicted = probabilities.max(1)
        shared = [None] * len(probabilities) if disagreement is None else disagreement.tolist()
        return [
            Prediction(
                label=self.classes[index],
                confidence=one,
                probabilities=dict(zip(self.classes, row, strict=True)),
                entropy=uncertainty,
                mutual_information=information,
                sure=uncertainty <= threshold,
            )
            for index, one, row, uncertainty, information in zip(
                predicted.tolist(),
                confidence.tolist(),
                probabilities.tolist(),
                entropy.tolist(),
                shared,
                strict=True,
            )
        ]


def load(path: str | Path, device: Any = "cpu", trusted: Collection[str] = ()) -> Predictor:
    """Load a checkpoint for predictions; see `tasks.load`."""
    return Predictor(open_checkpoint(path, device, trusted))
