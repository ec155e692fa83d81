"""The help of the command line lists all registered names, and documents all keys."""

import subprocess
import sys

import pytest

from regain.dropoutkinds import DROPOUT_KINDS
from regain.normkinds import NORM_KINDS
from tasks import nlp, speech, vision
from tasks.lookup import task_names
from tasks.run.presets import preset_names
from tasks.train import main

TASKS = {"vision": vision, "speech": speech, "nlp": nlp}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert not stopped.value.code
    return " ".join(capsys.readouterr().out.split())


def listed(text: str, what: str) -> list[str]:
    """The names in the list with the title `what`."""
    names = text.partition(f" {what}: ")[2].split(", ")
    end = next((index for index, name in enumerate(names) if " " in name), len(names))
    return [name.split()[0] for name in names[: end + 1]]


def test_what_is_registered_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DROPOUT_KINDS._entries, "kind_of_a_test", lambda site: None)
    monkeypatch.setitem(vision.Task.models._entries, "net_of_a_test", lambda spec, reg: None)
    text = printed(capsys)
    assert listed(text, "tasks") == task_names() == sorted(TASKS)
    assert listed(text, "presets (--reg)") == preset_names("reg")
    assert listed(text, "dropout kinds (--model.reg.dropout_kind)") == DROPOUT_KINDS.names()
    assert listed(text, "norms (--model.reg.normalization)") == ["none", *NORM_KINDS.names()]
    for name, package in TASKS.items():
        assert package.Task.models is not None
        assert listed(text, f"models of {name} (--model.arch)") == package.Task.models.names()
        assert listed(text, f"data of {name}") == package.Data.sources.names()
    assert "kind_of_a_test" in text
    assert "net_of_a_test" in text


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("vision", ["--data.image_size", "--model.test_views", "--model.augment.mixup"]),
        ("speech", ["--data.sample_rate", "--model.arch"]),
        ("nlp", ["--data.vocabulary", "--model.pretrained"]),
    ],
)
def test_a_task_shows_its_keys(
    task: str, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "--task", task)
    for key in (*keys, "--data.batch_size", "--model.optim.lr", "--trainer.max_epochs"):
        assert f" {key} " in text
    assert "--model.spec" not in text
    # The docstring of a field.
    assert "Dropout rate in the hidden layers, in [0, 1)" in text
    assert "Factor of the sum of absolute weights in the loss" in text


def test_a_missing_task_is_named_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--reg", "none"])
    assert stopped.value.code == 2
    assert "--task is missing: nlp, speech, vision" in capsys.readouterr().err


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; from tasks.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = 'transformers', 'torchvision', 'datasets', 'sklearn', 'pandas'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
