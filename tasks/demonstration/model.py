"""A model on the page: its title, information on it, and its predictions."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regain.montecarlo import has_dropout
from tasks.data import Batch
from tasks.errors import InputError
from tasks.inference.opening import checkpoint_file
from tasks.inference.predictor import Prediction, Predictor
from tasks.run.checkpoints import LAST
from tasks.run.results import RESULTS

KINDS = ("image", "audio", "text")
# Models side by side.
MOST_MODELS = 2


@dataclass
class Model:
    """A model on the page.

    Args:
        predictor: The trained model.
        origin: The checkpoint, the folder of its run, or its address.
        passes: Passes of Monte Carlo dropout; 0 if the model has no dropout.
        title: What distinguishes it from the other model.
    """

    predictor: Predictor
    origin: str
    passes: int
    title: str = ""

    @classmethod
    def of(cls, predictor: Predictor, origin: str, passes: int) -> "Model":
        """Return the model of a predictor, without Monte Carlo dropout if it has no dropout.

        Raises:
            InputError: Its inputs are of a kind that the page has no field for.
        """
        if predictor.kind not in KINDS:
            raise InputError(
                f"{origin} classifies inputs of the kind {predictor.kind!r}; the demo takes "
                f"{', '.join(KINDS[:-1])} and {KINDS[-1]}: use make predict"
            )
        return cls(predictor, origin, passes if has_dropout(predictor.task) else 0)

    @property
    def threshold(self) -> float:
        """Entropy in nats above which a prediction is not sure."""
        predictor = self.predictor
        return predictor.mc_threshold if self.passes else predictor.threshold

    def classify(self, value: Any) -> tuple[Prediction, Batch]:
        """Classify an input; also return it as the model takes it.

        Raises:
            InputError: It cannot be decoded; the message is the reason.
        """
        batch = self.predictor.data.batch([self.predictor.decode(value)])
        [prediction] = self.predictor.predict(batch, self.passes)
        return prediction, batch

    def facts(self) -> dict[str, str]:
        """Return information on the model, by name."""
        facts = self.predictor.facts
        options = facts["config"].get("model")
        arch = options.get("arch") if isinstance(options, dict) else None
        known = {
            "Task": facts.get("task"),
            "Model": arch,
            "Training data": short_name(facts.get("data")),
            "Regularization": short_name(facts.get("reg")),
            "Seed": facts.get("seed"),
            "Parameters": f"{sum(one.numel() for one in self.predictor.task.parameters()):,}",
            "Validation accuracy": percent(facts["validation"].get("val/acc")),
            "Test accuracy": percent(measured_accuracy(self.origin)),
        }
        return {name: str(value) for name, value in known.items() if value is not None}


def check_models(models: Sequence[Model]) -> None:
    """Check that models take the same inputs and know the same classes.

    Raises:
        InputError: They do not, or there are too many.
    """
    if len(models) > MOST_MODELS:
        raise InputError(f"the demo compares {MOST_MODELS} checkpoints, not {len(models)}")
    first = models[0]
    for other in models[1:]:
        compared = f"{first.origin} and {other.origin} cannot be compared"
        if first.predictor.kind != other.predictor.kind:
            raise InputError(
                f"{compared}: one takes {first.predictor.kind}, the other {other.predictor.kind}"
            )
        unshared = set(first.predictor.classes) ^ set(other.predictor.classes)
        if unshared:
            named = ", ".join(sorted(unshared)[:3])
            raise InputError(f"{compared}: only one of them has the classes {named}")


def set_titles(models: Sequence[Model]) -> None:
    """Give each model a title: the shortest one that distinguishes it from the other."""

    def named(*keys: tuple[str, str]) -> Callable[[Model], str]:
        return lambda model: ", ".join(
            f"{name}={short_name(model.predictor.facts.get(key))}" for name, key in keys
        )

    preset, seed = ("REG", "reg"), ("SEED", "seed")
    titles: list[str] = []
    for title in (named(preset), named(preset, seed), lambda model: model.origin):
        titles = [title(model) for model in models]
        if len(set(titles)) == len(titles):
            break
    for number, (model, title_of_model) in enumerate(zip(models, titles, strict=True), 1):
        same = len(set(titles)) < len(titles)
        model.title = f"{title_of_model} ({number})" if same else title_of_model


def short_name(value: Any) -> str | None:
    """Return the name of data or of a preset; of a path, the last part without its suffix.

    Example:
        >>> short_name("fancyzhx/ag_news"), short_name("/home/me/reviews.csv"), short_name("both")
        ('fancyzhx/ag_news', 'reviews', 'both')
    """
    if value is None:
        return None
    text = str(value)
    path = Path(text)
    is_path = text.startswith(("/", "~", ".")) or path.suffix or len(path.parts) > 2
    return path.stem if is_path else text


def measured_accuracy(origin: str) -> float | None:
    """Return the test accuracy from the results beside a checkpoint, if they are there."""
    file = checkpoint_file(origin)
    if isinstance(file, str):
        return None
    try:
        results = json.loads((file.parent / RESULTS).read_text(encoding="utf-8"))
        accuracy = results["test_last" if file.name == LAST else "test"]["acc"]
        return float(accuracy)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def percent(value: Any) -> str | None:
    """Write a fraction in percent; None if it is no number.

    Example:
        >>> percent(0.9644)
        '96.4 %'
    """
    known = isinstance(value, float) and math.isfinite(value)
    return f"{100 * value:.1f} %" if known else None
