"""Data by name or import path: functions that return a data set."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data import Rows, Source
from tasks.data.sources import source_label
from tasks.nlp.data import TextData
from tasks.speech.data import SpeechData
from tasks.vision.data import VisionData

Train = Callable[..., None]
Refused = Callable[..., str]

# The classes are two shades of grey.
SHADES = """
import numpy as np
from tasks.data import Rows, Source

LIGHT = {light}

def images(count):
    labels = [row % 2 for row in range(count)]
    made = [np.full((6, 6), LIGHT * label + row, np.uint8) for row, label in enumerate(labels)]
    return Rows(made, labels)

def shades():
    return Source({{"train": images(40), "test": images(10)}}, ["dark", "light"])
"""
VISION = ("--task", "vision", "--model.width=4", "--trainer.max_epochs=1")


def brightest(data: VisionData) -> int:
    data.setup()
    return int(data.splits["test"].gather(torch.arange(10)).inputs.max())


def test_a_run_with_data_of_a_file(train: Train) -> None:
    Path("my_data.py").write_text(SHADES.format(light=200))
    train(*VISION, "--data", "my_data.py:shades", "--data.batch_size=16")
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["data"] == "my_data.py:shades"
    assert found["name"] == "vision-shades-both-s0"
    assert found["classes"] == ["dark", "light"]
    assert found["examples"] == {"train": 36, "validation": 4, "test": 10}


def test_a_function_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a_module_of_data.py").write_text(SHADES.format(light=100))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    data = VisionData(source="a_module_of_data:shades", cache_dir="cache")
    assert brightest(data) == 109
    assert len(data.splits["train"]) == 36


def test_a_changed_file_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python compiles a file again if its size or the second of its modification has changed.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = Path("changing.py")
    file.write_text(SHADES.format(light=100))
    source = "changing.py:shades"
    assert brightest(VisionData(source=source, cache_dir="cache")) == 109
    # From the cache, without a second call of the function.
    with monkeypatch.context() as patched:
        patched.setattr(VisionData, "prepare", lambda _: pytest.fail("decoded again"))
        assert brightest(VisionData(source=source, cache_dir="cache")) == 109
    file.write_text(SHADES.format(light=200))
    # Another process imports the changed file.
    for name in [name for name in sys.modules if name.startswith("changing_")]:
        del sys.modules[name]
    assert brightest(VisionData(source=source, cache_dir="cache")) == 209


@pytest.fixture
def registered_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the entries of a test from the registry after it."""
    monkeypatch.setattr(VisionData.sources, "_entries", dict(VisionData.sources._entries))


@pytest.mark.usefixtures("registered_sources")
def test_a_registered_function_is_found_by_its_name_and_given_what_it_asks_for() -> None:
    given = {}

    @VisionData.sources.register("test_shades")
    def shades(cache_dir: Path, label_column: str | None) -> Source:
        given.update(cache_dir=cache_dir, label_column=label_column)
        images = [np.full((4, 4), row, np.uint8) for row in range(20)]
        return Source({"train": Rows(images, ["odd", "even"] * 10)})

    data = VisionData(source="test_shades", cache_dir="cache", label_column="parity")
    data.setup()
    assert given == {"cache_dir": Path("cache"), "label_column": "parity"}
    assert data.classes == ["even", "odd"]


@pytest.mark.parametrize("data", [VisionData, SpeechData, TextData])
def test_each_kind_of_data_has_names_of_its_own(data: type[Any]) -> None:
    assert "builtin" in data.sources.names()
    others = {"cifar10", "cifar100", "speech_commands", "sst2", "ag_news", "trec"}
    own = {
        VisionData: {"cifar10", "cifar100"},
        SpeechData: {"speech_commands"},
        TextData: {"sst2", "ag_news", "trec"},
    }[data]
    assert set(data.sources.names()) & others == own
    # A subclass inherits the names of its parent.
    assert type("Further", (data,), {}).sources is data.sources


def test_names_of_downloaded_data_are_passed_to_their_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Cifar:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            asked.append((str(root), train, download))
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
            self.targets, self.classes = [0, 1], ["plane", "car"]

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Cifar)
    source = VisionData(source="cifar100", cache_dir="cache").read()
    assert asked == [("cache/torchvision", True, True), ("cache/torchvision", False, True)]
    assert source.classes == ["plane", "car"]

    def read_source(*arguments: Any) -> Source:
        asked.append(arguments)
        return Source({"train": Rows(["a"], [0])})

    monkeypatch.setattr("tasks.nlp.data.read_source", read_source)
    TextData(source="trec", cache_dir="cache", label_column="fine_label").read()
    hub, kind, text, label, _, revision = asked[-1]
    assert (hub, kind, text, label) == ("CogComp/trec", "text", "text", "fine_label")
    assert revision == "refs/convert/parquet"


BROKEN = {
    "raises": (
        "def data():\n    rows = 1\n    return rows / 0",
        "ZeroDivisionError: division by zero",
    ),
    "a lost file": ("def data():\n    x = 1\n    return open('none.csv')", "none.csv"),
    "in a library": (
        "import json\ndef data():\n    return json.loads('{')",
        "JSONDecodeError: Expecting property name",
    ),
    "at import": ("x = 1\ny = 2\nraise KeyError('z')\ndef data(): pass", "KeyError: 'z'"),
    "no Python": ("x = 1\ny = 2\ndef data(:\n  pass", "SyntaxError: "),
}


@pytest.mark.parametrize(("code", "named"), BROKEN.values(), ids=BROKEN)
def test_an_error_in_a_function_names_its_line(code: str, named: str, refused: Refused) -> None:
    Path("broken.py").write_text(code)
    line = refused(*VISION, "--data", "broken.py:data")
    assert line.startswith("error: DATA=broken.py:data")
    assert named in line
    assert "broken.py, line 3)" in line


WRONG = {
    "nothing": ("return None", "returns NoneType, not a tasks.data.Source"),
    "no training split": (
        "return Source({'test': Rows([1], [1])})",
        "no split named train, only test",
    ),
    "another split": (
        "return Source({'train': Rows([1], [1]), 'dev': Rows([1], [1])})",
        "split dev is none of train, validation, test",
    ),
    "fewer labels": ("return Source({'train': Rows([1, 2], [1])})", "has 2 inputs and 1 labels"),
    "inputs of no kind": (
        "return Source({'train': Rows([{}] * 9, [0, 1, 0] * 3)})",
        "9 of 9 images of split train cannot be decoded",
    ),
}


@pytest.mark.parametrize(("body", "named"), WRONG.values(), ids=WRONG)
def test_what_a_function_returns_is_checked(body: str, named: str, refused: Refused) -> None:
    Path("wrong.py").write_text(f"from tasks.data import Rows, Source\ndef data():\n    {body}\n")
    assert named in refused(*VISION, "--data", "wrong.py:data")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("cifar1", "DATA=cifar1 is not known; did you mean cifar10?"),
        ("mnist", "choose one of builtin, cifar10, cifar100"),
        ("nowhere.py:data", "DATA=nowhere.py:data: there is no file nowhere.py"),
        ("json:laods", "did you mean loads?"),
        ("no_such_package:data", "No module named 'no_such_package'"),
    ],
)
def test_an_unknown_name_is_refused(data: str, named: str, refused: Refused) -> None:
    assert named in refused(*VISION, "--data", data)


@pytest.mark.usefixtures("registered_sources")
def test_labels_may_be_arrays() -> None:
    rows = Rows([np.full((4, 4), row, np.uint8) for row in range(20)], np.arange(20) % 2)  # type: ignore[arg-type]

    @VisionData.sources.register("test_arrays")
    def arrays() -> Source:
        return Source({"train": rows}, ["a", "b"])

    data = VisionData(source="test_arrays", cache_dir="cache")
    data.setup()
    assert len(data.splits["train"]) == 16


def test_labels_of_data_are_names_of_folders() -> None:
    assert source_label("my/own.py:digits") == "digits"
    assert source_label("pkg.mod:digits") == "digits"
    assert source_label("a/folder:with_colon") == "folder:with_colon"
    assert source_label("owner/name") == "name"
