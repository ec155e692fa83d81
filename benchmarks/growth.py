"""Cost against values, batches, ranks, data set size and the runs of a study."""

import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from torch import distributed, multiprocessing, nn

from benchmarks.data import BATCH, images, vision_batches
from benchmarks.layers import Multiply, both_ways
from benchmarks.measure import seconds
from regain import Dropout, SyncBatchNorm
from study.gain_table import gain_tables
from study.plan import load_study
from study.results import collect
from study.verdict import verdict

ROUNDS = 7
EXAMPLE = Path(__file__).parent.parent / "results" / "studies" / "vision-builtin"


@dataclass
class Curve:
    """A panel of the figure: y over x, one line per method."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, line: str, x: float, y: float) -> None:
        """Add a point."""
        self.lines.setdefault(line, []).append((x, y))


def median_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median time of several calls, after a warmup call."""
    work()
    return statistics.median(seconds(work) for _ in range(rounds))


def over_values() -> Curve:
    """Dropout from 10^4 to 10^8 values, forward and backward."""
    curve = Curve("Dropout, forward and backward", "values", "nanoseconds per value")
    for exponent in range(4, 9):
        x = torch.randn(10**exponent, requires_grad=True)
        for name, layer in (
            ("nn.Dropout", nn.Dropout(0.1)),
            ("regain.Dropout", Dropout(0.1)),
            ("x * 1.25", Multiply()),
        ):
            # A call takes a second or more, so three rounds are enough.
            rounds = 3 if exponent == 8 else ROUNDS
            once = median_seconds(both_ways(layer, x), rounds)
            curve.add(name, 10**exponent, 1e9 * once / 10**exponent)
    return curve


def over_batches() -> Curve:
    """Batch norm over the batch size, in one process."""
    curve = Curve("Batch norm, 64x16x16 maps, one process", "batch", "microseconds per example")
    for batch in (2, 8, 32, 128, 512):
        x = torch.randn(batch, 64, 16, 16, requires_grad=True)
        for name, norm in (
            ("nn.BatchNorm2d", nn.BatchNorm2d(64)),
            ("SyncBatchNorm", SyncBatchNorm(64)),
        ):
            curve.add(name, batch, 1e6 * median_seconds(both_ways(norm, x)) / batch)
    return curve


def _rank(rank: int, world: int, port: int, file: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    x = torch.randn(64 // world, 64, 16, 16, requires_grad=True)
    found = [median_seconds(both_ways(kind(64), x)) for kind in (nn.BatchNorm2d, SyncBatchNorm)]
    if rank == 0:
        Path(file).write_text(yaml.safe_dump(found))
    distributed.destroy_process_group()


def over_ranks() -> Curve:
    """Batch norm of a batch of 64 over the number of processes that divide it."""
    cores = os.cpu_count()
    curve = Curve(f"Batch norm, 64x64x16x16, {cores} cores", "processes", "milliseconds")
    for world in (1, 2, 4):
        with socket.socket() as free, tempfile.NamedTemporaryFile(suffix=".yaml") as file:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            multiprocessing.spawn(_rank, (world, port, file.name), nprocs=world)
            alone, together = yaml.safe_load(Path(file.name).read_text())
        curve.add("nn.BatchNorm2d, per process", world, 1000 * alone)
        curve.add("SyncBatchNorm, synchronized", world, 1000 * together)
    return curve


def over_examples() -> Curve:
    """Image batches over the data set size, from memory and from a memory map."""
    curve = Curve(
        "Batches of 32x32 images, augmented", "images in the data set", "images per second"
    )
    with tempfile.TemporaryDirectory() as folder:
        for count in (1_000, 10_000, 100_000):
            split = images(count)
            file = Path(folder) / "values.bin"
            split.values.numpy().tofile(file)
            mapped = torch.from_file(
                str(file), shared=False, size=split.values.numel(), dtype=torch.uint8
            ).view(split.values.shape)
            for name, one in (
                ("in memory", split),
                ("memory-mapped", replace(split, values=mapped)),
            ):
                # At most 50 batches for every size.
                part = one.subset(torch.randperm(count)[: 50 * BATCH])
                make = vision_batches(part)
                once = median_seconds(lambda make=make: list(make()), 3)
                curve.add(name, count, len(part) / once)
    return curve


def over_runs() -> Curve:
    """The gain table of a study over the number of its runs."""
    curve = Curve("Gain table of a study", "runs", "seconds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / EXAMPLE.name
        for seeds in (3, 10, 30, 100):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            plan = yaml.safe_load((EXAMPLE / "study.yaml").read_text())
            plan["seeds"] = list(range(seeds))
            (folder / "study.yaml").write_text(yaml.safe_dump(plan))
            study = load_study(folder)
            for arm in study.arms():
                for seed in study.seeds:
                    to = study.run_folder(arm, seed)
                    to.mkdir(parents=True)
                    # Copies of three runs: only the number and size of the files matter.
                    old = load_study(EXAMPLE).run_folder(arm, seed % 3)
                    shutil.copy(old / "metrics.json", to)
            begin = time.perf_counter()
            verdict(gain_tables(collect(study))[0])
            curve.add(
                "reading and comparing",
                len(list(study.arms())) * seeds,
                time.perf_counter() - begin,
            )
    return curve


def growth() -> list[Curve]:
    """Measure all curves."""
    return [over_values(), over_batches(), over_ranks(), over_examples(), over_runs()]
