"""What `tasks.load` opens, and what it refuses: a checkpoint is hostile input."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tasks
from tasks import hub_files
from tasks.errors import InputError
from tasks.predict import main as predict
from tasks.train import main
from tests.file_server import file_server

Data = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "vision": ["--model.arch=mlp", "--model.depth=1", "--model.width=8"],
    "nlp": ["--model.width=8", "--data.vocabulary=100"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the runs that the tests share."""
    return {}


@pytest.fixture
def folder_of(
    folders: dict[str, Path],
    small_data: Data,
    caches: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Train a model of a task once, and return the folder of its run."""

    def of(task: str) -> Path:
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task) / "run"
            main(
                [
                    *("--task", task, "--data", str(small_data(task)), "--reg", "none"),
                    *("--run_dir", str(folders[task]), f"--data.cache_dir={caches}"),
                    *("--trainer.accelerator=cpu", "--trainer.logger=false"),
                    *("--trainer.max_epochs=1", "--data.batch_size=30", *SMALL[task]),
                ]
            )
        return folders[task]

    return of


def test_the_folder_of_a_run_is_its_best_checkpoint(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("vision")
    picture = np.full((12, 12, 3), 90, np.uint8)
    wanted = tasks.load(folder / "best.ckpt")(picture)
    assert tasks.load(str(folder))(picture) == wanted
    assert tasks.load(folder / "last.ckpt")(picture).probabilities == wanted.probabilities


@pytest.fixture
def address(folder_of: Callable[[str], Path]) -> Iterator[str]:
    """Serve the folder of a run over HTTP."""
    with file_server(folder_of("nlp")) as address:
        yield address


def test_a_checkpoint_opens_from_an_address(address: str, folder_of: Callable[[str], Path]) -> None:
    predictor = tasks.load(f"{address}/best.ckpt")
    assert predictor("red one") == tasks.load(folder_of("nlp"))("red one")
    with pytest.raises(InputError, match="cannot be read"):
        tasks.load(f"{address}/missing.ckpt")


def test_what_is_no_checkpoint_is_refused_with_the_fix(folder_of: Callable[[str], Path]) -> None:
    Path("empty").mkdir()
    sharded = Path("sharded/best.ckpt")
    sharded.mkdir(parents=True)
    (sharded / ".metadata").touch()
    Path("text.ckpt").write_text("text")
    for path, reason in (
        ("missing.ckpt", "missing.ckpt does not exist"),
        ("empty", "empty holds no best.ckpt"),
        ("sharded", r"sharded/best\.ckpt is a folder of shards.*consolidate_checkpoint sharded"),
        ("text.ckpt", "text.ckpt is incomplete"),
        ("s3://bucket/best.ckpt", "http"),
    ):
        with pytest.raises(InputError, match=reason):
            tasks.load(path)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a value in nested mappings, or deletes it if it is `...`."""
    *above, name, value = path

    def change(saved: dict[str, Any]) -> None:
        for key in above:
            saved = saved[key]
        if value is ...:
            del saved[name]
        else:
            saved[name] = value

    return change


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return a function that changes the tokenizer of a checkpoint."""

    def write(saved: dict[str, Any]) -> None:
        content = json.loads(saved["TextData"]["tokenizer"])
        change(content)
        saved["TextData"]["tokenizer"] = json.dumps(content)

    return write


HOSTILE = {
    "older": ("vision", put("run", "format", ...), "older than make predict.*train it again"),
    "of another program": ("vision", put("run", ...), "not from make train"),
    "newer": ("vision", put("run", "format", 2), "has format 2, and this version reads 1"),
    "run": ("vision", put("run", [1]), "not from make train"),
    "facts": ("vision", put("run", "facts", 3), "lacks facts"),
    "config": ("vision", put("run", "config", ...), "lacks facts or configuration"),
    "no task": ("vision", put("run", "facts", "task", ...), "does not name its task"),
    "task is a number": ("vision", put("run", "facts", "task", 3), "does not name its task"),
    "unknown task": ("vision", put("run", "facts", "task", "visio"), "did you mean vision"),
    "task of code": (
        "vision",
        put("run", "facts", "task", "planted.py:Task"),
        r'names code to import, task=planted\.py:Task.*trusted=\("planted\.py:Task",\)',
    ),
    "module of code": ("vision", put("run", "facts", "task", "planted:Task"), "code to import"),
    "model of code": (
        "vision",
        put("hyper_parameters", "arch", "planted.py:Task"),
        "names code to import, arch=planted.py:Task",
    ),
    "option of code": (
        "vision",
        put("run", "config", "data", "image_size", "planted.py:Task"),
        "names code to import, image_size=planted.py:Task",
    ),
    "other task": ("vision", put("run", "facts", "task", "nlp"), "is not a checkpoint of TextTask"),
    "no options": ("vision", put("run", "config", "data", ...), "lacks the options or the state"),
    "options": ("vision", put("run", "config", "data", "image_size", "x"), "cannot be restored"),
    "negative size": ("vision", put("run", "config", "data", "image_size", -1), "image_size"),
    "no state": ("vision", put("VisionData", ...), "lacks the options or the state of VisionData"),
    "shape": ("vision", put("VisionData", "shape", [3, 12]), "not that of an image"),
    "large shape": ("vision", put("VisionData", "shape", [3, 10**9, 12]), "not that of an image"),
    "text shape": ("vision", put("VisionData", "shape", "312"), "not a list of sizes"),
    "dtype": ("vision", put("VisionData", "dtype", "load"), "not a type of numbers"),
    "empty state": ("vision", put("VisionData", {}), "VisionData cannot be restored"),
    "classes": ("vision", put("hyper_parameters", "spec", "classes", 3), "VisionTask"),
    "other classes": ("vision", put("hyper_parameters", "spec", "classes", ["a"]), "VisionTask"),
    "class names": ("vision", put("hyper_parameters", "spec", "classes", [1, 2, 3]), "classes"),
    "same classes": ("vision", put("hyper_parameters", "spec", "classes", ["a"] * 3), "classes"),
    "temperature": ("vision", put("calibration", "temperature", 0.0), "temperature above 0"),
    "threshold": ("vision", put("calibration", "threshold", math.nan), "and a threshold"),
    "calibration": ("vision", put("calibration", 3), "is not a temperature"),
    "dropout": ("vision", put("calibration", "mc", {"temperature": -1.0}), "temperature above 0"),
    "mc": ("vision", put("calibration", "mc", "x"), "is not a temperature"),
    "hub": ("vision", put("hub", 3), "hub=3 is not configs of hub models"),
    "no tokenizer": ("nlp", put("TextData", "tokenizer", ...), "tokenizer cannot be read"),
    "tokenizer": ("nlp", put("TextData", "tokenizer", "{}"), "tokenizer cannot be read"),
    "tokenizer is a number": ("nlp", put("TextData", "tokenizer", 3), "tokenizer cannot be read"),
    "tokenizer without words": ("nlp", tokenizer(put("model", "vocab", {})), "TextData"),
    "tokenizer of bytes": ("nlp", put("TextData", "tokenizer", b"\xff"), "TextData"),
    "unknown model": ("nlp", tokenizer(put("model", "type", "x")), "tokenizer cannot be read"),
    "padding": ("nlp", put("TextData", "padding", 10**6), "no id of its tokenizer"),
    "special": ("nlp", put("TextData", "special", "x"), "no id of its tokenizer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    case: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, change, reason = HOSTILE[case]
    Path("planted.py").write_text("import pathlib\npathlib.Path('harm').touch()\nTask = dict\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    saved = torch.load(folder_of(task) / "best.ckpt", weights_only=True)
    change(saved)
    torch.save(saved, "best.ckpt")
    with pytest.raises(InputError, match=reason) as refused:
        tasks.load("best.ckpt")
    assert "\n" not in str(refused.value)
    assert "best.ckpt" in str(refused.value)
    assert len(str(refused.value)) < 320
    assert not Path("harm").exists()
    assert "planted" not in sys.modules


def test_ids_beyond_the_vocabulary_of_the_model_are_refused(
    folder_of: Callable[[str], Path],
) -> None:
    saved = torch.load(folder_of("nlp") / "best.ckpt", weights_only=True)
    tokenizer(put("model", "vocab", "intruder", 10**6))(saved)
    torch.save(saved, "best.ckpt")
    predictor = tasks.load("best.ckpt")
    with pytest.raises(InputError, match=r"ids beyond the vocabulary"):
        predictor(["red", "intruder"])


def test_a_config_of_a_hub_model_names_no_code() -> None:
    saved = {
        "configs": {
            "x": {
                "model_type": "bert",
                "auto_map": {"AutoModel": "evil--net.Net"},
                "attn_implementation": "evil/kernel",
                "_attn_implementation": "evil/kernel",
                "text_config": [{"auto_map": {}, "hidden_size": 3}],
            }
        },
        "preprocessors": {"x": {"size": 3, "auto_map": {}}},
    }
    with hub_files.from_checkpoint(saved):
        files = hub_files.hub_files()
    assert files.configs == {"x": {"model_type": "bert", "text_config": [{"hidden_size": 3}]}}
    assert files.preprocessors == {"x": {"size": 3}}
    assert files.weights_follow


# What a user adds.


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of docs/extend.md in the current folder."""
    import re

    page = (ROOT / "docs" / "extend.md").read_text()
    for name, code in re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", page, re.S | re.M):
        Path(name).write_text(code)


def run_own(caches: Path, *arguments: str) -> None:
    main(
        [
            *("--run_dir=run", f"--data.cache_dir={caches}", "--trainer.accelerator=cpu"),
            *("--trainer.logger=false", "--trainer.max_epochs=1", *arguments),
        ]
    )


def test_an_own_task_predicts_rows_of_numbers_where_it_is_trusted(own: None, caches: Path) -> None:
    name = "my_task.py:WaveTask"
    run_own(caches, "--task", name, "--reg", "dropout")
    with pytest.raises(InputError, match=r'task=my_task\.py:WaveTask.*trusted=\("my_task'):
        tasks.load("run")
    predictor = tasks.load("run", trusted=[name])
    recorded = json.loads(Path("run/metrics.json").read_text())["predictions"]
    data: Any = predictor.task.data_class(cache_dir=str(caches))
    data.setup()
    test = data.splits["test"]
    rows = test.values[test.chosen].numpy()
    predictor.temperature = 1.0
    found = predictor(list(rows))
    assert [predictor.classes.index(one.label) for one in found] == recorded["predicted"]
    assert predictor.kind == "example"
    assert predictor(rows[0].astype(np.float64)).label == found[0].label
    assert predictor(rows[0], mc=3).mutual_information > 0
    for raw, reason in (
        (rows[0, :5], r"its shape is \(5\), not \(64\)"),
        (rows, r"not \(64\)"),
        (3.0, r"its shape is \(\), not \(64\)"),
        ("text", "text|type"),
        ([rows[0], None], "input 1: "),
    ):
        with pytest.raises(InputError, match=reason):
            predictor(raw)
    lines = [json.dumps({"wave": row}) for row in (rows[0].tolist(), [math.nan] * 64, [{}])]
    Path("rows.jsonl").write_text("\n".join(lines))
    predict(["--ckpt", "run", "--trust", name, "--input", "rows.jsonl", "--out", "out.jsonl"])
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["class"] is None for row in written] == [False, True, True]
    assert written[1]["error"] == "the model returns NaN for it; check its numbers"
    assert written[2]["error"] == "column wave: [{}] is not a list of numbers"


@pytest.mark.usefixtures("registered")
def test_an_own_model_and_an_own_layer_predict_where_they_are_trusted(
    own: None, caches: Path, small_data: Data
) -> None:
    model, layer = "my_net.py:small_net", "my_layers.py:UniformDropout"
    run_own(
        caches,
        *("--task", "vision", "--data", str(small_data("vision")), "--reg", "none"),
        *(f"--model.arch={model}", f"--model.reg.dropout_kind={layer}", "--model.reg.dropout=0.1"),
    )
    with pytest.raises(InputError, match=r"arch=my_net\.py:small_net"):
        tasks.load("run", trusted=[layer])
    with pytest.raises(InputError, match=r"dropout_kind=my_layers\.py:UniformDropout"):
        tasks.load("run", trusted=[model])
    predictor = tasks.load("run", trusted=[model, layer])
    assert predictor(np.zeros((5, 5), np.uint8)).label in predictor.classes


def test_own_data_that_encode_whole_sets_say_what_is_missing(own: None, caches: Path) -> None:
    Path("ranked.py").write_text(
        "from my_task import WaveData, WaveTask\n\n\n"
        "class Ranked(WaveData):\n"
        "    def encode(self, stores, training):\n"
        "        for store in stores.values():\n"
        "            store['values'] = store['values'].float()\n\n\n"
        "class RankedTask(WaveTask):\n    data_class = Ranked\n"
    )
    name = "ranked.py:RankedTask"
    run_own(caches, "--task", name, "--reg", "none", "--data", "my_task.py:waves")
    predictor = tasks.load("run", trusted=[name])
    with pytest.raises(InputError, match=r"Ranked defines encode.*define batch\(decoded\) too"):
        predictor(np.zeros(64))
