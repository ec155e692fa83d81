"""`torch.hub.load` of a clone, in processes that start in another folder."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON_FILES = shutil.ignore_patterns("__pycache__")
# Each model gives finite logits, from layers of the clone and none of an installed package.
EVERY_MODEL = """
import sys, torch
names = sys.argv[2:]
inputs = dict.fromkeys(("tc_resnet", "bc_resnet", "m5"), torch.randn(2, 16_000))
inputs |= dict.fromkeys(("text_cnn", "dan", "lstm", "transformer"), torch.randint(1, 100, (2, 12)))
images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
for name in names:
    model = torch.hub.load(sys.argv[1], name, source="local", classes=7)
    logits = model(inputs.get(name, images))
    assert logits.shape == (2, 7), (name, logits.shape)
    assert logits.isfinite().all(), name
for package in ("regain", "tasks"):
    assert sys.modules[package].__file__.startswith(sys.argv[1]), sys.modules[package].__file__
print(*(name for name, module in sys.modules.items() if module is not None))
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that finds nothing of the checkout by itself."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(hubconf: ModuleType) -> list[str]:
    """List what torch.hub.list lists."""
    return [name for name in dir(hubconf) if name[0] != "_" and callable(getattr(hubconf, name))]


def copy(target: Path) -> Path:
    """Copy what torch.hub downloads, the link as a link."""
    for package in ("modules", "tasks"):
        shutil.copytree(ROOT / package, target / package, ignore=PYTHON_FILES)
    shutil.copy2(ROOT / "hubconf.py", target)
    (target / "regain").symlink_to("modules")
    return target


def test_only_models_are_listed(hubconf: ModuleType) -> None:
    for name in entries(hubconf):
        assert getattr(hubconf, name).__module__ == "hubconf", name
    assert {"tc_resnet", "resnet", "transformer"} <= {*entries(hubconf)}


@pytest.mark.parametrize("link", ["link", "text file"])
def test_every_model_is_loaded_from_a_clone(link: str, hubconf: ModuleType, tmp_path: Path) -> None:
    clone = copy(tmp_path / "clone")
    if link == "text file":
        # What a zip archive makes of the link.
        (clone / "regain").unlink()
        (clone / "regain").write_text("modules")
    names = entries(hubconf) if link == "text file" else ["tc_resnet"]
    done = python(EVERY_MODEL, clone, *names)
    assert done.returncode == 0, done.stderr


def test_the_models_need_what_is_listed_and_nothing_else(hubconf: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    packages = {canonicalize_name(Requirement(line).name) for line in lines}
    hidden = [
        name
        for name, owners in packages_distributions().items()
        # A name with an underscore is a part of a package that has another one.
        if name[0] != "_" and packages & {*map(canonicalize_name, owners)}
        if name not in {"regain", *hubconf.dependencies}
    ]
    assert "optuna" in hidden
    hide = f"import sys\nsys.modules |= dict.fromkeys({hidden})\n"
    done = python(hide + EVERY_MODEL, ROOT, *entries(hubconf))
    assert done.returncode == 0, done.stderr
    assert {*hubconf.dependencies} <= {*done.stdout.split()}, "listed, but not imported"


def test_arguments_reach_the_model(hubconf: ModuleType) -> None:
    model = hubconf.resnet(5, (1, 8, 8), [10.0], [2.0], {"dropout": 0.3}, depth=10, width=4)
    layers = dict(model.named_modules())
    assert {getattr(layer, "p", 0.3) for layer in layers.values()} == {0.3}
    assert any(type(layer).__name__ == "Dropout" for layer in layers.values())
    assert model[0].mean.flatten().tolist() == [10.0]
    assert model[0].std.flatten().tolist() == [2.0]
    assert (model[-1].in_features, model[-1].out_features) == (32, 5)
    assert len(hubconf.m5(sample_rate=8_000).convs[0].weight[0, 0]) == 80
    text = hubconf.text_cnn(vocabulary=30, padding=3).embedding
    assert (text.num_embeddings, text.padding_idx) == (30, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes is at least 2, not 1"),
        ({"mean": [1.0]}, "mean has one value for each of 3 channels, not [1.0]"),
        ({"std": [1.0, 2.0]}, "std has one value for each of 3 channels, not [1.0, 2.0]"),
        ({"width": 0}, "width is at least 1, not 0"),
        ({"reg": {"dropout": 2.0}}, "dropout"),
    ],
    ids=["classes", "mean", "std", "width", "reg"],
)
def test_a_wrong_value_is_named(
    arguments: dict[str, object], message: str, hubconf: ModuleType
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        hubconf.cnn(**arguments)


def test_another_package_named_tasks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").touch()
    program = "import sys, torch, tasks\ntorch.hub.load(sys.argv[1], 'tc_resnet', source='local')"
    done = python(program, ROOT)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: another package named tasks is imported already"), last
