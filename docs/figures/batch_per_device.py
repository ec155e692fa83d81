"""Draw test accuracy over the per-device batch, with synchronized batch norm and without.

The data in results/scaling are measured by four processes that train a small CNN:

    PYTHONPATH=. torchrun --nproc-per-node=4 docs/figures/batch_per_device.py --measure

An interrupted measurement continues with the next seed.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

PLACE = Path(__file__).parent
RESULTS = PLACE.parent.parent / "results" / "scaling" / "batch_per_device_cnn.json"
SIZES = (2, 4, 8, 16, 32)
SEEDS = range(5)
EPOCHS = 15


def measure() -> None:
    """Train a model for each batch size and seed, with and without synchronization."""
    import lightning as L
    import torch
    from torch import distributed

    from regain import Regularization
    from tasks.optimization import Optimization
    from tasks.run.devices import DDP
    from tasks.vision import Data, Task

    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {row["seed"] for row in rows}
    for seed in (seed for seed in SEEDS if seed not in done):
        for size in SIZES:
            for sync in (True, False):
                L.seed_everything(seed, verbose=False)
                data = Data(
                    batch_size=size,
                    validation_fraction=0.2,
                    # 640 images: all batches are full.
                    train_fraction=0.8914,
                    allow_flip=False,
                    seed=seed,
                )
                task = Task(
                    data.spec(),
                    depth=2,
                    width=16,
                    reg=Regularization(normalization="batch", sync_bn=sync),
                    optim=Optimization(optimizer="adamw", lr=0.003),
                )
                trainer = L.Trainer(
                    accelerator="cpu",
                    devices=4,
                    strategy=DDP,
                    max_epochs=EPOCHS,
                    check_val_every_n_epoch=EPOCHS,
                    num_sanity_val_steps=0,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                trainer.fit(task, datamodule=data)
                (scores,) = trainer.test(task, datamodule=data, verbose=False)
                row = {"seed": seed, "batch": size, "sync": sync}
                rows.append(row | {name: scores[f"test/{name}"] for name in ("acc", "loss")})
                if distributed.get_rank() == 0:
                    print(rows[-1], flush=True)
        if distributed.get_rank() == 0:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
            RESULTS.write_text(text)
    distributed.destroy_process_group()


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def table(rows: list[dict[str, float]]) -> dict[int, dict[str, tuple[float, float]]]:
    """Return the accuracies and the paired gain, in points, for each batch size."""
    found = {}
    for size in SIZES:
        with_sync, without = (
            [100 * row["acc"] for row in rows if row["batch"] == size and row["sync"] is sync]
            for sync in (True, False)
        )
        gains = [a - b for a, b in zip(with_sync, without, strict=True)]
        parts = {"with": with_sync, "without": without, "gain": gains}
        found[size] = {name: interval(values) for name, values in parts.items()}
    return found


def draw() -> None:
    """Draw the accuracies and print the table of docs/scaling.md."""
    matplotlib.rcParams["svg.hashsalt"] = "regain"
    found = table(json.loads(RESULTS.read_text()))
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, label, colour, shift in (
        ("with", "synchronized", "#2f6f9f", 0.97),
        ("without", "not synchronized", "#c0453b", 1.03),
    ):
        means, halves = zip(*(found[size][name] for size in SIZES), strict=True)
        positions = np.array(SIZES) * shift
        axes.errorbar(positions, means, halves, fmt="o-", capsize=3, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set(xlabel="examples on each of 4 devices", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    for size, parts in found.items():
        cells = (f"{mean:.2f} ± {half:.2f}" for mean, half in parts.values())
        print(f"| {size} | {' | '.join(cells)} |")
    figure.savefig(PLACE / "batch_per_device.svg", metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="train, under torchrun")
    if parser.parse_args().measure:
        measure()
    else:
        draw()
