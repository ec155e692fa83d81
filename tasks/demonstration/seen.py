"""The input as the model takes it, in HTML: small picture, spectrogram, or tokens."""

import base64
import html
import io

import torch
from PIL import Image, ImageOps
from torch import Tensor

from tasks.data import Batch
from tasks.inference.predictor import Predictor
from tasks.nlp.data import TextData
from tasks.speech.data import SpeechData
from tasks.speech.models import LogMel, as_floats
from tasks.vision.data import VisionData

# Columns and rows of a drawn waveform.
COLUMNS, ROWS = 640, 120
# From low to high energy; readable on light and dark pages and without colour vision.
LOW, MIDDLE, HIGH = "#0b1d33", "#2f86c1", "#fff3b0"


def seen(predictor: Predictor, batch: Batch) -> str:
    """Return one input, a batch of one, as the model takes it.

    Shape:
        batch.inputs: (1, channels, height, width), (1, samples) or (1, tokens).
    """
    data = predictor.data
    if isinstance(data, TextData):
        return tokens(data, batch.inputs[0])
    if isinstance(data, SpeechData):
        return sound(predictor, data, batch)
    if isinstance(data, VisionData):
        return picture(batch.inputs[0])
    sizes = " x ".join(str(size) for size in batch.inputs.shape[1:])
    return f"<p>{sizes} numbers</p>"


def picture(pixels: Tensor) -> str:
    """Return a picture (channels, height, width) with values from 0 to 255."""
    channels, height, width = pixels.shape
    image = Image.fromarray(pixels.byte().movedim(0, -1).squeeze(-1).numpy())
    colours = "grey" if channels == 1 else "in colour"
    return figure(
        image, "The picture in this size", f"{width} x {height} pixels, {colours}", "pixels"
    )


def sound(predictor: Predictor, data: SpeechData, batch: Batch) -> str:
    """Return the spectrogram that the model computes, or the waveform if it computes none."""
    samples = batch.inputs[0]
    length = f"{len(samples) / data.sample_rate:.2f} s at {data.sample_rate:,} Hz, one channel"
    layer = next((m for m in predictor.task.modules() if isinstance(m, LogMel)), None)
    if layer is None:
        return figure(waveform(as_floats(samples)), "Waveform", f"waveform, {length}", "wave")
    with torch.no_grad():
        spectrogram, _ = layer(batch.inputs.to(predictor.task.device), None)
    caption = f"log-mel spectrogram, {length}; time runs to the right, frequency upwards"
    return figure(coloured(spectrogram[0].cpu()), "Spectrogram", caption, "wave")


def coloured(energies: Tensor) -> Image.Image:
    """Return a spectrogram (bands, frames) as a picture, low frequencies at the bottom."""
    low, high = energies.min(), energies.max()
    scaled = ((energies - low) / (high - low).clamp(min=1e-6) * 255).byte().flip(0)
    return ImageOps.colorize(Image.fromarray(scaled.numpy()), LOW, HIGH, MIDDLE)


def waveform(samples: Tensor) -> Image.Image:
    """Draw the range of the samples (samples,), in [-1, 1], of each column."""
    parts = samples.tensor_split(min(COLUMNS, len(samples)))
    low = torch.stack([part.min() for part in parts])
    high = torch.stack([part.max() for part in parts])
    peak = torch.maximum(high.max(), -low.min()).clamp(min=1e-6)
    rows = torch.linspace(1, -1, ROWS).unsqueeze(1) * peak
    # At least one row in each column.
    half = peak / (ROWS - 1)
    drawn = (rows <= high + half) & (rows >= low - half)
    return ImageOps.colorize(Image.fromarray((drawn * 200).byte().numpy()), LOW, HIGH, MIDDLE)


def tokens(data: TextData, ids: Tensor) -> str:
    """Return the tokens (tokens,) that the model reads; unknown ones are marked."""
    names = [data.tokenizer.id_to_token(int(one)) or "?" for one in ids]
    unknown = int((ids == data.unknown).sum())
    caption = f"{len(names)} tokens" if len(names) > 1 else "1 token"
    limit = data.tokenizer.truncation
    if limit is not None and len(names) >= limit["max_length"]:
        caption += ", the most that the model reads; the rest of the text is left out"
    if unknown:
        caption += f"; {unknown} unknown, in a dashed frame"
    if any(name.startswith("##") for name in names):
        caption += "; ## continues a word"
    shown = " ".join(
        f'<span class="token{" unknown" if one == data.unknown else ""}">{html.escape(name)}</span>'
        for one, name in zip(ids.tolist(), names, strict=True)
    )
    return f'<figure><p class="tokens">{shown}</p><figcaption>{caption}</figcaption></figure>'


def figure(image: Image.Image, name: str, caption: str, kind: str) -> str:
    """Return a picture with a caption as HTML; `kind` is a class of the style sheet."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img class="{kind}" alt="{name}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
