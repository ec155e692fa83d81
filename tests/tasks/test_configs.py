"""Every file in `configs/` is parsed and run by the real command line."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tasks.run.presets import CONFIGS, SECTIONS, config_stack

Train = Callable[..., None]
Data = Callable[..., Path]

SMALLER = {
    "vision": ["--model.width=4"],
    "speech": ["--model.width=8"],
    "nlp": ["--data.vocabulary=200"],
}
FEW_STEPS = [
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--data.batch_size=8"),
    *("--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"),
]


# For one task each, stacked over all else.
RECIPES = [(task, file) for task in SECTIONS for file in sorted((CONFIGS / task).glob("*.yaml"))]

# What begins with the command that it is for.
COMMANDS = [
    file
    for file in sorted(CONFIGS.rglob("*.yaml"))
    # Those of studies and searches begin with where their values are from.
    if not {"study", "sweep", "advise"} & set(file.parts)
    and file.name not in ("base.yaml", "builtin.yaml")
]


def sections(folder: str) -> list[tuple[str, str]]:
    """List (file, task) of all presets in a folder, and in the folders within it."""
    return [
        (str(file.relative_to(CONFIGS / folder).with_suffix("")), task)
        for file in sorted((CONFIGS / folder).rglob("*.yaml"))
        for task in yaml.safe_load(file.read_text())
    ]


def resolved() -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]]
    loaded = json.loads(Path("run/metrics.json").read_text())["config"]
    return loaded


@pytest.mark.parametrize(
    ("preset", "task", "folder"),
    [(*one, folder) for folder in ("reg", "study") for one in sections(folder)],
)
def test_a_regularization_preset_runs(
    preset: str, task: str, folder: str, train: Train, small_data: Data
) -> None:
    file = CONFIGS / folder / f"{preset}.yaml"
    reg = preset if folder == "reg" else str(file)
    data = str(small_data(task, train=24, test=6))
    train("--task", task, "--data", data, "--reg", reg, *SMALLER[task], *FEW_STEPS)
    wanted = yaml.safe_load(file.read_text())[task]["model"]
    found = resolved()["model"]
    for part in ("reg", "training", "augment"):
        for key, value in wanted.pop(part, {}).items():
            assert found[part][key] == value
    # The test's own width is smaller.
    wanted.pop("width", None)
    assert {part: found[part] for part in wanted} == wanted


@pytest.mark.parametrize("preset", ["none", "dropout", "batchnorm", "both", "weight_decay"])
def test_the_presets_of_one_regularizer_hold_no_other(preset: str) -> None:
    sections = yaml.safe_load((CONFIGS / "reg" / f"{preset}.yaml").read_text())
    dropout = {f"reg.{key}" for key in ("dropout", "dropout_kind", "input_dropout", "head_dropout")}
    needed, allowed = {
        "none": (set(), set()),
        "dropout": ({"reg.head_dropout"}, dropout),
        "batchnorm": ({"reg.normalization"}, {"reg.normalization"}),
        "both": ({"reg.normalization", "reg.head_dropout"}, {"reg.normalization"} | dropout),
        "weight_decay": ({"training.weight_decay"}, {"training.weight_decay"}),
    }[preset]
    assert set(sections) == set(SECTIONS)
    for section in sections.values():
        assert set(section) == {"model"}
        keys = {f"{part}.{key}" for part, keys in section["model"].items() for key in keys}
        assert needed <= keys <= allowed


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_the_first_line_is_a_command_that_takes_the_file(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    command, _, _ = first.removeprefix("# ").partition(": ")
    words = shlex.split(command)
    assert words[:2] == ["make", "train"], first
    given = dict(word.split("=", 1) for word in words[2:])
    makefile = (CONFIGS.parent / "Makefile").read_text()
    assert all(re.search(rf"^{name} \?=", makefile, re.MULTILINE) for name in given)
    # One task, with values for it in the file.
    stack = config_stack(given["TASK"], given.get("REG", "both"), given.get("DATA", "builtin"))
    if file.parent.name in ("reg", "data"):
        section = yaml.safe_load(file.read_text())[given["TASK"]]
        assert given[file.parent.name.upper()] == file.stem
        assert section in map(yaml.safe_load, stack)
    elif "ARGS" in given:
        assert f"--config {file.relative_to(CONFIGS.parent)}" in given["ARGS"]
    else:
        # The sections for models without norm layers are taken only for such models.
        values = yaml.safe_load(file.read_text())
        values.pop("without_norm", None)
        assert values in map(yaml.safe_load, stack)


@pytest.mark.parametrize(("preset", "task"), sections("data"))
def test_a_data_preset_runs(
    preset: str, task: str, train: Train, small_data: Data, caches: Path
) -> None:
    # A path whose last part is the preset's name takes the preset; the data is small.
    data = "builtin" if preset == "builtin" else str(small_data(task, preset, train=24, test=6))
    train("--task", task, "--data", data, *SMALLER[task], *FEW_STEPS)
    section = yaml.safe_load((CONFIGS / "data" / f"{preset}.yaml").read_text())[task]
    for key, value in section.get("model", {}).get("optim", {}).items():
        assert resolved()["model"]["optim"][key] == value


def test_another_architecture_on_cifar10_has_its_own_depth(
    train: Train, small_data: Data, caches: Path
) -> None:
    data = str(small_data("vision", "cifar10", train=24, test=6))
    train("--task", "vision", "--data", data, "--model.arch=cnn", *SMALLER["vision"], *FEW_STEPS)
    # Not the nine layers of the preset's ResNet.
    assert resolved()["model"]["depth"] is None


@pytest.mark.parametrize(
    ("task", "file"), RECIPES, ids=lambda part: part if isinstance(part, str) else part.stem
)
def test_a_recipe_runs(task: str, file: Path, train: Train, small_data: Data) -> None:
    data = str(small_data(task, train=24, test=6))
    smaller = ["--model.width=4"] if task == "vision" else SMALLER[task]
    train("--task", task, "--data", data, "--config", str(file), *smaller, *FEW_STEPS)
    for part, wanted in yaml.safe_load(file.read_text()).get("model", {}).items():
        found = resolved()["model"][part]
        if isinstance(wanted, dict):
            assert found | wanted == found
        elif part != "width":
            assert found == wanted


def test_the_configuration_for_a_gpu_runs(train: Train) -> None:
    file = CONFIGS / "trainer" / "gpu.yaml"
    wanted = yaml.safe_load(file.read_text())
    # What a compiler does takes minutes here, and has tests of its own.
    train("--task", "vision", "--config", str(file), "--model.compile=false", *FEW_STEPS)
    assert resolved()["trainer"] | wanted["trainer"] == resolved()["trainer"]
    assert wanted["model"] == {"compile": True}


def test_no_configuration_is_left_out() -> None:
    found = {str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")}
    stacked = {"base.yaml", "nlp-pretrained.yaml", *(f"{task}.yaml" for task in SECTIONS)}
    presets = {
        f"{folder}/{name}.yaml"
        for folder in ("reg", "data", "study")
        for name, _ in sections(folder)
    }
    # Spaces of searches have tests of their own.
    spaces = {
        f"{folder}/{file.name}"
        for folder in ("sweep", "advise")
        for file in (CONFIGS / folder).glob("*.yaml")
    }
    recipes = {f"{task}/{file.name}" for task, file in RECIPES} | {"trainer/gpu.yaml"}
    assert found == stacked | presets | spaces | recipes


def test_the_configuration_of_a_pretrained_encoder_runs(
    train: Train, small_data: Data, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    words += [f"##{word}" for word in words[5:]]
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), intermediate_size=16, **size)).save_pretrained(
        tmp_path / "encoder"
    )
    # Over a preset that has a depth for a model from scratch.
    data = str(small_data("nlp", "trec", train=24, test=6))
    train(
        *("--task", "nlp", "--data", data, "--config", str(CONFIGS / "nlp-pretrained.yaml")),
        *(f"--model.pretrained={tmp_path / 'encoder'}", *FEW_STEPS),
    )
    assert resolved()["model"]["arch"] == "transformer"
    assert resolved()["model"]["pretrained"] == str(tmp_path / "encoder")
