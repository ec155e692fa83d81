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
from tasks.errors import InputError, first_line
from tasks.sources import Rows, Source, encoded_input

# Samples a second of the builtin clips.
BUILTIN_RATE = 16_000
# Sample rates that a clip may have.
LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000
# Samples beyond full scale are clipped, as of a loud MP3; beyond this one they mean something else.
LOUDEST = 10.0
# Size of a resampling filter, the product of both rates without common factors, that is kept whole.
LARGEST_FILTER = 1_000_000
FORMATS = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU and CAF"
# How other files begin: at which byte, with what.
FOREIGN = (
    (4, b"ftyp", "an MP4 file (M4A, MP4, MOV)"),
    (8, b"AVI ", "an AVI video"),
    (0, b"\x1aE\xdf\xa3", "a Matroska file (MKV, WebM)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file (WMA, WMV)"),
    (0, b"#!AMR", "an AMR file"),
)


@dataclass
class SpeechSpec(DataSpec):
    """What a speech model must know of its clips.

    Args:
        classes: Names of the classes.
        sample_rate: Samples a second.
    """

    sample_rate: int


class SpeechData(ClassificationData):
    """Clips of any length as 16-bit samples, (batch, samples), padded with silence.

    Args:
        sample_rate: Samples a second that clips are resampled to.
        max_seconds: A longer clip is refused: each batch is as long as the longest clip in it.
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
        """Name what the decoded inputs depend on, besides the source."""
        return {"sample_rate": self.sample_rate, "max_seconds": self.max_seconds}

    def builtin(self) -> Source:
        """Ten keywords spoken by the voices of espeak-ng; no voice is in two splits."""
        from tasks.speech.builtin import KEYWORDS, synthesize

        return Source(
            {split: Rows(clips, labels) for split, (clips, labels) in synthesize().items()},
            list(KEYWORDS),
        )

    def canonical(self) -> Source | None:
        """Google's Speech Commands (Warden 2018): downloaded by name, or a folder of its layout.

        The layout: a folder of clips for each word, and lists of those for validation and test.
        """
        path = Path(self.source).expanduser()
        if self.source == "speech_commands":
            root, download, url = self.cache_dir / "torchaudio", True, "speech_commands_v0.02"
            folder = "SpeechCommands"
            root.mkdir(parents=True, exist_ok=True)
        elif (path / "testing_list.txt").is_file():
            path = path.resolve()
            root, download, url, folder = path.parent, False, f"{path.name}.tar.gz", ""
        else:
            return None
        splits = {}
        for split, subset in (
            ("train", "training"),
            ("validation", "validation"),
            ("test", "testing"),
        ):
            try:
                # It leaves out the folder of background noise, which holds no word.
                part = torchaudio.datasets.SPEECHCOMMANDS(root, url, folder, download, subset)
                facts = [part.get_metadata(place) for place in range(len(part))]
            except (RuntimeError, OSError, ValueError) as error:
                raise InputError(f"DATA={self.source}: {first_line(error)}") from error
            if not facts:
                raise InputError(
                    f"DATA={self.source}: no clips for {split} are where it lists them"
                )
            base = root / folder
            files = [{"bytes": None, "path": str(base / fact[0])} for fact in facts]
            splits[split] = Rows(files, [fact[2] for fact in facts])
        return Source(splits)

    def decode(self, value: Any) -> Tensor:
        """Turn samples or an encoded clip into 16-bit samples at the sample rate, one channel."""
        if isinstance(value, np.ndarray):
            mono, rate = torch.from_numpy(value) / 32768, BUILTIN_RATE
        else:
            mono, rate = self._read(encoded_input(value, "clip"))
        if rate != self.sample_rate:
            mono = resampled(mono, rate, self.sample_rate)
        return (mono * 32768).round().clamp(-32768, 32767).to(torch.int16)

    def _read(self, encoded: bytes | str) -> tuple[Tensor, int]:
        try:
            with soundfile.SoundFile(
                Recording(encoded) if isinstance(encoded, bytes) else encoded
            ) as file:
                rate = file.samplerate
                if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                    raise ValueError(
                        f"its sample rate is {rate}, not within {LOWEST_RATE} and {HIGHEST_RATE}"
                    )
                seconds = file.frames / rate
                if seconds > self.max_seconds:
                    # Before any of it takes memory: a header may tell of more than there is.
                    raise ValueError(
                        f"it lasts {seconds:.0f} s, more than --data.max_seconds="
                        f"{self.max_seconds:g}; cut it, or raise the limit"
                    )
                # By its number: of some codecs, such as GSM, soundfile knows no end by itself.
                samples = file.read(file.frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(_no_clip(encoded, error.error_string)) from error
        if not len(samples):
            raise ValueError("it holds no samples")
        if not np.isfinite(samples).all():
            raise ValueError("it holds samples that are NaN or infinite")
        peak = float(np.abs(samples).max())
        if peak > LOUDEST:
            raise ValueError(f"its samples reach {peak:g}, where full scale is 1; scale it first")
        return torch.from_numpy(samples).mean(dim=1), rate

    def spec(self) -> SpeechSpec:
        """Tell a model the classes and the sample rate."""
        self.setup()
        return SpeechSpec(self.classes, self.sample_rate)

    def media(self, split: str, index: int) -> Sound:
        """Make the sound of one example."""
        samples = self.splits[split].gather(torch.tensor([index])).inputs[0]
        return Sound(samples.numpy(), self.sample_rate)


def _no_clip(encoded: bytes | str, said: str) -> str:
    """Say why there is no clip in a file, and what to do about it."""
    if isinstance(encoded, str):
        with Path(encoded).open("rb") as file:
            begin = file.read(12)
    else:
        begin = encoded[:12]
    for place, sign, kind in FOREIGN:
        if begin[place:].startswith(sign):
            return f"it is {kind}, which is not read; convert it to WAV or FLAC"
    return f"it is no clip: {said.removeprefix('Error : ')}; formats are {FORMATS}"


class Recording(io.BytesIO):
    """An encoded clip; a damaged one may send its reader to a place before its beginning."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, or stay where there is none: an error here would reach nobody."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def resampled(mono: Tensor, rate: int, wanted: int) -> Tensor:
    """Resample a clip (samples,) from one rate to another."""
    common = math.gcd(rate, wanted)
    if rate * wanted // common**2 <= LARGEST_FILTER:
        samples: Tensor = torchaudio.functional.resample(mono, rate, wanted)
        return samples
    # A filter for each phase would take gigabytes where the rates have no small ratio.
    from scipy.signal import resample_poly

    return torch.from_numpy(resample_poly(mono.numpy(), wanted // common, rate // common))
