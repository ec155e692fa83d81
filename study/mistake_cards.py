"""Cards of the page: test examples that an arm predicts correctly and the baseline does not."""

import base64
import io
from typing import Any

import soundfile
from PIL import Image

from study.gain_table import GainTable
from study.mistakes import FixedMistakes, fixed_mistakes
from study.results import Result
from tasks.data import ClassificationData, Sound
from tasks.errors import InputError
from tasks.lookup import find_task

# Longer texts are truncated.
MOST_CHARACTERS = 2000
# Further classes that an arm predicted for one example are counted.
MOST_CLASSES = 2


def data_uri(kind: str, content: bytes) -> str:
    """Encode bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def embedded_media(media: Any) -> dict[str, str]:
    """Embed an image, a sound or a text as a field of its card."""
    buffer = io.BytesIO()
    if isinstance(media, str):
        return {"text": media if len(media) <= MOST_CHARACTERS else f"{media[:MOST_CHARACTERS]}…"}
    if isinstance(media, Sound):
        soundfile.write(buffer, media.samples, media.rate, format="FLAC", subtype="PCM_16")
        return {"audio": data_uri("audio/flac", buffer.getvalue())}
    assert isinstance(media, Image.Image)
    media.save(buffer, "PNG")
    return {"image": data_uri("image/png", buffer.getvalue())}


def data_of(result: Result) -> ClassificationData | None:
    """Load the data of a run; None if it is not on this machine."""
    record = result.record
    try:
        data = find_task(record["task"]).data_class(**record["config"]["data"])
        data.setup()
    except (InputError, ValueError, TypeError):
        return None
    return data


def mistakes_of(table: GainTable, index: int) -> dict[str, Any] | None:
    """Return the cards of the mistakes that an arm fixed; None if there are none."""
    found: FixedMistakes | None = fixed_mistakes(table.results[0], table.results[index])
    if found is None:
        return None
    data = data_of(found.run)
    classes = found.run.record["classes"]
    cards = [
        {
            "index": one.index,
            "label": classes[one.label],
            "before": _predictions(classes, one.before),
            "after": _predictions(classes, one.after),
            **(embedded_media(data.media("test", one.index)) if data else {}),
        }
        for one in found.examples
    ]
    return {
        "variant": table.labels[index],
        "total": found.total,
        "reverse": found.reverse,
        "cards": cards,
        "wide": any("audio" in card or "text" in card for card in cards),
    }


def _predictions(classes: list[str], counts: dict[int, int]) -> list[dict[str, str]]:
    """List the predicted classes, most frequent first, with counts if there are several runs."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    several = sum(counts.values()) > 1
    listed = [
        {"name": classes[label], "times": f" ({count}x)" if several else ""}
        for label, count in ranked[:MOST_CLASSES]
    ]
    if others := len(ranked) - len(listed):
        listed.append({"name": f"{others} other{'s' * (others > 1)}", "times": ""})
    return listed
