"""What the tests share: a place of their own for every file, and small data sets."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from PIL import Image

SLOW = (
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.large_base_example,
    hypothesis.HealthCheck.data_too_large,
)
# The same examples in CI every time, and many of them.
hypothesis.settings.register_profile(
    "ci", max_examples=500, deadline=None, derandomize=True, suppress_health_check=SLOW
)
hypothesis.settings.register_profile(
    "here", max_examples=200, deadline=None, suppress_health_check=SLOW
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

# No test may reach for a network, nor log in with a key that happens to lie on the machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# `tasks` and `study` are not installed: a process that a test starts in a folder of its own finds
# them here.
ROOT = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


# Files of few but slow tests. They start first, so that no worker is alone with one of
# them at the end; `make test` keeps this order.
LONG_FILES = [
    f"test_{name}.py"
    for name in "wandb_failures resume devices dropout_compile demo convert predict".split()
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a folder of its own, with the random state that it found."""
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the layers that a test registers, after it."""
    from regain.dropoutkinds import DROPOUT_KINDS
    from regain.normkinds import NORM_KINDS

    monkeypatch.setattr(DROPOUT_KINDS, "_entries", dict(DROPOUT_KINDS._entries))
    monkeypatch.setattr(NORM_KINDS, "_entries", dict(NORM_KINDS._entries))


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests of a session share, so that builtin data is made once."""
    return tmp_path_factory.mktemp("cache")


def png(pixels: np.ndarray) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """Encode a clip."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@pytest.fixture
def small_data(tmp_path: Path) -> Callable[..., Path]:
    """Write a small data set that a model can learn, as parquet with the splits train and test."""
    import datasets

    def write(task: str, name: str = "small", train: int = 60, test: int = 24) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / name
        for split, count in (("train", train), ("test", test)):
            labels = [row % 3 for row in range(count)]
            if task == "vision":
                images = [
                    (rng.integers(0, 80, (12, 12, 3)) + 80 * label).astype(np.uint8)
                    for label in labels
                ]
                column = {"img": [{"bytes": png(image), "path": None} for image in images]}
                feature = {"img": datasets.Image()}
            elif task == "speech":
                time = np.arange(4000) / 16_000
                clips = [
                    0.5 * np.sin(2 * np.pi * 300 * 3**label * time[: 2500 + 400 * (row % 4)])
                    for row, label in enumerate(labels)
                ]
                column = {"audio": [{"bytes": wav(clip), "path": None} for clip in clips]}
                feature = {"audio": datasets.Audio()}
            else:
                words = [["red", "blue", "green"][label] for label in labels]
                fill = ["one two", "three", "four five six"]
                column = {
                    "text": [f"{word} {fill[row % 3]} {row}" for row, word in enumerate(words)]
                }
                feature = {"text": datasets.Value("string")}
            features = datasets.Features(
                feature | {"label": datasets.ClassLabel(names=["a", "b", "c"])}
            )
            # Written as it lies in a file: to encode audio, `datasets` wants a decoder installed.
            table = pyarrow.Table.from_pydict(
                column | {"label": labels}, schema=features.arrow_schema
            )
            (folder / "data").mkdir(parents=True, exist_ok=True)
            file = folder / "data" / f"{split}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(table, file)
        return folder

    return write


@pytest.fixture
def train(caches: Path) -> Callable[..., None]:
    """Run the command line in this process, for a few small steps."""
    from tasks.train import main

    def run(*arguments: str, logger: bool = False) -> None:
        if not any(argument.startswith("--resume") for argument in arguments):
            # A finished run is not written over.
            for name in ("metrics.json", "validation.json"):
                Path("run", name).unlink(missing_ok=True)
        quiet = [] if logger else ["--trainer.logger=false"]
        main(
            [
                *arguments[:2],
                "--run_dir=run",
                f"--data.cache_dir={caches}",
                "--trainer.accelerator=cpu",
                *quiet,
                *arguments[2:],
            ]
        )

    return run
