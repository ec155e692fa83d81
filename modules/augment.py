"""Augmentation of whole batches, on the device of the batch.

Each function returns a changed copy of a batch, with a random change for each example. The three
dataclasses hold the strengths of the augmentations of a task; by default all are off.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import check_amount, check_rate
from .mixing import cutmix, cutout, mixup
from .worddropout import word_dropout


def alternating_flip(indices: Tensor, epoch: int) -> Tensor:
    """Return which images to flip: each in every other epoch, half of them in the first epoch.

    Random flips show the same side of an image in half of all pairs of successive epochs.
    Alternating flips show both sides in each pair (Jordan 2024, arXiv 2404.00498).

    Shape:
        indices: (batch,), the index of each image in its data set. The output: (batch,), booleans.

    Example:
        >>> indices = torch.arange(5)
        >>> bool((alternating_flip(indices, 0) ^ alternating_flip(indices, 1)).all())
        True
    """
    # Adjacent images may be of one class or scene: the finalizer of MurmurHash3 mixes them.
    mixed = indices % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2**32
    return ((mixed >> 16) + epoch) % 2 == 1


def random_crop(images: Tensor, padding: int, flip: float | Tensor = 0.0) -> Tensor:
    """Shift each image by up to `padding` pixels in both directions, with reflect padding.

    Args:
        images: The batch.
        padding: Largest shift, in pixels.
        flip: Probability to flip an image left to right, in the same pass; or booleans (batch,).

    Shape:
        images: (batch, channels, height, width), larger than `padding` in height and width.

    Raises:
        ValueError: `padding` is not a whole number of at least 0, or too large for the images.

    Example:
        >>> random_crop(torch.rand(4, 3, 32, 32), padding=4).shape
        torch.Size([4, 3, 32, 32])
    """
    check_amount("padding", padding, whole=True)
    batch, channels, height, width = images.shape
    if padding >= min(height, width):
        raise ValueError(
            f"padding is smaller than images of {height} x {width} pixels, not {padding!r}"
        )
    sources = []
    for size in (height, width):
        shift = torch.randint(-padding, padding + 1, (batch, 1), device=images.device)
        source = (torch.arange(size, device=images.device) + shift).abs()
        sources.append(torch.where(source < size, source, 2 * (size - 1) - source))
    rows, columns = sources
    if isinstance(flip, Tensor) or flip:
        flipped = _flip_mask(flip, batch, images.device).view(batch, 1)
        columns = torch.where(flipped, columns.flip(1), columns)
    # One gather from the images themselves: no padded copy, and no loop over images.
    index = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    pixels = images.flatten(2).gather(2, index.expand(-1, channels, -1))
    return pixels.view(batch, channels, height, width)


def _flip_mask(flip: float | Tensor, batch: int, device: torch.device) -> Tensor:
    return flip if isinstance(flip, Tensor) else torch.rand(batch, device=device) < flip


def random_flip(images: Tensor, p: float | Tensor = 0.5) -> Tensor:
    """Flip each image left to right with probability `p`, or the images where `p` (batch,) is True.

    Shape:
        images: (batch, channels, height, width).
    """
    flipped = _flip_mask(p, len(images), images.device).view(-1, 1, 1, 1)
    return torch.where(flipped, images.flip(-1), images)


def time_shift(waveforms: Tensor, limit: int, lengths: Tensor | None = None) -> Tensor:
    """Shift each clip by up to `limit` samples, padded with silence; its length stays the same.

    Shape:
        waveforms: (batch, samples). lengths: (batch,), or None if no clip is padded.
    """
    batch, samples = waveforms.shape
    shift = torch.randint(-limit, limit + 1, (batch, 1), device=waveforms.device)
    source = torch.arange(samples, device=waveforms.device) - shift
    end = samples if lengths is None else lengths.unsqueeze(1)
    inside = (source >= 0) & (source < end)
    if lengths is not None:
        inside &= torch.arange(samples, device=waveforms.device) < end
    return waveforms.gather(1, source.clamp(0, samples - 1)) * inside


def add_noise(waveforms: Tensor, limit: float, lengths: Tensor | None = None) -> Tensor:
    """Add white noise of up to `limit` times the root mean square of the clip.

    Shape:
        waveforms: (batch, samples), floating point. lengths: (batch,), or None.
    """
    batch, samples = waveforms.shape
    # The loudness of an empty clip is 0, not NaN.
    count = samples if lengths is None else lengths.unsqueeze(1).clamp(min=1)
    loudness = (waveforms.square().sum(dim=1, keepdim=True) / count).sqrt()
    level = limit * torch.rand(batch, 1, device=waveforms.device)
    noise = torch.randn_like(waveforms) * loudness * level
    if lengths is not None:
        noise = noise * (torch.arange(samples, device=waveforms.device) < count)
    return waveforms + noise


def mask_stripe(spectrograms: Tensor, widest: int, dim: int) -> Tensor:
    """Set one stripe of each spectrogram to zero (SpecAugment, Park et al. 2019).

    Args:
        spectrograms: The batch, standardized to mean zero.
        widest: Largest width; the width is drawn from 0 to `widest` bins.
        dim: -1 for a stripe in time, -2 for one in frequency.

    Shape:
        spectrograms: (batch, ..., frequency, time).
    """
    bins = spectrograms.shape[dim]
    batch = spectrograms.shape[0]
    width = torch.randint(0, min(widest, bins) + 1, (batch, 1), device=spectrograms.device)
    start = (torch.rand(batch, 1, device=spectrograms.device) * (bins - width + 1)).long()
    position = torch.arange(bins, device=spectrograms.device)
    stripe = (position >= start) & (position < start + width)
    shape = [batch] + [1] * (spectrograms.dim() - 1)
    shape[dim] = bins
    return spectrograms.masked_fill(stripe.view(shape), 0.0)


def word_swap(ids: Tensor, p: float, keep: Tensor | None = None) -> Tensor:
    """Swap a token with the next one with probability `p` (Wei & Zou 2019).

    Args:
        ids: Token ids.
        p: Probability that a swap starts at a token that has not just been moved.
        keep: True at tokens that do not move (padding, special tokens).

    Shape:
        ids and keep: (batch, time).
    """
    movable = torch.ones_like(ids, dtype=torch.bool) if keep is None else ~keep
    first = torch.rand(ids.shape, device=ids.device) < p
    first[:, -1:] = False
    first[:, :-1] &= movable[:, :-1] & movable[:, 1:]
    # A moved token starts no swap: in a run of successive starts, keep every other one.
    position = torch.arange(ids.shape[1], device=ids.device)
    before_run = torch.where(first, -1, position).cummax(dim=1).values
    first &= (position - before_run) % 2 == 1
    second = first.roll(1, dims=1)
    return torch.where(first, ids.roll(-1, dims=1), torch.where(second, ids.roll(1, dims=1), ids))


def _check_amounts(
    augmentation: object,
    rates: tuple[str, ...] = (),
    counts: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
) -> None:
    for name, value in vars(augmentation).items():
        if name in rates:
            check_rate(name, value)
        elif name not in kinds:
            check_amount(name, value, whole=name in counts)


@dataclass(frozen=True)
class ImageAugmentation:
    """Augmentation of images during training; by default all is off.

    Args:
        crop: Largest shift, as a fraction of the height, in [0, 1).
        flip: Probability to flip left to right, in [0, 1).
        flip_kind: `random`, or `alternating`: each image in every other epoch, as in
            `alternating_flip`; `flip` is then 0.5.
        cutout: Side of the filled square, as a fraction of the height, in [0, 1).
        mixup: Parameter alpha of mixup, at least 0.
        cutmix: Parameter alpha of cutmix, at least 0; with mixup too, each batch gets one of both.

    Example:
        >>> images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
        >>> changed, mixed = ImageAugmentation(crop=0.125, flip=0.5, mixup=0.2)(images, targets)
        >>> mixed.sum(dim=1).allclose(torch.ones(4))
        True
    """

    crop: float = 0.0
    flip: float = 0.0
    flip_kind: Literal["random", "alternating"] = "random"
    cutout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.flip_kind not in ("random", "alternating"):
            raise ValueError(f"flip_kind is 'random' or 'alternating', not {self.flip_kind!r}")
        if self.flip_kind == "alternating" and self.flip not in (0.0, 0.5):
            raise ValueError(
                f"flip_kind=alternating flips half of the images: flip is 0.5, not {self.flip!r}"
            )
        _check_amounts(self, rates=("crop", "flip", "cutout"), kinds=("flip_kind",))

    def __call__(
        self, images: Tensor, targets: Tensor, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment images (batch, channels, height, width) and targets (batch, classes).

        `flipped` (batch,) selects the images to flip; if None they are drawn.
        """
        flip = self.flip if flipped is None or not self.flip else flipped
        if self.crop:
            # Reflect padding is limited to the size of the image.
            padding = min(round(self.crop * images.shape[2]), min(images.shape[2:]) - 1)
            images = random_crop(images, padding, flip)
        elif self.flip:
            images = random_flip(images, flip)
        if self.cutout:
            images = cutout(images, round(self.cutout * images.shape[2]))
        if self.mixup and (not self.cutmix or float(torch.rand((), device="cpu")) < 0.5):
            return mixup(images, targets, self.mixup)
        if self.cutmix:
            return cutmix(images, targets, self.cutmix)
        return images, targets


@dataclass(frozen=True)
class AudioAugmentation:
    """Augmentation of audio during training; by default all is off.

    Args:
        time_shift: Largest shift in seconds, at least 0.
        noise: Largest level of the noise relative to the root mean square of the clip, at least 0.
        frequency_mask: Largest width of the stripe of mel bands that is set to zero.
        time_mask: Largest width of the stripe of frames that is set to zero.

    Example:
        >>> AudioAugmentation(time_shift=0.1).waveform(torch.randn(2, 16000), 16000).shape
        torch.Size([2, 16000])
    """

    time_shift: float = 0.0
    noise: float = 0.0
    frequency_mask: int = 0
    time_mask: int = 0

    def __post_init__(self) -> None:
        _check_amounts(self, counts=("frequency_mask", "time_mask"))

    def waveform(self, waveforms: Tensor, rate: int, lengths: Tensor | None = None) -> Tensor:
        """Augment waveforms (batch, samples) with `rate` samples per second."""
        if self.time_shift:
            waveforms = time_shift(waveforms, round(self.time_shift * rate), lengths)
        if self.noise:
            waveforms = add_noise(waveforms, self.noise, lengths)
        return waveforms

    def spectrogram(self, spectrograms: Tensor) -> Tensor:
        """Augment standardized spectrograms (batch, frequency, time)."""
        if self.frequency_mask:
            spectrograms = mask_stripe(spectrograms, self.frequency_mask, dim=-2)
        if self.time_mask:
            spectrograms = mask_stripe(spectrograms, self.time_mask, dim=-1)
        return spectrograms


@dataclass(frozen=True)
class TextAugmentation:
    """Augmentation of text during training; by default all is off.

    Args:
        word_dropout: Probability to replace a token by the unknown token, in [0, 1).
        word_swap: Probability to swap a token with the next one, in [0, 1).

    Example:
        >>> ids = torch.tensor([[4, 5, 6, 0]])
        >>> TextAugmentation(word_swap=0.9)(ids, unknown=1, keep=ids == 0)[0, 3].item()
        0
    """

    word_dropout: float = 0.0
    word_swap: float = 0.0

    def __post_init__(self) -> None:
        _check_amounts(self, rates=("word_dropout", "word_swap"))

    def __call__(self, ids: Tensor, unknown: int, keep: Tensor) -> Tensor:
        """Augment token ids (batch, time), except where `keep` is True."""
        if self.word_swap:
            ids = word_swap(ids, self.word_swap, keep)
        if self.word_dropout:
            ids = word_dropout(ids, self.word_dropout, unknown, keep)
        return ids
