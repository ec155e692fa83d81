"""Opening a checkpoint from any source executes no code."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from regain import Regularization
from tasks.errors import InputError
from tasks.vision import Task
from tasks.vision.data import VisionSpec
from tests.file_server import file_server

SPEC = VisionSpec(["a", "b"], [1, 8, 8], [0.0], [1.0], allow_flip=True)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the test's folder over HTTP; PyTorch's download cache is in it too."""
    monkeypatch.setenv("TORCH_HOME", str(Path("torch").resolve()))
    with file_server(Path.cwd()) as address:
        yield address


class Harmful:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def checkpoint(width: int = 4, **changed: Any) -> dict[str, Any]:
    task = Task(SPEC, arch="mlp", depth=1, width=width, reg=Regularization(dropout=0.25))
    saved: dict[str, Any] = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": task.state_dict(),
        "hyper_parameters": {"spec": SPEC, "arch": "mlp", "depth": 1, "width": width}
        | {"reg": task.reg, "_instantiator": "lightning.pytorch.cli.instantiate_module"},
    }
    task.on_save_checkpoint(saved)
    saved["hyper_parameters"].update(changed)
    return saved


WAYS: dict[str, Callable[[str], Any]] = {
    "path": lambda address: Path("best.ckpt"),
    "text": lambda address: "best.ckpt",
    "address": lambda address: f"{address}/best.ckpt",
    "file": lambda address: Path("best.ckpt").open("rb"),  # noqa: SIM115
    "memory": lambda address: io.BytesIO(Path("best.ckpt").read_bytes()),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_opens_with_its_weights_and_arguments(way: str, address: str) -> None:
    saved = checkpoint()
    torch.save(saved, "best.ckpt")
    task = Task.load_from_checkpoint(WAYS[way](address))
    assert (task.reg, task.spec) == (Regularization(dropout=0.25), SPEC)
    for name, value in task.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["whole", "weights", "arguments"])
def test_code_in_a_checkpoint_is_not_run(way: str, place: str, address: str) -> None:
    saved: Any = checkpoint()
    if place == "whole":
        saved = Harmful()
    elif place == "weights":
        saved["state_dict"]["model.0.weight"] = Harmful()
    else:
        saved["hyper_parameters"]["reg"] = Harmful()
    torch.save(saved, "best.ckpt")
    with pytest.raises(InputError, match="contains more than tensors"):
        Task.load_from_checkpoint(WAYS[way](address))
    assert not Path("harm").exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_pickle_that_is_no_archive_is_not_run(way: str, address: str) -> None:
    torch.save(Harmful(), "best.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="is incomplete"):
        Task.load_from_checkpoint(WAYS[way](address))
    assert not Path("harm").exists()


def test_running_code_on_purpose_is_refused(address: str) -> None:
    torch.save(Harmful(), "best.ckpt")
    with pytest.raises(ValueError, match="weights_only=False"):
        Task.load_from_checkpoint("best.ckpt", weights_only=False)
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    "planted",
    [
        {"reg": {"class_path": "planted.Harmful"}},
        {"reg": {"class_path": "planted.Harmful", "init_args": {}}},
        {"reg": "planted.Harmful"},
        {"optim": {"class_path": "planted.Harmful"}},
        {"spec": {"class_path": "planted.Harmful", "classes": ["a", "b"]}},
        {"arch": {"class_path": "planted.Harmful"}},
        {"_class_path": "planted.Harmful"},
        {"_instantiator": "planted.Harmful"},
        {"_instantiator": "lightning.pytorch.cli.instantiate_module", "reg": "planted.Harmful"},
    ],
    ids=str,
)
def test_a_module_that_a_checkpoint_names_is_not_imported(
    planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("planted.py").write_text("import pathlib\npathlib.Path('harm').touch()\nHarmful = dict\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    torch.save(checkpoint(**planted), "best.ckpt")
    with suppress(InputError):
        Task.load_from_checkpoint("best.ckpt", weights_only=True)
    assert not Path("harm").exists()
    assert "planted" not in sys.modules


def test_checkpoints_of_two_addresses_are_not_confused(address: str) -> None:
    for folder, width in (("one", 3), ("two", 5)):
        Path(folder).mkdir()
        torch.save(checkpoint(width), f"{folder}/best.ckpt")
        task = Task.load_from_checkpoint(f"{address}/{folder}/best.ckpt")
        assert task.hparams["width"] == width


def test_arguments_by_name_take_the_place_of_the_saved_ones() -> None:
    torch.save(checkpoint(), "best.ckpt")
    task = Task.load_from_checkpoint("best.ckpt", reg=Regularization(dropout=0.75))
    assert task.reg.dropout == 0.75
    assert task.hparams["width"] == 4


def test_an_argument_that_the_task_does_not_know_is_left_out() -> None:
    torch.save(checkpoint(of_an_older_version=3), "best.ckpt")
    assert Task.load_from_checkpoint("best.ckpt").hparams["width"] == 4


def test_a_damaged_checkpoint_is_refused() -> None:
    saved = checkpoint()
    torch.save(saved, "best.ckpt")
    good = Path("best.ckpt").read_bytes()
    weight = max(saved["state_dict"].values(), key=torch.numel)
    bit = good.index(weight.numpy().tobytes())
    flipped = good[:bit] + bytes([good[bit] ^ 1]) + good[bit + 1 :]
    for content, named in (
        (good[:-100], "is incomplete"),
        (b"", "is incomplete"),
        (flipped, "is damaged"),
    ):
        Path("best.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=rf"best\.ckpt {named}"):
            Task.load_from_checkpoint("best.ckpt")


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ([1, 2], "is not a checkpoint of a run"),
        ({"weight": torch.ones(2)}, "is not a checkpoint of a run"),
        ({"state_dict": {}}, "is not a checkpoint of VisionTask"),
        (
            {"state_dict": {"w": 3}, "hyper_parameters": {"spec": asdict(SPEC)}},
            "is not a checkpoint of VisionT",
        ),
        (
            {"state_dict": {}, "hyper_parameters": {"spec": {"classes": ["a"]}}},
            "is not a checkpoint of VisionT",
        ),
        ({"state_dict": {}, "hyper_parameters": {"spec": 3}}, "is not a checkpoint of VisionTask"),
        ({"state_dict": {}, "hyper_parameters": 3}, "is not a checkpoint of VisionTask"),
        (checkpoint(width=5, depth=2), "is not a checkpoint of VisionTask .*Missing key"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(saved: Any, named: str) -> None:
    torch.save(saved, "best.ckpt")
    with pytest.raises(InputError, match=named) as refused:
        Task.load_from_checkpoint("best.ckpt")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_what_cannot_be_reached_is_refused_in_one_line(address: str) -> None:
    for place, named in (
        (f"{address}/nothing.ckpt", "cannot be read .*"),
        ("nothing.ckpt", "does not exist"),
        ("s3://bucket/best.ckpt", "is a file or an http"),
        ("reference::http://127.0.0.1/best.ckpt", "is a file or an http"),
    ):
        with pytest.raises(InputError, match=named):
            Task.load_from_checkpoint(place)
