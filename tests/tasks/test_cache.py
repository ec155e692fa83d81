import os

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.cache import cache_key, cached, fingerprint
from tasks.nlp.data import TextData
from tasks.vision.data import VisionData


def test_a_cached_file_is_built_once(tmp_path):
    calls = []

    def build():
        calls.append(1)
        return {"values": torch.arange(5), "names": ["a", "b"]}

    for _ in range(2):
        loaded = cached(tmp_path / "folder" / "file.pt", build)
        assert loaded["values"].tolist() == [0, 1, 2, 3, 4]
        assert loaded["names"] == ["a", "b"]
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def build():
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        cached(tmp_path / "file.pt", build)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    save = torch.save

    def interrupted(built, partial):
        save({"values": torch.zeros(1)}, partial)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "file.pt", lambda: {"values": torch.ones(3)})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    loaded = cached(tmp_path / "file.pt", lambda: {"values": torch.ones(3)})
    assert loaded["values"].tolist() == [1.0, 1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]


def test_a_file_is_visible_only_when_complete(tmp_path, monkeypatch):
    save = torch.save
    file = tmp_path / "file.pt"

    def watched(built, partial):
        save(built, partial)
        assert not file.exists()

    monkeypatch.setattr(torch, "save", watched)
    cached(file, lambda: {"values": torch.ones(3)})
    assert file.exists()


def test_a_key_depends_on_each_part_and_on_nothing_else():
    keys = [
        cache_key(source="a", size=None),
        cache_key(source="b", size=None),
        cache_key(source="a", size=32),
        cache_key(source="a", image_size=None),
        cache_key(source="a"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(size=None, source="a") == keys[0]


def test_a_key_changes_with_the_format(monkeypatch):
    before = cache_key(source="a")
    monkeypatch.setattr("tasks.data.cache.FORMAT", -1)
    assert cache_key(source="a") != before


def test_a_fingerprint_detects_every_change_of_a_folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    one = folder / "deep" / "one"
    one.write_text("1")
    seen = [fingerprint(folder)]
    assert fingerprint(folder) == seen[0]
    one.write_text("12")
    seen.append(fingerprint(folder))
    os.utime(one, ns=(0, 0))
    seen.append(fingerprint(folder))
    one.rename(folder / "deep" / "two")
    seen.append(fingerprint(folder))
    (folder / "three").write_text("")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)


def test_a_fingerprint_detects_a_change_of_a_file(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("1")
    before = fingerprint(file)
    os.utime(file, ns=(0, 0))
    assert fingerprint(file) != before


def picture_folder(folder, shade: int) -> str:
    for split in ("train", "validation", "test"):
        for name, value in (("cat", shade), ("dog", shade + 1)):
            for copy in range(2):
                file = folder / split / name / f"{copy}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 4), value, np.uint8)).save(file)
    return str(folder)


def shades(data: VisionData) -> set[int]:
    return set(data.splits["train"].values.flatten().tolist())


def ready(data):
    data.setup()
    return data


def test_a_second_use_does_not_read_the_source_again(tmp_path, monkeypatch):
    source = picture_folder(tmp_path / "data", 10)
    options = {"source": source, "cache_dir": str(tmp_path / "cache")}
    first = ready(VisionData(**options))
    monkeypatch.setattr(VisionData, "read", lambda self: pytest.fail("it was read again"))
    second = ready(VisionData(**options))
    assert second.classes == first.classes == ["cat", "dog"]
    for split, examples in first.splits.items():
        assert torch.equal(second.splits[split].values, examples.values)
        assert torch.equal(second.splits[split].labels, examples.labels)


def test_other_options_of_decoding_build_again(tmp_path):
    options = {
        "source": picture_folder(tmp_path / "data", 10),
        "cache_dir": str(tmp_path / "cache"),
    }
    assert ready(VisionData(**options)).spec().shape == [1, 4, 4]
    assert ready(VisionData(image_size=8, **options)).spec().shape == [1, 8, 8]
    assert ready(VisionData(**options)).spec().shape == [1, 4, 4]


def test_changed_pictures_build_again(tmp_path):
    options = {"source": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    picture_folder(tmp_path / "data", 10)
    assert shades(ready(VisionData(**options))) == {10, 11}
    picture_folder(tmp_path / "data", 20)
    for file in (tmp_path / "data").rglob("*.png"):
        # File timestamps may be too coarse for two consecutive writes.
        os.utime(file, ns=(1, 1))
    assert shades(ready(VisionData(**options))) == {20, 21}


def test_a_changed_file_of_texts_builds_again(tmp_path):
    file = tmp_path / "data.csv"
    options = {"source": str(file), "cache_dir": str(tmp_path / "cache")}
    for number, word in enumerate(("one", "two")):
        rows = [f"{word} {index},{index % 2}" for index in range(20)]
        file.write_text("\n".join(["text,label", *rows]))
        os.utime(file, ns=(number, number))
        texts = ready(TextData(**options)).texts["train"]
        assert texts == [f"{word} {index}" for index in range(20)]


def test_other_columns_build_again(tmp_path):
    file = tmp_path / "data.csv"
    rows = [f"left {index},right {index},{index % 2}" for index in range(20)]
    file.write_text("\n".join(["left,right,label", *rows]))
    options = {"source": str(file), "cache_dir": str(tmp_path / "cache")}
    for column in ("left", "right"):
        data = ready(TextData(input_column=column, **options))
        assert data.texts["train"][3] == f"{column} 3"
