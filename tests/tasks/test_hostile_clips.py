"""Clips in common encodings, files that are not clips, and clips that are silent or very short."""

import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tasks.speech.data import SpeechData
from tests.tasks.test_bad_data import RATE, TONE, heard, pitch, wave

Train = Callable[..., None]

CODINGS = {
    "24 bits": ("WAV", "PCM_24"),
    "32 bits": ("WAV", "PCM_32"),
    "8 bits": ("WAV", "PCM_U8"),
    "floats": ("WAV", "FLOAT"),
    "double floats": ("WAV", "DOUBLE"),
    "A-law": ("WAV", "ALAW"),
    "mu-law": ("AU", "ULAW"),
    "ADPCM": ("WAV", "IMA_ADPCM"),
    "GSM": ("WAV", "GSM610"),
    "24 bits, FLAC": ("FLAC", "PCM_24"),
    "24 bits, AIFF": ("AIFF", "PCM_24"),
    "Opus": ("OGG", "OPUS"),
    "ALAC": ("CAF", "ALAC_16"),
}


@pytest.mark.parametrize(("kind", "sub"), CODINGS.values(), ids=CODINGS)
def test_an_encoding_is_read(kind: str, sub: str) -> None:
    decoded = heard(wave(TONE, kind=kind, sub=sub))
    assert 0 <= len(decoded) - len(TONE) < 500
    assert abs(pitch(decoded) - 440) <= 1
    assert 15_500 < int(decoded[1000:3000].max()) < 18_000


MP4 = b"\0\0\0\x20ftyp%b\0\0\0\0mp42isom\0\0\0\0" + bytes(400)
NO_CLIPS = {
    "M4A": (MP4 % b"M4A ", r"it is an MP4 file \(M4A, MP4, MOV\), which is not read; convert it"),
    "a video": (MP4 % b"isom", "it is an MP4 file"),
    "an AVI video": (b"RIFF" + struct.pack("<I", 400) + b"AVI LIST" + bytes(400), "an AVI video"),
    "a WebM video": (b"\x1aE\xdf\xa3" + bytes(400), "it is a Matroska file"),
    "WMA": (bytes.fromhex("3026b2758e66cf11") + bytes(400), "it is a Windows Media file"),
    "AMR": (b"#!AMR\n" + bytes(400), "it is an AMR file"),
    "a page": (b"<!DOCTYPE html><title>404</title>", "it is no clip: .*; formats are WAV, FLAC"),
    "a packed clip": (gzip.compress(wave(TONE)), "it is no clip: .*; formats are WAV, FLAC"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "it is no clip"),
}


@pytest.mark.parametrize(("content", "message"), NO_CLIPS.values(), ids=NO_CLIPS)
@pytest.mark.parametrize("where", ["bytes", "file"])
def test_a_file_that_is_not_a_clip_is_refused(content: bytes, message: str, where: str) -> None:
    # With the name of a WAV file.
    Path("x.wav").write_bytes(content)
    value = {"bytes": content if where == "bytes" else None, "path": "x.wav"}
    with pytest.raises(ValueError, match=message):
        SpeechData().decode(value)


@pytest.mark.parametrize("rate", [8000, RATE, 44_100, 44_099])
def test_a_clip_of_one_sample(rate: int) -> None:
    assert 1 <= len(heard(wave(np.array([0.5]), rate))) <= 2


def test_silence_is_a_clip() -> None:
    assert heard(wave(np.zeros(400))).abs().max() == 0


@pytest.mark.parametrize("reg", ["none", "both"])
def test_clips_of_one_sample_and_silent_ones_are_trained_on(reg: str, train: Train) -> None:
    for name, samples in (("short", np.array([0.1])), ("silent", np.zeros(800))):
        Path("clips", name).mkdir(parents=True)
        for number in range(10):
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
            Path("clips", name, f"{number}.wav").write_bytes(buffer.getvalue())
    train(
        *("--task", "speech", "--reg", reg, "--data=clips", "--model.width=4"),
        *("--trainer.max_epochs=1", "--data.cache_dir=cache"),
    )
    found = json.loads(Path("run/metrics.json").read_text())
    assert np.isfinite(found["test"]["loss"])
