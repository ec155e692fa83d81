"""docs/extend.md: what a user adds works from a folder outside of the project, unchanged."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.building import without_sizes
from tasks.lookup import find_task
from tasks.train import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text()
# A file of the page: its name in the line before its code.
FILES = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
SMALL = "--trainer.max_epochs=1 --trainer.accelerator=cpu --data.train_fraction=0.3"
PACKAGES = ("modules", "tasks", "study", "configs", "examples")


def make(folder: Path, line: str, further: str) -> subprocess.CompletedProcess[str]:
    """Run a `make` command in a folder, with further keys in its ARGS."""
    words = shlex.split(line)
    given = [word for word in words if word.startswith("ARGS=")]
    rest = [word for word in words[1:] if word not in given]
    arguments = f"{given[0] if given else 'ARGS='} {further}"
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), f"RUN={sys.executable}", *rest, arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def state() -> dict[str, str]:
    """Return the content of all files of the project, as hashes."""
    files = [ROOT / "Makefile", *(file for name in PACKAGES for file in (ROOT / name).rglob("*"))]
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


def records(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in folder.glob("runs/**/metrics.json")]


@pytest.fixture
def own(tmp_path):
    """A folder with the files of the page, and nothing of the project."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_page_has_a_file_for_each_thing_and_a_command_for_each_file():
    assert set(FILES) == {"my_layers.py", "my_net.py", "my_task.py", "my_data.py"}
    for name in FILES:
        assert any(name in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, own, caches):
    done = make(own, command, f"{SMALL} --data.cache_dir={caches}")
    assert done.returncode == 0, done.stderr
    runs = 4 if "make study" in command else 1
    assert len(records(own)) == runs
    for record in records(own):
        assert 0.0 <= record["test"]["acc"] <= 1.0


OWN_NET = """
from table_model import Standardize
from torch import nn


class OwnNet(nn.Sequential):
    def __init__(self, spec, reg, depth=1, width=8):
        super().__init__(
            Standardize(spec),
            reg.prepare_layer(nn.Linear(len(spec.mean), width)),
            reg.norm_layer(width, dims=0),
            reg.dropout_layer(width, dims=0),
            nn.Linear(width, len(spec.classes)),
        )
"""


def test_a_study_of_own_things_alone_changes_no_file_of_the_project(own, caches):
    """An own task, architecture, dropout kind and norm kind, all in one study."""
    shutil.copytree(ROOT / "examples" / "own_task", own / "tables")
    (own / "own_net.py").write_text(OWN_NET)
    before = state()
    keys = (
        "--model.arch=own_net.py:OwnNet --model.width=8 --model.reg.dropout=0.2 "
        "--model.reg.normalization=my_layers.py:mean_only "
        "--model.reg.dropout_kind=my_layers.py:UniformDropout"
    )
    line = "make study TASK=tables/task.py:TableTask SEEDS=2 VARIANTS='none weight_decay'"
    done = make(own, line, f"{keys} {SMALL} --data.cache_dir={caches}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(own)
    assert len(found) == 4
    assert {record["reg"] for record in found} == {"none", "weight_decay"}
    for record in found:
        assert record["task"] == "tables/task.py:TableTask"
        model = record["config"]["model"]
        assert model["arch"] == "own_net.py:OwnNet"
        assert model["reg"]["dropout_kind"] == "my_layers.py:UniformDropout"
        assert model["reg"]["normalization"] == "my_layers.py:mean_only"
        # Two layers, the learned bias of the norm, and no bias before it.
        assert record["parameters"] == 30 * 8 + 8 + 8 * 2 + 2
    page = own / "runs" / "studies" / "TableTask-builtin" / "study.html"
    assert "TableTask on builtin, 2 seeds" in page.read_text()
    assert state() == before


def edited(old: str, new: str) -> str:
    """Return the page's task with a mistake in it."""
    assert old in FILES["my_task.py"]
    return FILES["my_task.py"].replace(old, new)


MISTAKES = {
    "syntax": (edited("class WaveTask(", "class WaveTask)("), "SyntaxError", "line 30"),
    "import": (edited("import numpy", "import nunpy"), "No module named 'nunpy'", "line 1"),
    "no data class": (edited("    data_class = WaveData\n", ""), "no data_class", "set it to"),
    "not a data class": (edited("= WaveData\n", "= dict\n"), "data_class", "ClassificationData"),
    "not a task": (edited("(ClassificationTask)", "(nn.Module)"), "subclass", "ClassificationTask"),
    "no config": (
        edited("= WaveData\n", "= WaveData\n    config = 'no.yaml'\n"),
        "no.yaml",
        "config",
    ),
    "no presets": (
        edited("= WaveData\n", "= WaveData\n    preset_file = 'no.yaml'\n"),
        "no.yaml",
        "preset_file",
    ),
    "no optim": (
        edited('        optim: Optimization = Optimization("adamw", lr=0.003),\n', "").replace(
            "training, optim)", "training, Optimization())"
        ),
        "no parameter optim",
        "docs/extend.md",
    ),
    "decode": (
        edited(
            '    noun = "wave"\n',
            '    noun = "wave"\n\n    def decode(self, value):\n        raise OSError("loud")\n',
        ),
        "600 of 600 waves",
        "loud",
    ),
    "spec": (
        edited(
            '    noun = "wave"\n',
            '    noun = "wave"\n\n    def spec(self):\n        return self.classes\n',
        ),
        "WaveData.spec() returns list",
        "DataSpec",
    ),
    "source": (edited("    return Source(", "    return dict("), "dict", "DATA=builtin"),
    "rows": (edited("labels.tolist())}", "labels.tolist()[1:])}"), "600 inputs", "599 labels"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_own_task_is_one_line(mistake, own, caches, capsys):
    code, what, fix = MISTAKES[mistake]
    file = own / f"{mistake.replace(' ', '_')}.py"
    file.write_text(code)
    with pytest.raises(SystemExit) as ended:
        main(["--task", f"{file}:WaveTask", f"--data.cache_dir={caches}", *SMALL.split()])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert what in error
    assert fix in error


@pytest.mark.parametrize(
    ("reg", "told"),
    [
        ("augment", "sets model.augment, which WaveTask does not have"),
        ("norm-gost", "did you mean norm-ghost?"),
    ],
)
def test_a_preset_that_an_own_task_cannot_use_is_refused(reg, told, own, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--task", "my_task.py:WaveTask", "--reg", reg])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_data_are_decoded_again_when_the_file_of_their_class_changes(own):
    values = []
    for scale in (1, 2):
        (own / "scaled.py").write_text(
            "from my_task import WaveData, WaveTask\n\n\n"
            "class Scaled(WaveData):\n"
            "    def decode(self, value):\n"
            f"        return super().decode({scale} * value)\n\n\n"
            f"class ScaledTask(WaveTask):\n    data_class = Scaled\n{'#' * scale}\n"
        )
        for name in [name for name in sys.modules if name.startswith("scaled_")]:
            del sys.modules[name]
        kind = find_task("scaled.py:ScaledTask").data_class
        # The rows themselves are from a file that does not change.
        data = kind("my_task.py:waves", cache_dir=str(own / "cache"))
        data.setup()
        values.append(data.splits["train"].values.clone())
    torch.testing.assert_close(values[1], 2 * values[0])


def test_sizes_without_a_default_of_none_stay_when_another_model_is_chosen(own):
    task = find_task("my_task.py:WaveTask")
    assert without_sizes(task, ["--model.arch=own_net.py:OwnNet"]) == []
