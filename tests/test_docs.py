"""What the pages say runs: their code, their lines, their links."""

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from study import run, sweep
from study.search_space import read_space
from tasks import demo, export, predict
from tasks.nlp.models import MODELS as TEXT_MODELS
from tasks.run.presets import config_stack
from tasks.speech.models import MODELS as SPEECH_MODELS
from tasks.train import parse as parse_run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = (
    "results.md",
    "evidence.md",
    "benchmarks.md",
    "advised.md",
    "published.md",
    *("regimes.md", "standard.md"),
)
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
STEPS = [
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--data.batch_size=8"),
    *("--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"),
]
SMALL = {
    "vision": ["--model.width=8"],
    "speech": ["--model.width=8"],
    "nlp": ["--model.width=16", "--data.vocabulary=200"],
}


def blocks(language):
    """All code of a language on all pages, named by page and place."""
    for page in PAGES:
        for place, (kind, code) in enumerate(BLOCK.findall(page.read_text())):
            if kind == language:
                yield pytest.param(code, id=f"{page.name}-{place}")


# Others need a trained checkpoint: the README's second one, and those of docs/use.md below.
# tests/tasks/test_export.py runs those of an exported model.
LOADING = ("load_from_chec", "tasks.load(", "onnxruntime")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "code", [b for b in blocks("python") if not any(word in b.values[0] for word in LOADING)]
)
def test_code_runs(code):
    exec(compile(code, "page", "exec"), {})


def options():
    """Every line of options that a page has in a table or in a text, once, with its first page."""
    seen = set()
    for page in PAGES:
        for value in re.findall(r"`(--(?:model|trainer|data)\.[^`]+)`", page.read_text()):
            # A whole line, and not the beginning of one.
            whole = "=" in value and not value.endswith("=") and "..." not in value
            # A part of a measured command, with the rest of it on the page.
            whole = whole and "--no_test" not in value
            if whole and value not in seen:
                seen.add(value)
                yield pytest.param(value, id=f"{page.name} {value}")


# What a line is for, where it is not for the default model of vision.
FOR_TEXTS = (
    "word_dropout",
    "embedding_dropout",
    "attention_",
    "word_swap",
    "locked",
    "weight_drop",
)
FOR_CLIPS = ("time_shift",)
# What the page around a line says that it needs.
NEEDS = {
    "--model.reg.drop_path=0.1": ["--model.arch=resnet", "--model.depth=9"],
    "--model.reg.attention_dropout=0.1": ["--model.arch=transformer"],
    "--model.reg.attention_head_dropout=0.1": ["--model.arch=transformer"],
    "--model.arch=resnet": ["--model.depth=9"],
}
# Compiling takes minutes on a CPU; tests/tasks/test_computing.py builds a task with compile=True.
NOT_TRAINED = ("--model.compile=true",)


def task_of(line):
    """The task whose models a line is for."""
    arch = re.search(r"--model\.arch=(\w+)", line)
    if arch and arch[1] in TEXT_MODELS.names():
        return "nlp"
    if arch and arch[1] in SPEECH_MODELS.names():
        return "speech"
    if any(word in line for word in FOR_TEXTS):
        return "nlp"
    return "speech" if any(word in line for word in FOR_CLIPS) else "vision"


@pytest.fixture(scope="module")
def folders():
    """Data that the tests of this file share, so that it is read once."""
    return {}


@pytest.fixture
def data(folders, small_data) -> Callable[[str], str]:
    def of(task):
        if task not in folders:
            folders[task] = small_data(task)
        return str(folders[task])

    return of


def recorded():
    return json.loads(Path("run/metrics.json").read_text())


@pytest.mark.parametrize("line", [one for one in options() if one.values[0] not in NOT_TRAINED])
def test_a_line_trains_a_model_that_it_is_for(line, train, data):
    task = task_of(line)
    needed = next((extra for part, extra in NEEDS.items() if line.startswith(part)), [])
    needed = [one for one in needed if one.partition("=")[0] not in line] + SMALL[task]
    train("--task", task, "--data", data(task), *needed, *STEPS, *shlex.split(line))
    result = recorded()
    # A tenth of the data is one batch, and two batches are accumulated to one step.
    steps = 1 if "train_fraction" in line or "accumulate" in line else 2
    epochs = re.search(r"--trainer\.max_epochs=(\d+)", line)
    assert result["steps"] == steps * (int(epochs[1]) if epochs else 1)
    for option in shlex.split(line):
        name, _, text = option.removeprefix("--").partition("=")
        found = result["config"]
        for part in name.removesuffix("+").split("."):
            found = found[part]
        if name.endswith("+"):
            assert text in [callback["class_path"] for callback in found]
        else:
            assert found == yaml.safe_load(text)


def make_lines():
    """Every line of `make` for runs and studies that a page has, in a text, table or block."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        if page.name in MEASURED:
            continue  # Commands of recorded runs, most of them on data that is not here.
        if page.name == "extend.md":
            continue  # Its lines need its files, and are run in tests/test_extend.py.
        targets = "train|predict|demo|study|sweep|report|dashboard"
        for line in re.findall(rf"(?:^|`)(make (?:{targets})\b[^`#\n]*)", text, re.M):
            # Not the mere name of a target.
            if "..." not in line and ("=" in line or "dashboard" in line):
                found.setdefault(line.strip(), page.name)
    return [pytest.param(line, id=f"{name} {line}") for line, name in found.items()]


def command_of(line):
    """The module that a line of `make` starts, and its arguments."""
    words = ["make", "--dry-run", "--no-print-directory", "-C", ROOT, *shlex.split(line)[1:]]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    [command] = [part for part in shown.replace("\\\n", " ").splitlines() if " -m " in part]
    _, _, module, *arguments = shlex.split(command)
    return module, arguments


@pytest.mark.parametrize("line", make_lines())
def test_a_line_of_make_is_taken(line):
    module, arguments = command_of(line)
    # The training itself is that of the lines above; here each word has its place.
    given = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    extra = shlex.split(given.pop("ARGS", ""))
    if module == "tasks.train":
        options, further = parse_run(arguments)
        assert config_stack(options.task, options.reg, options.data)
    elif module == "study.run":
        options, further = run.parse(arguments)
        # A file that a search has written stands for itself.
        options.variants = " ".join(one for one in options.variants.split() if "/" not in one)
        # So do the files that an advice has tuned.
        untuned = argparse.Namespace(**vars(options) | {"tuned": False})
        assert run.study_from_options(untuned, further).seeds
    elif module == "study.sweep":
        options, further = sweep.parse(arguments)
        assert read_space(ROOT / options.space).parameters
    elif module == "tasks.predict":
        # It is run below.
        options, further = predict.parse(arguments), extra
    elif module == "tasks.demo":
        # It is run in tests/tasks/test_demo.py.
        options, further = demo.parse(arguments), extra
    else:
        assert module in ("study.report", "study.dashboard")
        options, further = argparse.Namespace(), []
    # What ARGS holds is for the command itself, or for the runs that it starts.
    own = [
        word
        for name in ("axis", "launcher_option")
        for value in getattr(options, name, [])
        for word in (f"--{name}", value)
    ]
    own += ["--tuned"] * getattr(options, "tuned", False)
    assert own + further == extra
    # A variable that the line sets is what the command gets.
    pairs = list(pairwise(arguments))
    for name, value in given.items():
        # A second checkpoint is one more value of the same option.
        assert (f"--{name.lower().removesuffix('2')}", value) in pairs, name


@pytest.fixture(scope="module")
def runs():
    """The runs that the commands of docs/use.md predict with; each is trained once."""
    return {}


@pytest.fixture
def use(runs, data, train, tmp_path_factory, monkeypatch):
    """A folder with the runs and the files that docs/use.md names."""
    for task in SMALL:
        if task not in runs:
            source, folder = data(task), tmp_path_factory.mktemp(task)
            with monkeypatch.context() as there:
                there.chdir(folder)
                train("--task", task, "--data", source, *SMALL[task], *STEPS)
            runs[task] = folder / "run"
        folder = Path("runs") / f"{task}-builtin-both-s0"
        folder.mkdir(parents=True)
        (folder / "20260101-000000-000000").symlink_to(runs[task])
    Path("photos").mkdir()
    Image.new("RGB", (40, 30), "red").save("photos/seven.jpg")
    Image.new("L", (9, 9)).save("photos/one.png")
    Path("recordings").mkdir()
    tone = np.sin(np.arange(44_100) / 9)
    soundfile.write("recordings/yes.mp3", np.stack([tone, tone], 1), 44_100)
    Path("names.txt").write_text("Jürgen Müller\nBjørn\n", encoding="utf-8")
    Path("names.csv").write_text("name,language\nJürgen,a\nBjørn,b\n", encoding="utf-8")


def use_lines():
    """Every line of `make predict` on all pages, as a shell line with what comes before it."""
    lines = dict.fromkeys(
        line.strip()
        for page in PAGES
        for line in re.findall(
            r"(?:^|`)((?:ls [^`\n]*\| )?make predict [^`#\n]*)", page.read_text(), re.M
        )
    )
    return [line for line in lines if "..." not in line and "=" in line]


@pytest.mark.parametrize("line", use_lines())
def test_a_line_predicts(line, use, capfd):
    if "|" in line:
        line = line.replace("make ", f"make -f '{ROOT}/Makefile' RUN='{sys.executable}' ")
        subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, timeout=300)
    else:
        module, arguments = command_of(line)
        assert module == "tasks.predict"
        predict.main(arguments)
    written = capfd.readouterr()
    assert re.search(r"^predicted [12] of [12] inputs", written.err, re.M), written.err
    found = re.search(r"OUT=(\S+)", line)
    if found:
        assert Path(found[1]).stat().st_size


def export_lines():
    """Every line of `make export` on all pages."""
    return sorted(
        {
            line.strip()
            for page in PAGES
            for line in re.findall(r"(?:^|`)(make export [^`#\n]*)", page.read_text(), re.M)
        }
    )


@pytest.mark.parametrize("line", export_lines())
def test_a_line_of_export_is_taken(line):
    module, arguments = command_of(line)
    assert module == "tasks.export"
    options = export.parse(arguments)
    given = dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
    assert options.ckpt == given["CKPT"]
    assert options.format == given.get("FORMAT", "onnx")
    assert options.out == (Path(given["OUT"]) if "OUT" in given else None)


@pytest.mark.parametrize("code", [b for b in blocks("python") if "tasks.load(" in b.values[0]])
def test_code_predicts(code, use):
    exec(compile(code, "page", "exec"), {})


def test_scripts_of_the_docs_find_the_project(monkeypatch):
    # `tasks` and `study` are not installed: a script finds them through PYTHONPATH.
    scripts = [*ROOT.glob("docs/*.py"), *ROOT.glob("docs/figures/*.py")]
    needing = [
        script.name
        for script in scripts
        if re.search(r"^from (?:tasks|study)\b", script.read_text(), re.M)
    ]
    lines = [
        line
        for file in (*PAGES, *scripts)
        for line in re.findall(r"[^`\n]*\bpython docs/[^`\n]*", file.read_text())
        if any(f"/{name} " in f"{line} " for name in needing)
    ]
    assert lines
    assert [line for line in lines if "PYTHONPATH=. " not in line] == []
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = ["make", "--silent", "-C", ROOT, "docs", "RUN=printenv PYTHONPATH; :"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {*said.splitlines()} == {str(ROOT)}


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(text.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(BLOCK, "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


WRITTEN = ["evidence", "advised", "published", "regimes", "standard", "choose", "defaults"]


@pytest.mark.parametrize(
    ("script", "page"),
    [
        *(("front", "README.md"), ("runs", "docs/results.md")),
        *((name, f"docs/{name}.md") for name in WRITTEN),
    ],
)
def test_generated_pages_are_those_of_the_results(script, page, tmp_path, monkeypatch):
    """A number that was edited by hand, or results without a new page, are found."""
    # The results name presets by their paths.
    monkeypatch.chdir(ROOT)
    # Scripts of docs import one another.
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location(f"docs_{script}", ROOT / "docs" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    expected = (ROOT / page).read_text()
    # Of a page that is written in part, the rest is there.
    block = importlib.import_module("blocks").BLOCK
    written = block.sub(r"<!-- \g<name> -->\n<!-- end -->", expected)
    if written != expected:
        (tmp_path / page).write_text(written)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    module.main()
    made = (tmp_path / page).read_text()
    assert made == expected, f"write {page} by make docs"
