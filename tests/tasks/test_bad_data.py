"""Damaged and unusual data: read as intended, or rejected with an error that names it."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from PIL import Image

from tasks.errors import InputError
from tasks.nlp.data import TextData
from tasks.speech.data import SpeechData
from tasks.vision.data import VisionData

GOOD = "".join(["text,label\n", *(f"text {row},{row % 2}\n" for row in range(20))])
LINES = "".join(f'{{"text": "text {row}", "label": {row % 2}}}\n' for row in range(20))
RATE = 16_000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE)


def texts(content: str | bytes, name: str = "t.csv", **options: Any) -> TextData:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = TextData(source=f"./{name}", cache_dir="cache", **options)
    data.setup()
    return data


REFUSED_TABLES = {
    "invalid UTF-8": ("t.csv", GOOD.encode() + b"caf\xe9,1\n", "byte 0xe9 .*; save it as UTF-8"),
    "UTF-16": ("t.csv", GOOD.encode("utf-16"), "codec can't decode .*; save it as UTF-8"),
    "no bytes": ("t.csv", "", "it is empty, or has no rows"),
    "no rows": ("t.csv", "text,label\n", "it is empty, or has no rows"),
    "an empty JSON file": ("t.json", "", "it is empty, or has no rows"),
    "no header": ("t.csv", GOOD.partition("\n")[2], "no column with labels .*--data.label_column"),
    "another delimiter": (
        "t.csv",
        GOOD.replace(",", ";"),
        "no column with labels among text;label",
    ),
    "a row too long": ("t.csv", GOOD + "a,1,2,3\n", "Expected 2 fields in line 22, saw 4"),
    "a row too short": ("t.csv", GOOD + "a\n", "row 20 of split train has no label"),
    "an open quote": ("t.csv", GOOD + '"a,1\n', "EOF inside string starting at row 21"),
    "a broken line": ("t.jsonl", LINES + '{"text": "a", "lab\n', "JSON parse error"),
    "only white space": ("t.csv", GOOD + "\u00a0\u2003,1\n", "row 20: the text is empty"),
    "NaN as label": ("t.csv", GOOD + "t,nan\n", "row 20 of split train has no label"),
    "infinity as label": ("t.csv", GOOD + "t,inf\n", "label inf: a label is a name or a number"),
    "a list as label": ("t.jsonl", LINES.replace(": 0", ": [0]").replace(": 1", ": [1]"), "label"),
    "names and numbers as labels": (
        "t.jsonl",
        LINES + '{"text": "a", "label": "x"}\n',
        "row 20 of split train has label 'x', and row 0 has 0: labels are all names or all",
    ),
    "one class": ("t.csv", GOOD.replace(",1", ",0"), "all 16 training examples are of one class"),
    "two examples": ("t.csv", "text,label\na,0\nb,1\n", "0 training examples are left of 2"),
    "no texts": ("t.csv", "text,label\n" + "1,2\n" * 20, "no column of type text"),
}


@pytest.mark.parametrize(
    ("name", "content", "message"), REFUSED_TABLES.values(), ids=REFUSED_TABLES
)
def test_a_table_is_refused(
    name: str, content: str | bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        texts(content, name)
    assert "\n" not in str(caught.value)
    # `datasets` logs nothing, and no partial file remains.
    assert "Failed" not in "".join(capfd.readouterr())
    assert not list(Path("cache").glob("*.partial"))


def rows(labels: list[Any], count: int = 20) -> pyarrow.Table:
    return pyarrow.table({"text": [f"text {row}" for row in range(count)], "label": labels})


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_a_damaged_parquet_file_is_refused(damage: str) -> None:
    pyarrow.parquet.write_table(rows([0, 1] * 10), "t.parquet")
    content = bytearray(Path("t.parquet").read_bytes())
    content[40:60] = b"\xff" * 20
    damaged = {"cut": content[:300], "emptied": b"", "overwritten": content}[damage]
    with pytest.raises(InputError, match=r"DATA=\./t\.parquet: cannot be loaded"):
        texts(bytes(damaged), "t.parquet")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "it is empty, or has no rows"),
        ([None] + [1] * 19, "row 0 of split train has no label"),
        ([float("nan"), 1.0] * 10, "row 0 of split train has no label"),
        ([b"a", b"b"] * 10, "has label b'a': a label is a name or a number"),
    ],
    ids=["no rows", "null", "NaN", "bytes"],
)
def test_labels_of_a_parquet_file_are_refused(labels: list[Any], message: str) -> None:
    table = rows(labels, count=len(labels))
    pyarrow.parquet.write_table(table, "t.parquet")
    with pytest.raises(InputError, match=message):
        texts(Path("t.parquet").read_bytes(), "t.parquet")


def test_a_table_with_a_byte_order_mark() -> None:
    swapped = "".join(["label,text\n", *(f"{row % 2},text {row}\n" for row in range(20))])
    data = texts(b"\xef\xbb\xbf" + swapped.encode())
    assert data.texts["train"] == [f"text {row}" for row in range(20)]


def test_a_text_with_a_nul_and_one_of_characters_without_width() -> None:
    data = texts(GOOD + "a\0b,1\n" + "\u200b\u200d,0\n")
    assert data.texts["train"][20:] == ["a\0b", "\u200b\u200d"]
    lengths = data.splits["train"].lengths()
    assert lengths is not None
    assert int(lengths.min()) >= 1


@pytest.mark.parametrize("text", ["word " * 200_000, "a" * 1_000_000], ids=["words", "one word"])
def test_a_text_of_a_megabyte_is_cut(text: str) -> None:
    data = texts(GOOD + f"{text},1\n", max_tokens=32)
    assert max(data.splits["train"].values.shape[-1], 0) > 0
    every = [data.splits[split].lengths() for split in data.splits]
    assert max(int(lengths.max()) for lengths in every if lengths is not None) <= 32


def three(train: list[str], validation: list[str], test: list[str]) -> Path:
    folder = Path("d")
    folder.mkdir()
    for name, lines in (("train", train), ("validation", validation), ("test", test)):
        (folder / f"{name}.csv").write_text("".join(["text,label\n", *lines]))
    return folder


def folder_of(lines: list[list[str]]) -> TextData:
    data = TextData(source=str(three(*lines)), cache_dir="cache")
    data.setup()
    return data


SOME = [f"text {row},{row % 3}\n" for row in range(30)]


def test_a_class_missing_from_a_split_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    other = [f"other {row},{row % 2}\n" for row in range(8)]
    folder_of([SOME, other, [f"more {row},{row % 3}\n" for row in range(9)]])
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ["warning: 1 of 3 classes have no example in split validation: 2"]


def test_examples_in_two_splits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    leaked = [f"fresh {row},{row % 3}\n" for row in range(7)] + SOME[3:8]
    warning = (
        "warning: 5 of 12 examples of split test are in split train too: accuracy there does "
        "not measure generalization"
    )
    # The second run reads the cache, and the warning was already logged for it.
    for expected in ([warning], []):
        caplog.clear()
        data = TextData(source=str(Path("d")), cache_dir="cache")
        if not Path("d").exists():
            three(SOME, [f"more {row},{row % 3}\n" for row in range(9)], leaked)
        data.setup()
        messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert messages == expected


def test_duplicates_in_held_out_splits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    texts("text,label\n" + "same 0,0\nsame 1,1\n" * 20)
    messages = " ".join(record.message for record in caplog.records)
    assert "4 of 4 examples of split test are in split train too" in messages
    assert "4 of 4 examples of split validation" in messages


def test_ids_that_restart_in_each_split_are_not_a_leak(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("d")
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = [f"{row},{split} {row},{row % 2}\n" for row in range(8)]
        (folder / f"{split}.csv").write_text("".join(["id,text,label\n", *lines]))
    data = TextData(source=str(folder), cache_dir="cache")
    data.setup()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(content: bytes | None, **options: Any) -> torch.Tensor:
    decoded: torch.Tensor = VisionData(**options).decode({"bytes": content, "path": None})
    return decoded


COLOUR = Image.fromarray(np.arange(432, dtype=np.uint16).reshape(12, 12, 3).astype(np.uint8))
SHADES = Image.fromarray((np.arange(144).reshape(12, 12) * 400).astype(np.uint16))


def test_pictures_of_every_mode_look_the_same() -> None:
    plain = seen(encoded(COLOUR))
    assert torch.equal(seen(encoded(COLOUR.convert("RGBA"))), plain)
    palette = COLOUR.quantize(256)
    palette.info["transparency"] = 0
    assert torch.equal(seen(encoded(palette)), seen(encoded(palette.convert("RGB"))))
    cyan = seen(encoded(COLOUR.convert("CMYK"), "TIFF"))
    assert (cyan.int() - plain.int()).abs().max() <= 1
    grey = seen(encoded(COLOUR.convert("L")))
    assert torch.equal(seen(encoded(COLOUR.convert("LA"))), grey)
    one_bit = seen(encoded(COLOUR.convert("1")))
    assert one_bit.shape == (1, 12, 12)
    assert one_bit.unique().tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    expected = (np.arange(144).reshape(12, 12) * 400) >> 8
    assert np.array_equal(seen(encoded(SHADES, kind))[0].numpy(), expected)


def test_the_first_picture_of_an_animation_counts() -> None:
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    gif = encoded(first, "GIF", save_all=True, append_images=[second])
    assert seen(gif).unique().tolist() == [10]


def test_a_picture_of_one_pixel() -> None:
    assert seen(encoded(Image.new("L", (1, 1), 128))).tolist() == [[[128]]]
    assert seen(encoded(Image.new("L", (1, 1), 128)), image_size=8).shape == (1, 8, 8)


def chunked(width: int, height: int, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb(side: int) -> bytes:
    packer = zlib.compressobj(9)
    lines = [packer.compress(bytes(side + 1)) for _ in range(side)]
    return chunked(side, side, b"".join(lines) + packer.flush())


JPEG = encoded(COLOUR, "JPEG")
NO_PICTURES = {
    "a bomb": (bomb(12_000), "it has 12000 x 12000 pixels, more than 89,478,485 in all"),
    "a larger bomb": (chunked(30_000, 30_000), "900000000 pixels"),
    "no pixels": (chunked(0, 0), "it is no image; formats are BMP, "),
    "no bytes": (b"", "it is empty"),
    "nothing": (None, "there is no image"),
    "a cut JPEG": (JPEG[: len(JPEG) * 3 // 4], "[Tt]runcated"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image; "),
    "floating point": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point numbers"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("content", "message"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_a_picture_is_refused(content: bytes | None, message: str) -> None:
    with pytest.raises(Exception, match=message):
        seen(content)


def test_a_decompression_bomb_is_one_line(
    refused: Callable[..., str], small_data: Callable[..., Path], recwarn: pytest.WarningsRecorder
) -> None:
    file = small_data("vision") / "data" / "train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(file)
    pictures = table["img"].to_pylist()
    pictures[5] = {"bytes": bomb(12_000), "path": None}
    changed = pyarrow.array(pictures, table.schema.field("img").type)
    pyarrow.parquet.write_table(table.set_column(0, table.schema.field("img"), changed), file)
    line = refused("--task", "vision", "--data", str(file.parent.parent))
    assert line.startswith("error: 1 of 60 images of split train cannot be decoded; the first is ")
    assert "row 5: it has 12000 x 12000 pixels" in line
    assert not [one for one in recwarn if "decompression bomb" in str(one.message)]
    assert not Path("run").exists()


def wave(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", sub: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=sub)
    return buffer.getvalue()


def heard(content: bytes | None, **options: Any) -> torch.Tensor:
    decoded: torch.Tensor = SpeechData(**options).decode({"bytes": content, "path": None})
    return decoded


def pitch(samples: torch.Tensor, rate: int = RATE) -> float:
    spectrum = torch.fft.rfft(samples.float(), n=rate).abs()
    return float(spectrum.argmax())


def test_eight_channels_become_one() -> None:
    channels = np.stack([TONE * share for share in (0, 0, 0, 0, 1, 1, 1, 1)], 1)
    assert (heard(wave(channels)).int() - heard(wave(TONE / 2)).int()).abs().max() <= 1


@pytest.mark.parametrize("rate", [1000, 8000, 11_025, 22_254, 44_100, 44_099, 48_000, 192_000])
def test_other_sample_rates_keep_length_and_pitch(rate: int) -> None:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    decoded = heard(wave(samples, rate))
    assert abs(len(decoded) - RATE) <= 1
    assert abs(pitch(decoded) - 440) <= 1
    assert 15_000 < int(decoded[4000:8000].max()) < 17_500


@pytest.mark.parametrize("kind", [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_other_formats_are_read(kind: tuple[str, str]) -> None:
    assert abs(pitch(heard(wave(TONE, kind=kind[0], sub=kind[1]))) - 440) <= 1


def test_a_header_with_too_many_samples() -> None:
    content = bytearray(wave(TONE))
    content[40:44] = b"\xff\xff\xff\x7f"
    assert torch.equal(heard(bytes(content)), heard(wave(TONE)))


def claiming(samples: int) -> bytes:
    """Make a FLAC clip whose header gives a number of samples."""
    content = bytearray(wave(TONE, kind="FLAC"))
    facts = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    content[18:26] = facts.to_bytes(8, "big")
    return bytes(content)


def spoilt(value: float) -> bytes:
    samples = TONE.copy()
    samples[3] = value
    return wave(samples, sub="FLOAT")


NO_CLIPS = {
    "NaN": (spoilt(np.nan), "NaN or infinite"),
    "infinity": (spoilt(np.inf), "NaN or infinite"),
    "whole numbers as floats": (wave(TONE * 32768, sub="FLOAT"), "reach 16384, where full scale"),
    "no bytes": (b"", "it is empty"),
    "a header alone": (wave(TONE)[:44], "it holds no samples"),
    "nothing": (None, "there is no clip"),
    "no sound": (b"no sound", "it is no clip: .*[Ff]ormat"),
    "ten hours": (claiming(36_000 * RATE), r"it lasts 36000 s, more than --data.max_seconds=60;"),
    "samples without end": (claiming(2**36 - 1), "it lasts 4294967 s, more than --data.max_sec"),
    "a rate of 1": (wave(TONE, 1), "its sample rate is 1, not within 1000 and 1000000"),
    "a rate of 2,000,000,000": (wave(TONE, 2_000_000_000), "its sample rate is 2000000000, not"),
}


@pytest.mark.parametrize(("content", "message"), NO_CLIPS.values(), ids=NO_CLIPS)
def test_a_clip_is_refused(content: bytes | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        heard(content)
    assert "object at" not in str(caught.value)


def test_a_longer_clip_is_read_if_the_limit_is_raised() -> None:
    long = wave(np.zeros(61 * 1000), 1000, kind="FLAC")
    with pytest.raises(ValueError, match="it lasts 61 s"):
        heard(long, sample_rate=1000)
    assert len(heard(long, sample_rate=1000, max_seconds=61.0)) == 61_000


def test_a_task_of_other_data_is_refused(
    refused: Callable[..., str], small_data: Callable[..., Path]
) -> None:
    line = refused("--task", "nlp", "--data", str(small_data("vision")))
    assert "no column of type text among img, label; name it with --data.input_column" in line


def test_a_path_with_spaces_and_other_letters(
    train: Callable[..., None], small_data: Callable[..., Path]
) -> None:
    folder = small_data("vision", name="mes données ☃")
    train("--task", "vision", "--data", str(folder), "--model.width=4", "--trainer.max_epochs=1")
    assert json.loads(Path("run/metrics.json").read_text())["data"] == str(folder)
