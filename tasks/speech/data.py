"""Speech: keywords of espeak-ng, Google's Speech Commands, and any folder, file or hub data set."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from tasks.data import ClassificationData, DataSpec, Sound
from tasks.data.loading import Rows, Source, encoded_input
from tasks.errors import InputError, first_line
from tasks.speech.samples import mono

# Samples a second of the builtin clips.
BUILTIN_RATE = 16_000
# Sample rates that a clip may have.
LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000
# Samples beyond full scale, as in a loud MP3, are clipped; beyond this value the scale is wrong.
LOUDEST = 10.0
# Largest product of the two rates, without common factors, for torchaudio's resampling filter.
LARGEST_FILTER = 1_000_000
FORMATS = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU and CAF"
# First bytes of files of other formats: offset, bytes, name.
FOREIGN = (
    (4, b"ftyp", "an MP4 file (M4A, MP4, MOV)"),
    (8, b"AVI ", "an AVI video"),
    (0, b"\x1aE\xdf\xa3", "a Matroska file (MKV, WebM)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file (WMA, WMV)"),
    (0, b"#!AMR", "an AMR file"),
)


@dataclass
class SpeechSpec(DataSpec):
    """What a speech model must know of its data.

    Args:
        classes: Names of the classes.
        sample_rate: Samples a second.
    """

    sample_rate: int


class SpeechData(ClassificationData):
    """Clips of any length as 16-bit samples, (batch, samples), padded with silence.

    Args:
        sample_rate: Rate in Hz to resample clips to, at least 1000.
        max_seconds: Longest clip to accept; each batch is padded to its longest clip.
        **options: See `ClassificationData`.
    """

    kind: ClassVar[str] = "audio"
    noun: ClassVar[str] = "clip"

    def __init__(
        self, sample_rate: int = 16_000, max_seconds: float = 60.0, **options: Any
    ) -> None:
        super().__init__(**options)
        if not max_seconds > 0:
            raise ValueError(f"max_seconds is more than 0, not {max_seconds!r}")
        if sample_rate < LOWEST_RATE:
            raise ValueError(f"sample_rate is at least 1000 samples a second, not {sample_rate!r}")
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds

    def decoding_options(self) -> dict[str, Any]:
        """Return the settings that the decoded inputs depend on."""
        return {"sample_rate": self.sample_rate, "max_seconds": self.max_seconds}

    def read_layout(self, folder: Path) -> Source | None:
        """Read a folder in the layout of Speech Commands.

        It holds a folder of clips for each word, and lists of those for validation and test.
        """
        if not (folder / "testing_list.txt").is_file():
            return None
        real = folder.resolve()
        return read_speech_commands(str(folder), real.parent, f"{real.name}.tar.gz", "")

    def decode(self, value: Any) -> Tensor:
        """Turn samples or an encoded clip into 16-bit samples at the sample rate, one channel.

        Samples in memory are an array of 16 bits at 16 kHz, or (samples, rate); see `mono`.
        """
        if isinstance(value, np.ndarray):
            clip, rate = torch.from_numpy(value) / 32768, BUILTIN_RATE
        elif isinstance(value, tuple):
            clip, rate = mono(value)
            self._check(len(clip), rate)
            check_samples(clip.numpy())
        else:
            clip, rate = self._read(encoded_input(value, "clip"))
        if rate != self.sample_rate:
            clip = resampled(clip, rate, self.sample_rate)
        return (clip * 32768).round().clamp(-32768, 32767).to(torch.int16)

    def decode_input(self, value: Any) -> Tensor:
        """Decode a file, the bytes of one, or (samples, rate); see `mono`.

        Raises:
            ValueError: It cannot be decoded, or has no rate.
        """
        if isinstance(value, str | Path):
            value = {"path": str(value)}
        elif isinstance(value, bytes | bytearray):
            value = {"bytes": bytes(value)}
        elif not isinstance(value, dict | tuple):
            # An array has no rate, which `mono` says.
            mono(value)
        return self.decode(value)

    def _check(self, frames: int, rate: int) -> None:
        """Check the sample rate and the length of a clip before memory is allocated for it."""
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise ValueError(
                f"its sample rate is {rate}, not within {LOWEST_RATE} and {HIGHEST_RATE}"
            )
        seconds = frames / rate
        if seconds > self.max_seconds:
            raise ValueError(
                f"it lasts {seconds:.0f} s, more than --data.max_seconds="
                f"{self.max_seconds:g}; cut it, or raise the limit"
            )

    def _read(self, encoded: bytes | str) -> tuple[Tensor, int]:
        try:
            with soundfile.SoundFile(
                Recording(encoded) if isinstance(encoded, bytes) else encoded
            ) as file:
                rate = file.samplerate
                # A header may claim more samples than there are.
                self._check(file.frames, rate)
                # With their number: soundfile does not find the end of some codecs, such as GSM.
                samples = file.read(file.frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(_no_clip(encoded, error.error_string)) from error
        check_samples(samples)
        return torch.from_numpy(samples).mean(dim=1), rate

    def spec(self) -> SpeechSpec:
        """Return the classes and the sample rate."""
        self.setup()
        return SpeechSpec(self.classes, self.sample_rate)

    def media(self, split: str, index: int) -> Sound:
        """Return the sound of one example."""
        samples = self.splits[split].gather(torch.tensor([index])).inputs[0]
        return Sound(samples.numpy(), self.sample_rate)


@SpeechData.sources.register("builtin")
def builtin() -> Source:
    """Ten keywords spoken by the voices of espeak-ng; no voice is in two splits."""
    from tasks.speech.builtin import KEYWORDS, synthesize

    return Source(
        {split: Rows(clips, labels) for split, (clips, labels) in synthesize().items()},
        list(KEYWORDS),
    )


@SpeechData.sources.register("speech_commands")
def speech_commands(cache_dir: Path) -> Source:
    """Google's Speech Commands (Warden 2018), downloaded by torchaudio."""
    root = cache_dir / "torchaudio"
    root.mkdir(parents=True, exist_ok=True)
    return read_speech_commands(
        "speech_commands", root, "speech_commands_v0.02", "SpeechCommands", download=True
    )


def read_speech_commands(
    name: str, root: Path, url: str, folder: str, download: bool = False
) -> Source:
    """Read Speech Commands from a folder, or download it there first.

    Args:
        name: What the data set is called in an error.
        root: The folder that torchaudio looks in.
        url: As `torchaudio.datasets.SPEECHCOMMANDS` takes it.
        folder: Folder of the archive's content below `root`.
        download: Whether to download what is missing.

    Raises:
        InputError: It is damaged, lacks a split, or cannot be downloaded.
    """
    splits = {}
    for split, subset in (("train", "training"), ("validation", "validation"), ("test", "testing")):
        try:
            # It leaves out the folder of background noise, which holds no word.
            part = torchaudio.datasets.SPEECHCOMMANDS(root, url, folder, download, subset)
            facts = [part.get_metadata(index) for index in range(len(part))]
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"DATA={name}: {first_line(error)}") from error
        if not facts:
            raise InputError(f"DATA={name}: no clips for {split}: its lists name none that exists")
        files = [{"bytes": None, "path": str(root / folder / fact[0])} for fact in facts]
        splits[split] = Rows(files, [fact[2] for fact in facts])
    return Source(splits)


def _no_clip(encoded: bytes | str, said: str) -> str:
    """Describe why a file cannot be decoded, and the fix."""
    if isinstance(encoded, str):
        with Path(encoded).open("rb") as file:
            begin = file.read(12)
    else:
        begin = encoded[:12]
    for offset, sign, kind in FOREIGN:
        if begin[offset:].startswith(sign):
            return f"it is {kind}, which is not read; convert it to WAV or FLAC"
    return f"it is no clip: {said.removeprefix('Error : ')}; formats are {FORMATS}"


class Recording(io.BytesIO):
    """An encoded clip in memory; the header of a damaged one may hold a negative offset."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Seek, or stay where the offset is invalid: soundfile ignores exceptions here."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def check_samples(samples: np.ndarray) -> None:
    """Check the samples of a clip.

    Raises:
        ValueError: There are none, or some are NaN, infinite or far beyond full scale.
    """
    if not len(samples):
        raise ValueError("it holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are NaN or infinite")
    peak = float(np.abs(samples).max())
    if peak > LOUDEST:
        raise ValueError(f"its samples reach {peak:g}, where full scale is 1; scale it first")


def resampled(clip: Tensor, rate: int, wanted: int) -> Tensor:
    """Resample a clip (samples,) from one rate to another."""
    common = math.gcd(rate, wanted)
    if rate * wanted // common**2 <= LARGEST_FILTER:
        samples: Tensor = torchaudio.functional.resample(clip, rate, wanted)
        return samples
    # Rates without a small ratio would need a filter of gigabytes.
    from scipy.signal import resample_poly

    return torch.from_numpy(resample_poly(clip.numpy(), wanted // common, rate // common))
