"""Models of the user: trained by the real command line, refused in one line, opened safely."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from regain import Regularization
from regain.registry import Registry
from study import run as study_run
from study import sweep
from tasks.building import build_model
from tasks.data import DataSpec
from tasks.errors import InputError
from tasks.nlp import Task as TextTask
from tasks.nlp.data import TextSpec
from tasks.speech import Task as SpeechTask
from tasks.vision import Task
from tasks.vision.data import VisionSpec

Train = Callable[..., None]
Data = Callable[..., Path]

# What a user would write.
NETS = """
from pathlib import Path

import torch
from torch import nn

from tasks.speech.models import MEL_BANDS, LogMel


class Pixels(nn.Module):
    def __init__(self, spec, reg, hidden=16, width=5):
        super().__init__()
        channels, height, rows = spec.shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            reg.prepare_layer(nn.Linear(channels * height * rows, hidden)),
            reg.norm_layer(hidden, dims=0),
            nn.ReLU(),
            reg.dropout_layer(hidden, dims=0),
            nn.Linear(hidden, width),
            nn.Linear(width, len(spec.classes)),
        )
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 10 and Path("crash").exists():
            raise RuntimeError("power cut")
        return self.layers(images.float() / 255)


class Sounds(nn.Module):
    def __init__(self, spec, reg, augment, width=5):
        super().__init__()
        self.features = LogMel(spec, augment)
        self.hidden = nn.Linear(MEL_BANDS, width)
        self.dropout = reg.dropout_layer(width, dims=0)
        self.head = nn.Linear(width, len(spec.classes))

    def forward(self, waveforms, lengths):
        x, frames = self.features(waveforms, lengths)
        steps = torch.full((len(x), 1), x.shape[2]) if frames is None else frames[:, None]
        mean = x.square().sum(dim=2) / steps
        return self.head(self.dropout(self.hidden(mean).relu()))


def words(spec, reg, width=5):
    return Words(spec, reg, width)


class Words(nn.Module):
    def __init__(self, spec, reg, width):
        super().__init__()
        self.table = nn.EmbeddingBag(
            spec.vocabulary, width, mode="sum", padding_idx=spec.padding
        )
        self.dropout = reg.dropout_layer(width, dims=0)
        self.head = nn.Linear(width, len(spec.classes))

    def forward(self, ids, lengths):
        counts = torch.full((len(ids), 1), ids.shape[1]) if lengths is None else lengths[:, None]
        return self.head(self.dropout(self.table(ids.long()) / counts))
"""
FEW = ("--trainer.max_epochs=2", "--data.batch_size=16", "--model.optim.lr=0.01")


@pytest.fixture
def nets() -> None:
    Path("nets.py").write_text(NETS)


def weights(file: str = "run/best.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(file, weights_only=True)["state_dict"]
    return found


@pytest.mark.parametrize(
    ("task", "kind", "name", "hidden"),
    [
        ("vision", Task, "Pixels", "model.layers.5.weight"),
        ("speech", SpeechTask, "Sounds", "model.hidden.weight"),
        ("nlp", TextTask, "words", "model.table.weight"),
    ],
)
def test_an_own_model_trains_in_every_task(
    task: str, kind: type[Task], name: str, hidden: str, nets: None, train: Train, small_data: Data
) -> None:
    data = small_data(task)
    arch = f"nets.py:{name}"
    train("--task", task, "--data", str(data), "--reg", "dropout", f"--model.arch={arch}", *FEW)
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["config"]["model"]["arch"] == arch
    # Its own default, and not the width that the configuration of the task gives another model.
    assert 5 in weights()[hidden].shape
    opened = kind.load_from_checkpoint("run/best.ckpt", trusted=(arch,)).eval()
    module = opened.data_class(source=str(data), seed=found["seed"], cache_dir="cache")
    module.setup()
    test = module.splits["test"].gather(torch.arange(24))
    predicted = opened(test.inputs, test.lengths).argmax(1)
    assert predicted.tolist() == found["predictions"]["predicted"]


def test_options_are_handed_to_an_own_model(nets: None, train: Train, small_data: Data) -> None:
    data = str(small_data("vision"))
    Path("more.yaml").write_text("model: {arch: 'nets.py:Pixels', options: {hidden: 7}}")
    train(*("--task", "vision", "--data", data, "--config", "more.yaml", "--model.width=6"), *FEW)
    assert weights()["model.layers.5.weight"].shape == (6, 7)
    train(
        *("--task", "vision", "--data", data, "--config", "more.yaml", "--reg", "batchnorm"),
        *("--model.options.hidden=9", *FEW),
    )
    assert weights()["model.layers.2.running_mean"].shape == (9,)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["options"] == {"hidden": 9}


def test_an_interrupted_run_of_an_own_model_goes_on(
    nets: None, train: Train, small_data: Data
) -> None:
    command = ["--task", "vision", "--data", str(small_data("vision"))]
    command += ["--model.arch=nets.py:Pixels", "--reg", "both", *FEW, "--trainer.max_epochs=3"]
    train(*command)
    whole = weights("run/last.ckpt")
    for file in Path("run").glob("*"):
        file.unlink() if file.is_file() else None
    Path("crash").touch()
    with pytest.raises(RuntimeError, match="power cut"):
        train(*command)
    Path("crash").unlink()
    assert not Path("run/metrics.json").exists()
    train(*command, "--resume=auto")
    for name, value in weights("run/last.ckpt").items():
        assert torch.equal(value, whole[name]), name


def test_two_processes_train_an_own_model(nets: None, small_data: Data, caches: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tasks.train", "--task", "vision", "--reg", "batchnorm"),
            *("--data", str(small_data("vision")), "--devices=2", "--run_dir=run"),
            *("--model.arch=nets.py:Pixels", f"--data.cache_dir={caches}", *FEW),
            *("--trainer.accelerator=cpu", "--trainer.logger=false"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(Path("run/metrics.json").read_text())["predictions"]["label"]) == 24


def test_a_study_and_a_search_run_an_own_model(
    nets: None, small_data: Data, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(small_data("vision"))
    own = ("--model.arch=nets.py:Pixels", f"--data.cache_dir={caches}", *FEW)
    study_run.main(
        ["--task", "vision", "--data", data, "--variants", "none both", "--seeds", "1", *own]
    )
    assert len(list(Path("runs/studies/vision-small").glob("*/metrics.json"))) == 2
    space = "parameters: {model.options.hidden: {values: [6]}}"
    Path("space.yaml").write_text(space)
    sweep.main(
        [
            *("--task", "vision", "--data", data, "--space", "space.yaml", "--trials", "1"),
            *("--reg", "none", *own),
        ]
    )
    (best,) = Path("runs").glob("sweeps/*/trial-0/best.ckpt")
    assert weights(str(best))["model.layers.5.weight"].shape == (5, 6)


WRONG = {
    "no_file.py": None,
    "broken.py": "import torch\n\nclass Net(torch.nn.Module:\n    pass\n",
    "imports.py": "\nimport nothing_like_this\n",
    "reads.py": "def load():\n    return {}['vocabulary']\n\nNAMES = load()\n",
    "good.py": (
        "import torch\n"
        "def table(spec, reg): return [1]\n"
        "def empty(spec, reg): return torch.nn.Flatten()\n"
        "def lazy(spec, reg): return torch.nn.LazyLinear(3)\n"
        "def one(spec): return torch.nn.Linear(3, 3)\n"
        "def needs(spec, reg, hidden, bias=True): return torch.nn.Linear(3, 3)\n"
        "def fails(spec, reg):\n"
        "    return torch.nn.Linear(spec.width, 3)\n"
        "def site(spec, reg):\n"
        "    return reg.dropout_layer(3, dims=0, time=False)\n"
        "number = 3\n"
    ),
    "wide.py": (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, spec, reg):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.LazyLinear(5)\n"
        "        self.layer = torch.nn.Linear(12 * 12 * 3, len(spec.classes) + 2)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x.flatten(1).float())\n"
        "class Pair(Net):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x), 1\n"
    ),
}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no_file.py:Net"], ["there is no file no_file.py"]),
        (["no_package.nets:Net"], ["No module named 'no_package'"]),
        (["good.py:Net"], ["has no class or function Net"]),
        (["good.py:tabel"], ["did you mean table?"]),
        (["good.py:number"], ["has no class or function number"]),
        (["broken.py:Net"], ["cannot be imported: SyntaxError: ", "broken.py, line 3"]),
        (["imports.py:Net"], ["No module named 'nothing_like_this'", "imports.py, line 2"]),
        (["reads.py:Net"], ["KeyError: 'vocabulary'", "reads.py, line 2"]),
        (["good.py:table"], ["returns list, which is no torch.nn.Module", "(spec, reg,"]),
        (["good.py:empty"], ["has no parameters to train"]),
        (["good.py:lazy"], ["has lazy layers"]),
        (["good.py:one"], ["too many positional arguments", "takes (spec, reg, **options)"]),
        (["torch.nn:Linear"], ["torch.nn:Linear: TypeError"]),
        (["torchvision.models:resnet18"], ["takes (spec, reg, **options)"]),
        (["good.py:needs"], ["missing a required argument: 'hidden'"]),
        (
            ["good.py:needs", "--model.options.hiden=3"],
            ["model.options.hiden is no option of model.arch=good.py:needs", "hidden, bias"],
        ),
        (["good.py:fails", "--model.depth=3"], ["model.depth is no option", "it takes none"]),
        (["good.py:fails", "--model.pretrained=x"], ["model.pretrained=x is not for"]),
        (["good.py:fails"], ["AttributeError", "has no attribute 'width'", "good.py, line 8"]),
        (
            ["good.py:site", "--model.reg.dropout=0.1", "--model.reg.dropout_kind=block"],
            ["dropout_kind=block", "good.py, line 10"],
        ),
        (["wide.py:Net"], ["returned (14, 5)", "logits of shape (batch, classes) = (14, 3)"]),
        (["wide.py:Pair"], ["returned tuple", "(14, 3)"]),
        (["cnn", "--model.options.hidden=3"], ["model.options.hidden", "it takes depth, width"]),
        (["cnn", "--model.options.depth=2", "--model.depth=2"], ["both given"]),
        (["cnn", "--model.options.depth=two"], ["model.arch=cnn: ", "'str'"]),
        (["cnn", "--model.options=3"], ["options"]),
        (["cnn", "--model.pretrained=true"], ["model.pretrained=True is not for model.arch=cnn"]),
    ],
    ids=lambda value: "-".join(value)[:40],
)
def test_what_is_wrong_with_an_own_model_is_named(
    arguments: list[str], named: list[str], refused: Callable[..., str], small_data: Data
) -> None:
    for file, content in WRONG.items():
        if content is not None:
            Path(file).write_text(content)
    arch, *further = arguments
    line = refused(
        *("--task", "vision", "--data", str(small_data("vision")), "--reg", "none"),
        *(f"--model.arch={arch}", *further, "--data.batch_size=16", "--trainer.max_epochs=1"),
    )
    for part in named:
        assert part in line


def test_a_bug_in_an_own_forward_shows_where_it_is(train: Train, small_data: Data) -> None:
    Path("bug.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, spec, reg):\n"
        "        super().__init__(12, 3)\n"
        "    def forward(self, x):\n"
        "        return {}['logits']\n"
    )
    with pytest.raises(KeyError, match="logits") as raised:
        train("--task", "vision", "--data", str(small_data("vision")), "--model.arch=bug.py:Net")
    shown = "".join(traceback.format_exception(raised.value))
    assert "bug.py" in shown
    assert "line 6" in shown


SPEC = VisionSpec(["a", "b"], [1, 8, 8], [0.0], [1.0], allow_flip=True)
PLANTED = "import pathlib\npathlib.Path('harm').touch()\nfrom nets import Pixels as Net\n"


def saved(**changed: Any) -> None:
    task = Task(SPEC, arch="mlp", depth=1, width=4)
    content: dict[str, Any] = {
        "state_dict": task.state_dict(),
        "hyper_parameters": {"spec": SPEC, "arch": "mlp", "depth": 1, "width": 4, **changed},
    }
    task.on_save_checkpoint(content)
    torch.save(content, "best.ckpt")


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        ({"arch": "os:system"}, "arch=os:system"),
        ({"arch": "planted:Net"}, "arch=planted:Net"),
        ({"arch": "planted.py:Net"}, "arch=planted.py:Net"),
        (
            {"reg": {"dropout": 0.1, "dropout_kind": "planted.py:Net"}},
            "reg.dropout_kind=planted.py:Net",
        ),
        ({"reg": {"normalization": "planted:Net"}}, "reg.normalization=planted:Net"),
        ({"options": {"layers": [{"kind": "planted:Net"}]}}, "options.layers.kind=planted:Net"),
        ({"of_a_subclass": "planted:Net"}, "of_a_subclass=planted:Net"),
    ],
)
def test_a_checkpoint_does_not_import_what_it_names(
    planted: dict[str, Any], named: str, nets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    saved(**planted)
    with pytest.raises(InputError) as refused:
        Task.load_from_checkpoint("best.ckpt")
    assert f"names code to import, {named}, which is refused" in str(refused.value)
    assert "planted" not in sys.modules
    assert not Path("harm").exists()


def test_a_trusted_name_and_one_given_by_keyword_are_imported(nets: None) -> None:
    arch = "nets.py:Pixels"
    model = Task(SPEC, arch=arch, options={"hidden": 3})
    content: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {"spec": SPEC, "arch": arch, "options": {"hidden": 3}},
    }
    model.on_save_checkpoint(content)
    torch.save(content, "best.ckpt")
    with pytest.raises(InputError, match=r'trusted=\("nets.py:Pixels",\)'):
        Task.load_from_checkpoint("best.ckpt", trusted=("nets.py:Other",))
    for how in ({"trusted": (arch,)}, {"arch": arch}):
        opened = Task.load_from_checkpoint("best.ckpt", **how)
        for name, value in opened.state_dict().items():
            assert torch.equal(value, content["state_dict"][name])


def test_class_names_that_look_like_import_paths_are_data() -> None:
    saved(spec=VisionSpec(["good:bad", "os:system"], [1, 8, 8], [0.0], [1.0], allow_flip=True))
    assert Task.load_from_checkpoint("best.ckpt").classes == ["good:bad", "os:system"]


def test_a_further_task_builds_its_models_in_the_same_way() -> None:
    tables: Registry[Callable[..., nn.Module]] = Registry("model.arch")

    @tables.register("linear")
    def linear(spec: DataSpec, reg: Regularization, columns: int = 2) -> nn.Module:
        return nn.Linear(columns, len(spec.classes))

    spec, reg = DataSpec(["a", "b", "c"]), Regularization()
    assert isinstance(build_model(tables, "linear", spec, reg), nn.Linear)
    built = build_model(tables, "linear", spec, reg, {"columns": 4}, augment="none")
    assert built.weight.shape == (3, 4)
    with pytest.raises(InputError, match="did you mean linear"):
        build_model(tables, "linaer", spec, reg)
    with pytest.raises(InputError, match=r"columms is no option .* it takes columns"):
        build_model(tables, "linear", spec, reg, {"columms": 4})


def test_a_text_model_without_lengths_gets_ids_alone() -> None:
    spec = TextSpec(["a", "b"], vocabulary=9, padding=0, unknown=1, special=[0])
    task = TextTask(spec, arch="text_cnn", width=4)
    assert task(torch.ones(2, 5, dtype=torch.long), torch.tensor([5, 3])).shape == (2, 2)
