"""Examples of the page: inputs from the test split of the builtin data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image

from tasks.data import Sound
from tasks.demonstration.model import Model

# Examples that are classified to choose from, those that are shown, and of these the most that
# are mistakes of a model, or inputs that two models disagree on.
CANDIDATES, SHOWN, MOST_CHOSEN = 200, 8, 3


class Example(NamedTuple):
    """A test example: its file, or the text itself, and its class."""

    value: str
    label: str


def builtin_examples(models: Sequence[Model], folder: Path, cache_dir: str) -> list[Example]:
    """Return test examples; none if a model is trained on other data.

    Args:
        models: The models of the page.
        folder: Folder for the files.
        cache_dir: Folder of decoded data.
    """
    if any(model.predictor.facts.get("data") != "builtin" for model in models):
        return []
    data = type(models[0].predictor.data)(source="builtin", cache_dir=cache_dir)
    data.setup()
    count = len(data.splits["test"])
    candidates = np.linspace(0, count - 1, min(count, CANDIDATES)).astype(int).tolist()
    media = [data.media("test", index) for index in candidates]
    truths = data.splits["test"].gather(torch.tensor(candidates)).labels.tolist()
    names = [data.classes[label] for label in truths]
    inputs = [(one.samples, one.rate) if isinstance(one, Sound) else one for one in media]
    said = [[one.label for one in model.predictor(inputs)] for model in models]
    # With one model, its mistakes; with two, where they disagree.
    compared = [*said, names] if len(said) == 1 else said
    rows = range(len(candidates))
    telling = [row for row in rows if len({labels[row] for labels in compared}) > 1]
    chosen = telling[:MOST_CHOSEN]
    # Then each class once, and then any others.
    for row in rows:
        if len(chosen) < SHOWN and names[row] not in {names[one] for one in chosen}:
            chosen.append(row)
    chosen += [row for row in rows if row not in chosen][: SHOWN - len(chosen)]
    return [Example(_written(media[row], folder / f"{row}"), names[row]) for row in sorted(chosen)]


def _written(media: Any, stem: Path) -> str:
    if isinstance(media, str):
        return media
    if isinstance(media, Image.Image):
        file = stem.with_suffix(".png")
        media.save(file)
    else:
        file = stem.with_suffix(".wav")
        soundfile.write(file, media.samples, media.rate, subtype="PCM_16")
    return str(file)
