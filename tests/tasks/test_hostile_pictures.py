"""Folders of images: files of other programs, links, EXIF orientation, unusual formats."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.cache import fingerprint
from tasks.errors import InputError
from tasks.speech.data import SpeechData
from tasks.vision.data import VisionData
from tests.conftest import png, wav

RNG = np.random.default_rng(0)


def pictures(root: Path, classes: tuple[str, ...] = ("cat", "dog"), suffix: str = ".png") -> Path:
    """Create eight distinct images of each class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = RNG.integers(0, 256, (6, 6, 3), np.uint8)
            (root / name / f"{number}{suffix}").write_bytes(png(pixels))
    return root


def ready(root: Path | str) -> VisionData:
    data = VisionData(source=str(root), cache_dir="cache")
    data.setup()
    return data


def count(data: VisionData) -> dict[str, int]:
    """Count the examples of each class in all splits."""
    labels = torch.cat([part.labels[part.chosen] for part in data.splits.values()])
    return dict(zip(data.classes, torch.bincount(labels).tolist(), strict=True))


BOTH = {"cat": 8, "dog": 8}


def test_files_that_other_programs_leave_are_left_out() -> None:
    root = pictures(Path("p"))
    before = fingerprint(root)
    for name in (".DS_Store", "cat/.DS_Store", "cat/.hidden.png", "cat/._1.png", ".git/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "1.png").write_bytes(b"\0\5\x16\7")
    assert fingerprint(root) == before
    (root / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "desktop.ini").write_text("[.ShellClassInfo]")
    assert count(ready(root)) == BOTH


@pytest.mark.parametrize("suffix", [".PNG", ".Png", ".JPG"])
def test_upper_case_suffixes(suffix: str) -> None:
    root = pictures(Path("p"), suffix=suffix)
    (root / "cat" / "0.png").write_bytes((root / "cat" / f"0{suffix}").read_bytes())
    (root / "cat" / f"0{suffix}").unlink()
    assert count(ready(root)) == BOTH


def test_links_that_lead_back_or_nowhere_are_left_out() -> None:
    root = pictures(Path("p"))
    (root / "cat" / "loop").symlink_to("..")
    (root / "dog" / "self").symlink_to("self")
    (root / "dog" / "nowhere.png").symlink_to("nothing.png")
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "dog" / "folder.png").mkdir()
    assert count(ready(root)) == BOTH


def test_folders_behind_links_are_read() -> None:
    pictures(Path("elsewhere"), ("train", "test"))
    for split in ("train", "test"):
        pictures(Path("away") / split)
        Path("p").mkdir(exist_ok=True)
        Path("p", split).symlink_to(Path("away", split).resolve())
    data = ready("p")
    assert len(data.splits["test"]) == 16
    before = fingerprint(Path("p"))
    # A class folder that is a link.
    away = Path("away/train/cow").resolve()
    away.symlink_to(pictures(Path("further"), ("cow",)).resolve() / "cow")
    assert fingerprint(Path("p")) != before
    assert count(ready("p")) == {"cat": 16, "cow": 8, "dog": 16}


def test_a_folder_of_two_names_is_refused() -> None:
    root = pictures(Path("p"))
    (root / "kitten").symlink_to("cat")
    with pytest.raises(InputError, match=r"p/(cat|kitten) and p/(cat|kitten) are one folder"):
        ready(root)


def test_links_across_all_classes_end() -> None:
    root = pictures(Path("p"), tuple("abcdefgh"))
    for one in "abcdefgh":
        for other in "abcdefgh":
            (root / one / f"to-{other}").symlink_to(f"../{other}")
    with pytest.raises(InputError, match="are one folder; delete one of the links"):
        ready(root)


@pytest.mark.parametrize("name", ["a*b", "[ab]", "a?b", "a::b", "a\nb", "{a}", "#a", "%41", "=x"])
def test_only_the_folder_of_that_name_is_read(name: str) -> None:
    pictures(Path("axb"), ("cow", "dog"))
    pictures(Path("a b"), ("cow", "dog"))
    assert count(ready(pictures(Path(name)))) == BOTH


@pytest.mark.parametrize("name", ["express train.png", "train-1.png", "test 1.png", "dev.png"])
def test_a_picture_called_as_a_split_is_a_picture(name: str) -> None:
    root = pictures(Path("p"))
    (root / "cat" / "0.png").rename(root / "cat" / name)
    assert count(ready(root)) == BOTH


def test_a_class_called_as_a_split_is_a_class() -> None:
    assert count(ready(pictures(Path("p"), ("car", "train")))) == {"car": 8, "train": 8}


def test_splits_in_upper_case_are_not_mixed() -> None:
    for split in ("Train", "TEST"):
        pictures(Path("p") / split)
    assert len(ready("p").splits["test"]) == 16


LAYOUTS = {
    "a picture beside the classes": ("p/0.png", "all at the same depth"),
    "pictures deeper than others": ("p/cat/2019/0.png", "all at the same depth"),
}


@pytest.mark.parametrize(("file", "message"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_refused(file: str, message: str) -> None:
    root = pictures(Path("p"))
    Path(file).parent.mkdir(exist_ok=True)
    (root / "cat" / "0.png").rename(file)
    with pytest.raises(InputError, match=message):
        ready(root)


def test_splits_that_are_not_clear_are_refused() -> None:
    pictures(Path("flat"), ("train", "test"))
    with pytest.raises(InputError, match="test, train hold no folders of classes"):
        ready("flat")
    for name in ("train", "more"):
        pictures(Path("p") / name)
    with pytest.raises(InputError, match="is in no folder of a split, and others are"):
        ready("p")
    for name in ("train", "Train"):
        pictures(Path("twice") / name)
    with pytest.raises(InputError, match="Train, train are folders of one split"):
        ready("twice")
    pictures(Path("tested") / "test")
    with pytest.raises(InputError, match="no split named train, only test"):
        ready("tested")


def test_names_that_are_no_unicode() -> None:
    root = pictures(Path("p"))
    (root / "cat").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    (root / "dog" / "0.png").rename(os.fsdecode(os.fsencode(root) + b"/dog/\xe9.png"))
    assert count(ready(root)) == {"caf\\udce9": 8, "dog": 8}


def test_formats_that_are_not_read_are_refused_and_not_left_out() -> None:
    root = pictures(Path("p"))
    (root / "cat" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(InputError, match=r"1 of 17 .*phone\.HEIC: it is no image; formats are"):
        ready(root)


def test_clips_in_folders_of_classes() -> None:
    for name in ("yes", "no"):
        Path("c", name).mkdir(parents=True)
        for number in range(4):
            clip = RNG.uniform(-0.5, 0.5, 900)
            Path("c", name, f"{number}.WAV").write_bytes(wav(clip))
    data = SpeechData(source="c", cache_dir="cache")
    data.setup()
    assert data.classes == ["no", "yes"]
    Path("c/no/9.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(400))
    data = SpeechData(source="c", cache_dir="cache")
    with pytest.raises(InputError, match=r"9\.m4a: it is an MP4 file \(M4A, MP4, MOV\)"):
        data.setup()


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(content: bytes) -> torch.Tensor:
    decoded: torch.Tensor = VisionData().decode({"bytes": content, "path": None})
    return decoded


QUARTERS = np.zeros((8, 12, 3), np.uint8)
QUARTERS[:4, :6, 0] = QUARTERS[:4, 6:, 1] = QUARTERS[4:, :6, 2] = 255
# The transform of the upright image for each value of EXIF orientation (EXIF 2.3, 4.6.4).
TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_picture_becomes_upright(orientation: int, kind: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](QUARTERS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    decoded = seen(encoded(stored, kind, exif=exif, **options))
    assert decoded.shape == (3, 8, 12)
    upright = torch.from_numpy(QUARTERS).movedim(-1, 0)
    assert (decoded.int() - upright.int()).abs().float().mean() < 8


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no EXIF", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\1A\0\0\0"]
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_turn_nothing(exif: bytes) -> None:
    assert seen(encoded(Image.fromarray(QUARTERS), "JPEG", exif=exif)).shape == (3, 8, 12)


DEEP = np.stack([np.arange(144).reshape(12, 12) * step for step in (400, 200, 90)], 2)


def deep_png(pixels: np.ndarray) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_tiff(pixels: np.ndarray, order: str) -> bytes:
    content = pixels.astype(np.dtype("u2").newbyteorder(order)).tobytes()
    height, width = pixels.shape[:2]
    tags = [(256, 1, width), (257, 1, height), (258, 3, 122), (259, 1, 1), (262, 1, 2)]
    tags += [(273, 1, 128), (277, 1, 3), (278, 1, height), (279, 1, len(content))]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, number, value in tags:
        kind = 3 if tag == 258 else 4
        head += struct.pack(f"{order}HHII", tag, kind, number, value)
    return head + struct.pack(f"{order}I3H", 0, 16, 16, 16) + content


@pytest.mark.parametrize(
    "content",
    [deep_png(DEEP), deep_tiff(DEEP, "<"), deep_tiff(DEEP, ">")],
    ids=["PNG", "TIFF", "TIFF of a Mac"],
)
def test_sixteen_bits_of_each_colour_become_eight(content: bytes) -> None:
    assert np.array_equal(seen(content).movedim(0, -1).numpy(), DEEP >> 8)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 10, 10), (10, 200, 10))]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert seen(moving)[:, 0, 0].tolist() == [200, 10, 10]
