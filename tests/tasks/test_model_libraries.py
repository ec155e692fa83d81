"""Models of timm and torchvision, from the command line and with the weights of a file."""

import http.server
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from regain import Dropout, DropPath, FrozenBatchNorm, GhostBatchNorm, Regularization
from tasks import model_libraries
from tasks.errors import InputError
from tasks.vision import Task
from tasks.vision.data import VisionSpec

Train = Callable[..., None]

CLASSES = ["a", "b", "c"]
GREY = VisionSpec(CLASSES, [1, 8, 8], [100.0], [50.0], allow_flip=False)
COLOUR = VisionSpec(CLASSES, [3, 12, 12], [90.0, 100.0, 110.0], [50.0, 60.0, 70.0], True)
# Networks of few weights; torchvision has no ResNet of fewer channels.
RESNET = ("timm/resnet18", {"channels": [16, 16, 32, 32]})
VIT = ("timm/vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 24})
STOCK = ("torchvision/resnet18", {})
NETWORKS = [RESNET, STOCK, VIT]
PRESETS = ["none", "dropout", "batchnorm", "both", "drop-path", "norm-ghost", "norm-frozen"]
PRESETS.append("norm-group")
SHORT = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.limit_test_batches=1", "--data.batch_size=16", "--data.train_fraction=0.2"),
)


def images(spec: VisionSpec, count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, *spec.shape)).byte()


def network_of(task: Any) -> Any:
    return task.model.network


def options(values: dict[str, Any]) -> list[str]:
    return [f"--model.options.{name}={value}" for name, value in values.items()]


# `tests/modules/test_convert.py` trains the networks of torchvision with each preset.
@pytest.mark.parametrize(
    ("arch", "given", "preset"),
    [
        *((*network, preset) for network in (RESNET, VIT) for preset in PRESETS),
        *((*STOCK, preset) for preset in ("both", "drop-path")),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_library_model_trains_with_every_regularizer(
    arch: str,
    given: dict[str, Any],
    preset: str,
    train: Train,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train("--task", "vision", "--reg", preset, f"--model.arch={arch}", *options(given), *SHORT)
    found = json.loads(Path("run/metrics.json").read_text())
    assert (found["steps"], found["config"]["model"]["arch"]) == (2, arch)
    # What `convert` changes is logged.
    assert any("DropPath" in one.message for one in caplog.records) == (preset == "drop-path")
    # It opens by itself: no code but that of installed libraries is imported.
    opened = Task.load_from_checkpoint("run/best.ckpt")
    assert type(network_of(opened)).__module__.startswith(arch.partition("/")[0])


FULL = Regularization(
    normalization="ghost", dropout=0.1, head_dropout=0.2, input_dropout=0.3, drop_path=0.4
)


@pytest.mark.parametrize(("arch", "given"), NETWORKS, ids=lambda value: str(value)[:12])
def test_a_converted_model_evaluates_as_the_library_s_own(arch: str, given: dict[str, Any]) -> None:
    task = Task(GREY, arch=arch, options=given, reg=FULL).eval()
    library, _, name = arch.partition("/")
    if library == "timm":
        stock: nn.Module = timm.create_model(name, num_classes=3, in_chans=1, **given)
    else:
        stock = torchvision.models.get_model(name, num_classes=3)
    with torch.no_grad():
        for buffer in stock.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    network_of(task).load_state_dict(stock.state_dict())
    batch = images(GREY)
    standard = (batch.float() - 100.0) / 50.0
    channels = standard if library == "timm" else standard.expand(-1, 3, -1, -1)
    torch.testing.assert_close(task(batch), stock.eval()(channels), rtol=1e-5, atol=1e-6)
    # And it is regularized: in training the outputs differ from call to call.
    kinds = {type(layer) for layer in network_of(task).modules()}
    assert {Dropout, DropPath} <= kinds or arch == VIT[0]
    assert (GhostBatchNorm in kinds) == ("resnet" in arch)
    assert not torch.equal(task.train()(batch), task(batch))


def test_the_initial_weights_are_the_same_for_all_regularizers() -> None:
    found = []
    for reg in (Regularization(), FULL):
        torch.manual_seed(3)
        found.append(Task(GREY, arch="timm/resnet18", reg=reg).state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# Weights of a file.


def weight_file(library: str, kind: str) -> tuple[Path, dict[str, Tensor]]:
    """Write the weights of a ResNet-18 for five classes."""
    torch.manual_seed(5)
    if library == "timm":
        network: nn.Module = timm.create_model("resnet18", num_classes=5)
    else:
        network = torchvision.models.resnet18(num_classes=5)
    state = network.state_dict()
    if kind == "safetensors":
        save_file(state, "weights.safetensors")
        return Path("weights.safetensors"), state
    if kind == "folder":
        Path("weights").mkdir()
        save_file(state, "weights/model.safetensors")
        return Path("weights"), state
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in state.items()}}
    torch.save(state if kind == "pth" else wrapped, "weights.pth")
    return Path("weights.pth"), state


@pytest.mark.parametrize("kind", ["safetensors", "folder", "pth", "wrapped"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_of_a_file_are_loaded_but_for_the_classifier(
    library: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, state = weight_file(library, kind)
    caplog.set_level("INFO")
    # Of an image in grey three channels are made, as in the pretraining.
    task = Task(GREY, arch=f"{library}/resnet18", pretrained=str(file), reg=FULL).eval()
    own = network_of(task).state_dict()
    assert own.keys() == state.keys()
    for name, value in state.items():
        assert name.startswith("fc.") or torch.equal(own[name], value), name
    assert own["fc.weight"].shape == (3, 512)
    assert "new classifier of 3 classes (fc.weight, fc.bias)" in caplog.text
    # Size and normalization are those of its config.
    batch = images(GREY)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (batch.float().expand(-1, 3, -1, -1) / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    x = nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(task(batch), network_of(task)(x), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_as_many_classes_is_kept() -> None:
    file, state = weight_file("timm", "safetensors")
    spec = VisionSpec(list("abcde"), [3, 12, 12], [90.0] * 3, [50.0] * 3, True)
    task = Task(spec, arch="timm/resnet18", pretrained=str(file), options={"input_size": 32})
    assert torch.equal(network_of(task).state_dict()["fc.weight"], state["fc.weight"])
    assert task.model.size == (32, 32)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_weights_that_cannot_be_loaded_are_named() -> None:
    torch.save({"conv1.weight": Harmful()}, "harmful.pth")
    torch.save({"conv1.weight": torch.ones(3)}, "other.pth")
    torch.save([1, 2], "list.pth")
    Path("torn.safetensors").write_bytes(b"12")
    Path("empty").mkdir()
    for file, named in (
        ("harmful.pth", "contains more than tensors"),
        ("other.pth", "are weights of another model: they lack bn1.weight"),
        ("list.pth", "holds no state dict"),
        ("torn.safetensors", "is incomplete"),
        ("empty", "holds no model.safetensors or pytorch_model.bin"),
        ("nothing.pth", "is no file or folder"),
    ):
        with pytest.raises(InputError, match=f"model.pretrained={file} {named}"):
            Task(COLOUR, arch="torchvision/resnet18", pretrained=file)
    assert not Path("harm").exists()


# Names, sizes and options.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["timm/resnet81"], "did you mean timm/resnet"),
        (["torchvision/resnet81"], "did you mean torchvision/resnet18?"),
        (["torchvision/fasterrcnn_resnet50_fpn"], "is not known"),
        (["tim/resnet18"], "model.arch=tim/resnet18 is not known"),
        (["hf/"], "needs a folder or hub id"),
        (["hf/no_such_folder"], "is no folder, is not in the cache"),
        (["timm/resnet18", "--model.depth=3"], "model.depth=3 is not for model.arch=timm/resnet18"),
        (["timm/resnet18", "--model.options.hidden=3"], "model.arch=timm/resnet18: "),
        (["torchvision/resnet18", "--model.options.hidden=3"], "argument 'hidden'"),
        (["timm/resnet18", "--model.options.input_size=big"], "a side in pixels, not 'big'"),
        (["timm/resnet18", "--model.reg.token_dropout=0.1"], "token_dropout=0.1"),
        (["torchvision/resnet18", "--model.gradient_checkpointing=true"], "this model has none"),
        (["timm/resnet18", "--model.pretrained=true"], "the hub cannot be reached"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_a_library_cannot_do_is_named(
    arguments: list[str], named: str, refused: Callable[..., str]
) -> None:
    arch, *further = arguments
    line = refused("--task", "vision", "--reg", "none", f"--model.arch={arch}", *further, *SHORT)
    assert named in line


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm/resnet18 needs timm: pip install timm"):
        Task(COLOUR, arch="timm/resnet18")


@pytest.mark.parametrize(
    ("arch", "given", "size"),
    [
        ("timm/resnet18", {}, None),
        ("timm/resnet18", {"input_size": 32}, (32, 32)),
        ("timm/vit_tiny_patch16_224", {"depth": 1}, (224, 224)),
        ("timm/vit_tiny_patch16_224", {"depth": 1, "input_size": 32}, (32, 32)),
        ("torchvision/vit_b_16", {"input_size": 32}, (32, 32)),
    ],
)
def test_images_are_scaled_to_the_size_that_a_model_is_built_for(
    arch: str, given: dict[str, Any], size: tuple[int, int] | None
) -> None:
    task = Task(COLOUR, arch=arch, options=given).eval()
    assert task.model.size == size
    seen: list[torch.Size] = []
    network_of(task).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert task(images(COLOUR, 1)).shape == (1, 3)
    assert seen == [(1, 3, *(size or (12, 12)))]


def test_a_library_model_is_recomputed_and_watched(train: Train) -> None:
    arch, given = VIT
    train(
        *("--task", "vision", "--reg", "dropout", f"--model.arch={arch}", *options(given), *SHORT),
        *("--model.gradient_checkpointing=true", "--model.reg.dropout=0.1"),
        "--trainer.callbacks+=tasks.monitors.LayerMonitor",
        "--trainer.callbacks+=tasks.monitors.MonteCarloDropout",
    )
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["test"]["mc_mutual_information"] > 0


# Without a network.


def test_a_server_that_refuses_is_there_and_a_closed_port_is_not() -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert model_libraries.reachable(address)
        server.shutdown()
        thread.join()
    assert not model_libraries.reachable(address)


def test_weights_that_are_out_of_reach_are_refused_without_trying_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("tasks.vision.libraries.reachable", lambda address: False)
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to try again"))
    with pytest.raises(InputError, match=r"timm/resnet18 cannot be loaded: .*cannot be reached"):
        Task(COLOUR, arch="timm/resnet18", pretrained=True)
    with pytest.raises(InputError, match=r"torchvision/resnet18 cannot be loaded: .*elsewhere"):
        Task(COLOUR, arch="torchvision/resnet18", pretrained=True)
    with pytest.raises(
        InputError, match=r"hf/nobody/nothing cannot be loaded: .*cannot be reached"
    ):
        Task(COLOUR, arch="hf/nobody/nothing", pretrained=True)


def test_a_frozen_norm_takes_the_statistics_of_pretrained_weights() -> None:
    file, state = weight_file("timm", "safetensors")
    reg = Regularization(normalization="frozen")
    task = Task(COLOUR, arch="timm/resnet18", pretrained=str(file), reg=reg)
    assert isinstance(network_of(task).bn1, FrozenBatchNorm)
    assert torch.equal(network_of(task).bn1.running_var, state["bn1.running_var"])
