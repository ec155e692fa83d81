"""Keywords synthesized by espeak-ng: a speech data set that needs no network and no recordings.

The package `espeakng-loader` contains the library and its voices. A voice is an accent with a
variant of the vocal tract (`en-us+m3`). No variant occurs in two splits, so the splits have
different speakers, like those of recorded keyword data sets. Background noise, silence around the
word, gain, rate and pitch are drawn with a fixed seed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import espeakng_loader
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.transforms import Resample

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SAMPLE_RATE = 16_000

Clip = npt.NDArray[np.int16]
Speak = Callable[[str, str, int, int, int], Clip]


SPLITS = {
    "train": (
        "en-us+m1 en-us+f1 en-us+Andy en-us+steph en-us-nyc+Alex en-us-nyc+belinda "
        "en-gb-x-rp+m7 en-gb-x-rp+f2 en-gb-x-rp+david en-gb-x-rp+Annie en-gb-scotland+m3 "
        "en-gb-scotland+shelby en-gb-x-gbclan+ian en-gb-x-gbclan+Andrea en-gb-x-gbcwmd+Gene "
        "en-029+paul"
    ).split(),
    "validation": (
        "en-us+m2 en-us-nyc+linda en-gb-x-rp+norbert en-gb-scotland+f3 en-gb-x-gbclan+rob "
        "en-029+aunty"
    ).split(),
    "test": (
        "en-us+f4 en-us-nyc+robert en-gb-x-rp+marcelo en-gb-scotland+quincy "
        "en-gb-x-gbcwmd+anika en-029+m4"
    ).split(),
}
TAKES = 8  # of each keyword by each voice

RATES = (110, 260)  # words a minute
PITCHES = (20, 80)  # espeak's scale of 0 to 100
SIGNAL_TO_NOISE_DB = (3.0, 20.0)
PEAK_DB = (-20.0, -2.0)  # below full scale
SILENCE = (0.03, 0.25)  # seconds of background on either side
DURATION = (0.3, 1.2)  # seconds

_RETRIEVAL, _DONT_EXIT, _UTF8 = 0x0002, 0x8000, 1  # of speak_lib.h: synchronous, by callback
_RATE, _PITCH, _CHARACTERS = 1, 3, 1


def _espeak() -> Speak:
    """Initialize espeak-ng and return a function that synthesizes a word.

    The library keeps its state in C globals. It is neither thread-safe nor fork-safe: synthesize
    in the main process before data workers are forked, and pass them the clips.
    """
    data = Path(espeakng_loader.get_data_path())
    # The phase of a voice's flutter continues from one utterance to the next and cannot be reset. A
    # copy of the library has its own globals, so earlier calls do not change the result.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
    source_rate = library.espeak_Initialize(_RETRIEVAL, 0, os.fsencode(data), _DONT_EXIT)
    if source_rate <= 0:
        raise RuntimeError(f"espeak-ng cannot be initialized with the data in {data}")
    resample = Resample(source_rate, SAMPLE_RATE)
    chunks: list[Clip] = []

    def receive(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
        if samples and count > 0:  # the last call of an utterance has no samples
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    # ctypes keeps no reference to a callback, so it is stored with the function that needs it.
    callback = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )(receive)
    library.espeak_SetSynthCallback(callback)

    def speak(word: str, voice: str, rate: int, pitch: int, seed: int) -> Clip:
        variant = voice.partition("+")[2]
        # espeak silently ignores an unknown variant: it would use a voice of another split.
        known = not variant or (data / "voices" / "!v" / variant).is_file()
        if not known or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # breath noise is random
        chunks.clear()
        text = word.encode()
        size = ctypes.c_size_t(len(text) + 1)
        failed = library.espeak_Synth(text, size, 0, _CHARACTERS, 0, _UTF8, None, None)
        if failed or not chunks:
            raise RuntimeError(f"espeak-ng returned no audio for {word!r} with voice {voice!r}")
        wave = torch.from_numpy(np.concatenate(chunks)).float()
        spoken: Tensor = resample(wave)
        return np.asarray(spoken.clamp_(-32768, 32767).round_().numpy(), np.int16)

    speak.__dict__["callback"] = callback
    return speak


def _background(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return noise of unit power whose spectrum falls by 0 to 6 dB per octave, like room noise."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.arange(1, len(spectrum) + 1) ** -rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def _record(word: Clip, rng: np.random.Generator) -> Clip:
    """Mix a word with background noise at a random signal-to-noise ratio and level."""
    before, after = (rng.uniform(*SILENCE, 2) * SAMPLE_RATE).astype(int)
    shortest, longest = (int(seconds * SAMPLE_RATE) for seconds in DURATION)
    speech = np.pad(word.astype(np.float64), (before, max(after, shortest - before - len(word))))
    power = np.mean(word.astype(np.float64) ** 2)
    loudness = np.sqrt(power * 10 ** (-rng.uniform(*SIGNAL_TO_NOISE_DB) / 10))
    wave = (speech + loudness * _background(len(speech), rng))[:longest]
    wave *= 32767 * 10 ** (rng.uniform(*PEAK_DB) / 20) / np.abs(wave).max()
    return np.asarray(wave.round(), np.int16)


def synthesize() -> dict[str, tuple[list[Clip], list[int]]]:
    """Synthesize the clips of all splits: 16 kHz, mono, of different lengths.

    Every call returns the same clips, in every process. It takes a few seconds and runs in the
    calling process (see `_espeak` on threads and forks).

    Returns:
        The clips and their labels, indices in `KEYWORDS`, by split: train, validation and test.
    """
    speak = _espeak()
    splits: dict[str, tuple[list[Clip], list[int]]] = {}
    for stream, (split, names) in enumerate(SPLITS.items()):
        rng = np.random.default_rng((2021, stream))
        clips, labels = splits.setdefault(split, ([], []))
        for voice in names:
            for label, word in enumerate(KEYWORDS):
                for _ in range(TAKES):
                    rate, pitch = int(rng.integers(*RATES)), int(rng.integers(*PITCHES))
                    spoken = speak(word, voice, rate, pitch, int(rng.integers(1, 2**31)))
                    clips.append(_record(spoken, rng))
                    labels.append(label)
    return splits
