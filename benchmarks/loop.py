"""A whole run against a hand-written training loop with the same layers."""

import contextlib
import copy
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import datasets
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Row, row
from regain import ImageAugmentation, Regularization
from tasks.data import Batches
from tasks.train import parse, train
from tasks.training import TrainingRegularization
from tasks.vision.data import VisionData
from tasks.vision.models import MODELS

TRAIN, TEST = 5_000, 1_000
RUNS = 7
LR = 0.003
REG = Regularization(normalization="batch", dropout=0.1, head_dropout=0.3)
TRAINING = TrainingRegularization(weight_decay=0.01)
AUGMENT = ImageAugmentation(crop=0.125, flip=0.5)


def write_pictures(folder: Path) -> None:
    """Write a data set of noise: 32 x 32 pixels in colour, ten classes."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
        columns = {"image": list(pixels.numpy()), "label": [index % 10 for index in range(count)]}
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=[str(number) for number in range(10)]),
            }
        )
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(str(folder / f"{split}.parquet"))


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Evaluate as in a hand-written loop."""
    model.eval()
    hits = 0
    with torch.no_grad():
        for batch in batches:
            hits += int((model(batch.inputs).argmax(1) == batch.labels).sum())
    return hits / len(batches.examples)


def by_hand(data: VisionData, arch: str, epochs: int, lr: float) -> tuple[float, float]:
    """Train, validate each epoch, keep the best weights and test them by a hand-written loop.

    Returns:
        Seconds in total, and of the training without validation.
    """
    begin, training = time.perf_counter(), 0.0
    torch.manual_seed(0)
    model = MODELS.find(arch)(data.spec(), REG).to(memory_format=torch.channels_last)
    batches = data.train_dataloader()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=TRAINING.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * len(batches))
    best, kept = -1.0, model.state_dict()
    for epoch in range(epochs):
        since = time.perf_counter()
        model.train()
        batches.set_epoch(epoch)
        total = 0.0
        for batch in batches:
            inputs, _ = AUGMENT(batch.inputs, batch.labels)
            loss = F.cross_entropy(model(inputs), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        training += time.perf_counter() - since
        found = accuracy(model, data.val_dataloader()[0])
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    accuracy(model, data.test_dataloader())
    return time.perf_counter() - begin, training


def whole_run(source: Path, caches: Path, arch: str, epochs: int, lr: float) -> tuple[float, float]:
    """Do the same as a regain run, with W&B offline, all metrics and checkpoints."""
    begin = time.perf_counter()
    folder = caches / "run"
    shutil.rmtree(folder, ignore_errors=True)
    given = {
        "data.cache_dir": caches,
        "model.arch": arch,
        "model.reg.dropout": REG.dropout,
        "model.reg.head_dropout": REG.head_dropout,
        "model.training.weight_decay": TRAINING.weight_decay,
        "model.augment.crop": AUGMENT.crop,
        "model.augment.flip": AUGMENT.flip,
        "model.optim.lr": lr,
        "trainer.max_epochs": epochs,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        train(
            *parse(
                [
                    *("--task", "vision", "--reg", "batchnorm", "--data", str(source)),
                    *("--run_dir", str(folder)),
                    *(f"--{key}={value}" for key, value in given.items()),
                ]
            )
        )
    passed = time.perf_counter() - begin
    return passed, json.loads((folder / "metrics.json").read_text())["seconds"]["train"]


def loop() -> list[Row]:
    """Whole runs: a convolutional network and a perceptron."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, caches = Path(folder) / "pictures", Path(folder) / "caches"
        source.mkdir()
        write_pictures(source)
        data = VisionData(source=str(source), cache_dir=str(caches))
        data.setup()
        for arch, epochs, aim in (("cnn", 1, 1.03), ("mlp", 10, 1.3)):
            pairs = [
                (whole_run(source, caches, arch, epochs, LR), by_hand(data, arch, epochs, LR))
                for _ in range(RUNS + 1)
            ][1:]
            steps = epochs * len(data.train_dataloader())
            for index, what, note in (
                (
                    0,
                    f"a run of {steps} steps",
                    "with validation, checkpoints and test; start and end take 0.7 s",
                ),
                (1, f"its {steps} training steps", "without validation"),
            ):
                ours, theirs = ([pair[who][index] for pair in pairs] for who in (0, 1))
                what += f", {arch}, images of 32x32, batch {data.batch_size}"
                rows.append(row(what, "a hand-written loop", ours, theirs, aim, note))
    return rows
