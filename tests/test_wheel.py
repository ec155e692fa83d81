"""The wheel of the layers: what it holds, what it needs, and that it works with torch alone."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.environments import environment

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"regain", "modules", "tasks", "study"}
# Without pip's settings on this machine, and without a network.
PIP = (sys.executable, "-m", "pip", "--isolated", "--no-input")

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="git lists the files to build, and this is no clone"
)


def run(*command: object, folder: Path, **env: str) -> None:
    """Run a command that sees no package of the checkout."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)} | env
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def tracked(*folders: str) -> list[Path]:
    """List the files of a clean clone."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(name) for name in filter(None, listed.stdout.split("\0"))]


def clone(target: Path) -> Path:
    """Copy the tracked files, so that nothing built before gets into a wheel."""
    for file in tracked():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, target / file, follow_symlinks=False)
    return target


def build(source: Path, folder: Path) -> Path:
    """Build a wheel of a folder or of a source distribution."""
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    run(*PIP, "wheel", *offline, "--wheel-dir", folder, source, folder=folder)
    [built] = folder.glob("*.whl")
    return built


def content(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    [name] = [name for name in content(wheel) if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(zipfile.ZipFile(wheel).read(name))


def test_the_wheel_holds_the_layers_alone(wheel: Path) -> None:
    held = [name for name in content(wheel) if ".dist-info/" not in name]
    assert held == sorted(f"regain/{file.name}" for file in tracked("modules"))
    assert {"regain/kernels.c", "regain/py.typed", "regain/__init__.py"} <= set(held)


def test_the_wheel_needs_torch_alone(metadata: Message) -> None:
    needed = [Requirement(one) for one in metadata.get_all("Requires-Dist", [])]
    assert [one.name for one in needed if not one.marker] == ["torch"]
    assert all("extra ==" in str(one.marker) for one in needed if one.name != "torch")
    extras = ["train", "study", "timm", "export", "demo", "tensorboard", "mlflow", "ray", "slurm"]
    assert metadata.get_all("Provides-Extra") == [*extras, "dev"]


def test_a_zip_archive_of_the_repository_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    # Unpacked from a zip archive, the link is a text file.
    source = clone(tmp_path / "clone")
    (source / "regain").unlink()
    (source / "regain").write_text("modules")
    (tmp_path / "wheel").mkdir()
    assert content(build(source, tmp_path / "wheel")) == content(wheel)


def test_a_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = clone(tmp_path / "clone")
    hook = "import setuptools.build_meta; setuptools.build_meta.build_sdist('.')"
    run(sys.executable, "-c", hook, folder=source)
    [packed] = source.glob("*.tar.gz")
    (tmp_path / "wheel").mkdir()
    assert content(build(packed, tmp_path / "wheel")) == content(wheel)


@pytest.fixture
def torch_alone(tmp_path: Path) -> Path:
    """Make an environment with links to torch and to what it needs, and return its Python.

    `make wheel` installs torch anew, which takes a minute and a network.
    """
    return environment(tmp_path / "env", "torch")


def test_the_wheel_works_with_torch_alone(wheel: Path, torch_alone: Path, tmp_path: Path) -> None:
    offline = ("--no-index", "--no-deps")
    run(*PIP, "--python", torch_alone, "install", *offline, wheel, folder=tmp_path)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run(torch_alone, "-I", ROOT / "tests/installed.py", folder=tmp_path, **cache)


def packages(*requirements: str) -> set[str]:
    """Name the packages of requirements, those of our own extras left out."""
    names = {canonicalize_name(Requirement(one).name) for one in requirements}
    return names - {"regain"}


def imports(folder: str, top_level: bool = False) -> Iterator[tuple[str, str]]:
    """Pair each package of others that is imported in a folder with a file that does so."""
    installed = packages_distributions()
    for file in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in tree.body if top_level else ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in {name.partition(".")[0] for name in names} - OURS:
                if name not in sys.stdlib_module_names:
                    for one in installed.get(name, [name]):
                        yield canonicalize_name(one), file.relative_to(ROOT).as_posix()


BASE = packages(*PROJECT["dependencies"])
TRAIN = packages(*EXTRAS["train"])
STUDY = packages(*EXTRAS["study"])
TIMM = packages(*EXTRAS["timm"])
# PyTorch imports onnxscript to write ONNX.
EXPORT = packages(*EXTRAS["export"]) - {"onnxscript"}
DEMO = packages(*EXTRAS["demo"])
# Lightning imports tensorboard, and MLflow the other packages of its extra.
MLFLOW = {"mlflow-skinny"}
CLUSTER = packages(*EXTRAS["ray"], *EXTRAS["slurm"])


@pytest.mark.parametrize(
    ("folder", "before", "own"),
    [
        ("modules", set(), BASE),
        ("tasks", BASE, TRAIN | TIMM | EXPORT | MLFLOW | DEMO),
        ("study", BASE | TRAIN, STUDY | CLUSTER),
    ],
    ids=["modules", "tasks", "study"],
)
def test_what_is_imported_is_what_the_extra_has(
    folder: str, before: set[str], own: set[str]
) -> None:
    found = dict(imports(folder))
    missing = {name: file for name, file in found.items() if name not in before | own}
    assert not missing, f"not required for {folder}, but imported"
    assert not own - found.keys(), f"required for {folder}, but not imported"


def test_timm_onnx_ray_and_slurm_are_imported_where_they_are_used() -> None:
    assert not (TIMM | EXPORT) & dict(imports("tasks", top_level=True)).keys()
    assert not CLUSTER & dict(imports("study", top_level=True)).keys()


def test_the_extra_dev_has_all_others() -> None:
    own = {extra for one in EXTRAS["dev"] for extra in Requirement(one).extras if "regain" in one}
    loggers = {"tensorboard", "mlflow"}
    assert own == {"study", "timm", "export", "demo", "ray", "slurm"} | loggers
    assert "regain[train]" in EXTRAS["study"]
