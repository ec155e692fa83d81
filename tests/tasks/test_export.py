"""`make export`: exported models predict as the checkpoint does, and say what they are."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from PIL import Image

import tasks
from tasks.export import main
from tasks.exporting import onnx_model, upload
from tasks.exporting.examples import random_inputs
from tests.environments import environment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_task"
TEXT = "Jürgen Müller"
# What the scripts of docs/use.md read, and what the predictor gets.
INPUTS = {"vision": "photos/seven.jpg", "speech": "recordings/yes.mp3", "nlp": TEXT}
SCRIPTS = {"vision": "PIL", "speech": "soundfile", "nlp": "tokenizers"}
SMALL = {
    "vision": ["--model.width=8"],
    "speech": ["--model.width=8"],
    "nlp": ["--model.width=32", "--data.vocabulary=500"],
}
Run = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained() -> dict[str, Path]:
    """The folders of the runs that the tests of this file share."""
    return {}


@pytest.fixture
def run(trained, train, tmp_path_factory, monkeypatch) -> Run:
    """Train a small model on builtin data once, and return the folder of its run."""

    def of(task: str) -> Path:
        if task not in trained:
            folder = tmp_path_factory.mktemp(task)
            with monkeypatch.context() as there:
                there.chdir(folder)
                train("--task", task, "--trainer.max_epochs=2", *SMALL[task])
            trained[task] = folder / "run"
        return trained[task]

    return of


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory) -> Path:
    """A Python with onnxruntime, and with what reads inputs, but without PyTorch."""
    names = ("onnxruntime", "numpy", "pillow", "soundfile", "tokenizers", "safetensors")
    return environment(tmp_path_factory.mktemp("env") / "env", *names)


def refused(capsys, *arguments: str) -> str:
    """Run a command line that must fail, and return its error."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def new_inputs() -> None:
    """Write a photo and a recording unlike those of the data: other sizes, rates and formats."""
    Path("photos").mkdir()
    Path("recordings").mkdir()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.resize((120, 90)).save("photos/seven.jpg", exif=exif)
    time = np.arange(30_000) / 44_100
    # With noise, as a recording has it: the logarithm of a silent band would show rounding.
    tone = 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time)) + rng.normal(0, 0.02, time.shape)
    soundfile.write("recordings/yes.mp3", np.stack((tone, 0.5 * tone), axis=1), 44_100)


def script_of(task: str) -> str:
    """The script of docs/use.md that runs an exported model of a task."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.DOTALL)
    return next(one for one in blocks if "onnxruntime" in one and SCRIPTS[task] in one)


@pytest.mark.parametrize("task", ["vision", "speech", "nlp"])
def test_an_export_predicts_the_same_without_pytorch(task: str, run: Run, without_torch) -> None:
    new_inputs()
    main(["--ckpt", str(run(task)), "--out", "export-onnx"])
    wanted = tasks.load(run(task))(INPUTS[task])
    code = (
        "import importlib.util\n"
        "found = [n for n in ('torch', 'lightning', 'tasks') if importlib.util.find_spec(n)]\n"
        f"assert not found, found\n{script_of(task)}\n"
        "print(json.dumps(dict(zip(classes, probabilities.tolist(), strict=True))))"
    )
    done = subprocess.run(
        [without_torch, "-I", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said, found = done.stdout.strip().splitlines()
    assert said.split()[0] == wanted.label
    assert json.loads(found) == pytest.approx(wanted.probabilities, abs=1e-4)
    # The temperature is in them.
    assert tasks.load(run(task)).temperature != 1.0


@pytest.mark.parametrize("task", ["vision", "speech", "nlp"])
def test_weights_open_again(task: str, run: Run, without_torch) -> None:
    new_inputs()
    main(["--ckpt", str(run(task)), "--format", "safetensors", "--out", "weights"])
    one, other = tasks.load(run(task)), tasks.load("weights")
    assert other(INPUTS[task]) == one(INPUTS[task])
    assert other.facts == one.facts
    code = (
        "from safetensors.numpy import load_file\n"
        "print(sum(float(abs(x.astype('float64')).sum()) for x in "
        "load_file('weights/model.safetensors').values()))"
    )
    done = subprocess.run([without_torch, "-I", "-c", code], capture_output=True, text=True)
    total = sum(float(x.double().abs().sum()) for x in one.task.state_dict().values())
    assert float(done.stdout) == pytest.approx(total)


def test_an_export_of_weights_is_checked_when_it_is_opened(run: Run) -> None:
    main(["--ckpt", str(run("vision")), "--format", "safetensors", "--out", "weights"])
    config = Path("weights/config.json")
    written = config.read_text()
    for content, message in (
        ("{", "incomplete"),
        ("[]", "no checkpoint"),
        (written.replace('"task": "vision"', '"task": "evil.py:Task"'), "names code to import"),
    ):
        config.write_text(content)
        with pytest.raises(tasks.errors.InputError, match=message):
            tasks.load("weights")
    config.write_text(written)
    Path("weights/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(tasks.errors.InputError, match="incomplete"):
        tasks.load("weights")


def test_a_graph_has_no_batch_norm_and_no_dropout(run: Run) -> None:
    main(["--ckpt", str(run("vision")), "--out", "graph"])
    model = onnx.load("graph/model.onnx")
    found = {node.op_type for node in model.graph.node}
    assert "Conv" in found
    assert not found & {"BatchNormalization", "Dropout"}
    facts = {one.key: one.value for one in model.metadata_props}
    predictor = tasks.load(run("vision"))
    assert json.loads(facts["classes"]) == predictor.classes
    assert float(facts["temperature"]) == predictor.temperature
    assert json.loads(facts["preprocessing"])["mean"] == predictor.task.hparams["spec"].mean
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == ["batch", 1, 8, 8]


def test_a_program_runs_without_the_project(run: Run) -> None:
    main(["--ckpt", str(run("nlp")), "--format", "pt2", "--out", "program"])
    predictor = tasks.load(run("nlp"))
    texts = [TEXT, "Bjørn", "Anna Maria Müller"]
    ids = predictor.encode(texts).inputs.long()
    code = (
        "import json, sys, torch\n"
        "extra = {'metadata.json': ''}\n"
        "program = torch.export.load('program/model.pt2', extra_files=extra)\n"
        "assert not [n for n in program.graph.nodes if 'dropout' in str(n.target)]\n"
        f"logits, probabilities = program.module()(torch.tensor({ids.tolist()}))\n"
        "classes = json.loads(extra['metadata.json'])['classes']\n"
        "print(json.dumps([dict(zip(classes, row)) for row in probabilities.tolist()]))\n"
        "assert 'tasks' not in sys.modules and 'regain' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for row, one in zip(json.loads(done.stdout), predictor(texts), strict=True):
        assert row == pytest.approx(one.probabilities, abs=1e-6)


def test_another_result_is_an_error_and_leaves_nothing(run: Run, capsys, monkeypatch) -> None:
    folder = run("vision")
    right = onnx_model.OnnxModel.__call__

    def wrong(self: Any, *arguments: torch.Tensor) -> torch.Tensor:
        logits = right(self, *arguments)
        # In batches of several alone, as a fixed batch size would be.
        return logits if len(logits) == 1 else logits + 2e-4 * logits.abs().max().clamp(min=1)

    monkeypatch.setattr(onnx_model.OnnxModel, "__call__", wrong)
    message = refused(capsys, "--ckpt", str(folder), "--out", "graph")
    assert re.search(r"logits by 2\.\de-04 .* more than 0\.0001, on validation examples", message)
    assert not [*Path().iterdir()]


def test_the_folder_of_the_hub_says_what_the_model_is(run: Run) -> None:
    folder = run("vision")
    main(["--ckpt", str(folder), "--format", "hf", "--out", "hub", "--license", "mit"])
    assert sorted(one.name for one in Path("hub").iterdir()) == [
        *("README.md", "config.json", "model.onnx", "model.safetensors"),
        "preprocessor_config.json",
    ]
    results = json.loads((folder / "metrics.json").read_text())
    card = ModelCard.load("hub/README.md")
    [result] = card.data.eval_results
    assert result.metric_value == round(results["test"]["acc"], 4)
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-classification"
    for wanted in (
        "- `model.reg.normalization` = batch",
        f"{results['examples']['train']:,} train",
        f"{100 * results['test']['acc']:.2f} %",
        "make train TASK=vision REG=both DATA=builtin SEED=0 ARGS='",
        "--trainer.max_epochs=2 --model.width=8'",
        "--data.cache_dir=path/to/",
        "validation examples of builtin",
    ):
        assert wanted in card.text, wanted
    # Neither a path of this machine, nor results that were not measured.
    assert str(folder) not in card.text
    image = torch.zeros(8, 8)
    assert tasks.load("hub")(image) == tasks.load(folder)(image)


def test_results_of_another_run_are_not_in_the_card(run: Run) -> None:
    shutil.copy(run("vision") / "best.ckpt", "best.ckpt")
    results = json.loads((run("vision") / "metrics.json").read_text())
    Path("metrics.json").write_text(json.dumps(results | {"seed": 7}))
    main(["--ckpt", "best.ckpt", "--format", "safetensors"])
    card = ModelCard.load("export-safetensors/README.md")
    assert card.data.eval_results is None
    assert "not measured" in card.text


def test_the_card_of_the_last_checkpoint_has_its_own_results(run: Run) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copy(run("vision") / name, name)
    results = json.loads((run("vision") / "metrics.json").read_text())
    results["test"]["acc"], results["test_last"] = 0.75, {"acc": 0.25}
    Path("metrics.json").write_text(json.dumps(results))
    for name, accuracy in (("best.ckpt", 0.75), ("last.ckpt", 0.25)):
        main(["--ckpt", name, "--format", "safetensors"])
        card = ModelCard.load("export-safetensors/README.md")
        assert [one.metric_value for one in card.data.eval_results] == [accuracy]


def test_the_folder_is_uploaded(run: Run, capsys, monkeypatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, **options: Any) -> str:
            names = {one.name for one in options["folder_path"].iterdir()}
            calls.append(("files", {"names": names}))
            if calls[0][0] == "me/refused":
                raise OSError("403 Forbidden")
            return f"https://hub/{options['repo_id']}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(upload, "reachable", lambda address: True)
    command = ["--ckpt", str(run("nlp")), "--format", "hf", "--out", "hub"]
    main([*command, "--push", "me/names"])
    assert "uploaded: https://hub/me/names/commit/1" in capsys.readouterr().out
    assert calls[0] == ("me/names", {"exist_ok": True})
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= calls[1][1]["names"]
    calls.clear()
    with pytest.raises(tasks.errors.InputError, match=r"me/refused failed \(403 Forbidden\)"):
        upload.push(Path("hub"), "me/refused")
    monkeypatch.setattr(upload, "reachable", lambda address: False)
    with pytest.raises(tasks.errors.InputError, match="cannot be reached; the export is in hub"):
        upload.push(Path("hub"), "me/names")


def test_wrong_arguments_are_one_line(run: Run, capsys) -> None:
    ckpt = ("--ckpt", str(run("vision")))
    assert "--push uploads --format=hf, not onnx" in refused(capsys, *ckpt, "--push", "me/x")
    message = refused(capsys, *ckpt, "--format", "hf", "--push", "x")
    assert "--push='x' is no repository; give OWNER/NAME" in message
    Path("own").mkdir()
    Path("own/notes.txt").write_text("mine")
    message = refused(capsys, *ckpt, "--out", "own")
    assert "OUT=own holds other files (notes.txt); give a new folder" in message
    assert "own/notes.txt is a file" in refused(capsys, *ckpt, "--out", "own/notes.txt")
    assert "CKPT is missing" in refused(capsys, "--format", "hf")
    bad = refused(capsys, *ckpt, "--input", "own/notes.txt")
    assert "input own/notes.txt: it is no image" in bad
    Path("own/notes.txt").write_bytes(b"caf\xe9\n")
    nlp = ("--ckpt", str(run("nlp")), "--input", "own/notes.txt")
    assert "input own/notes.txt:1: it is not UTF-8" in refused(capsys, *nlp)
    Path("own/notes.txt").write_text("\n")
    assert "INPUT=own/notes.txt: there is no input in it" in refused(capsys, *nlp)
    assert [one.name for one in Path().iterdir()] == ["own"]


def test_without_its_data_an_export_is_checked_on_other_inputs(run: Run, capsys) -> None:
    checkpoint = torch.load(run("vision") / "best.ckpt", weights_only=True)
    checkpoint["run"]["config"]["data"]["source"] = "/gone/data"
    torch.save(checkpoint, "moved.ckpt")
    main(["--ckpt", "moved.ckpt"])
    assert "checked on random inputs" in capsys.readouterr().out
    # Data that have changed since the training are other data.
    changed = torch.load(run("vision") / "best.ckpt", weights_only=True)
    changed["VisionData"]["shape"] = [1, 9, 9]
    torch.save(changed, "changed.ckpt")
    main(["--ckpt", "changed.ckpt"])
    assert "checked on random inputs" in capsys.readouterr().out
    new_inputs()
    shutil.copy("photos/seven.jpg", "other.jpg")
    # `make export INPUT="photos other.jpg"` gives one argument.
    for given in (["photos other.jpg"], ["photos/*.jpg", "--input", "other.jpg"]):
        main(["--ckpt", "moved.ckpt", "--input", *given])
        assert "checked on 2 given inputs" in capsys.readouterr().out


def test_random_inputs_of_own_data_have_their_shape() -> None:
    data = SimpleNamespace(shape=(0, 3), dtype=torch.float32, padding=-1)
    task = SimpleNamespace(hparams={"spec": None})
    own: Any = SimpleNamespace(kind="own", data=data, task=task)
    batch = random_inputs(own)
    assert batch.inputs.shape == (32, 64, 3)
    assert batch.lengths is not None
    padded = torch.arange(64) >= batch.lengths.unsqueeze(1)
    assert ((batch.inputs == -1).all(dim=2) == padded).all()
    assert padded.any()
    data.shape = (5,)
    assert random_inputs(own).inputs.shape == (32, 5)


OWN_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, spec, reg):
        super().__init__()
        self.head = nn.Linear(8 * 8, len(spec.classes))

    def forward(self, images):
        x = images.float().flatten(1) / 255
        {line}
        return self.head(x)
"""


def test_own_code_exports_or_is_refused_with_the_reason(train, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    shutil.copytree(EXAMPLE, "own_task")
    own = "own_task/task.py:TableTask"
    train("--task", own, "--reg", "both", "--trainer.max_epochs=1")
    assert "names code to import" in refused(capsys, "--ckpt", "run", "--out", "table")
    main(["--ckpt", "run", "--out", "table", "--trust", own])
    assert "checked on validation examples of builtin" in capsys.readouterr().out
    # The columns of a table are no length.
    assert "and lengths" not in Path("table/README.md").read_text()
    session = onnx_model.OnnxModel(Path("table/model.onnx"))
    rows = torch.rand(3, 30)
    wanted = tasks.load("run", trusted=(own,)).task(rows)
    torch.testing.assert_close(session(rows), wanted, rtol=1e-4, atol=1e-4)
    for name, line in (("plain", ""), ("python", "x = x if x.sum().item() > 0 else -x")):
        Path(f"{name}.py").write_text(OWN_MODEL.format(line=line))
        arch = f"{name}.py:Net"
        train("--task", "vision", f"--model.arch={arch}", "--trainer.max_epochs=1", "--reg", "none")
        command = ("--ckpt", "run", "--trust", arch)
        if name == "plain":
            main([*command])
        else:
            message = refused(capsys, *command, "--out", "no")
            assert f"model.arch={arch} cannot be exported as a graph (" in message
            assert not Path("no").exists()
            main([*command, "--format", "safetensors"])
