"""Measure regain against its peers: `python -m benchmarks`, or one: `python -m benchmarks dropout`.

Each benchmark runs in a separate process. Its result is stored in results/benchmarks;
docs/benchmarks.md and its figure are regenerated from there.
"""

import argparse
import dataclasses
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Row

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS.parent / "results" / "benchmarks"
# Module and section title of each benchmark.
BENCHMARKS = {
    "dropout": ("layers", "Dropout layers on the CPU, forward and backward"),
    "mapped": ("layers", "Dropout in a process that returns freed memory at once"),
    "attention": ("layers", "Token, attention and variational dropout on the CPU"),
    "norms": ("layers", "Batch norm on the CPU, forward and backward"),
    "without_norms": ("layers", "Instead of norms: standardized weights, clipped gradients"),
    "sharpness": ("sharpness", "Sharpness-aware minimization on the CPU"),
    "vision": ("data", "Images: batches for consecutive training steps"),
    "speech": ("data", "Audio: batches of spectrograms"),
    "text": ("data", "Text: padding"),
    "loop": ("loop", "A whole run"),
    "startup": ("startup", "Startup"),
    "studies": ("studies", "Runs per minute"),
    "forked": ("studies", "Forked runs of a study, three rounds"),
    "busy_machine": ("busy", "A run of 15 epochs on a busy machine, three rounds"),
    "growth": ("growth", "Cost against problem size"),
}
PACKAGES = ("torch", "lightning", "torchvision", "torchaudio", "timm", "wandb")
COLOURS = ["#0072b2", "#d55e00", "#009e73"]


def measure(name: str) -> None:
    """Run one benchmark in this process and print its result as JSON."""
    import importlib

    import torch

    from tasks.run.devices import keep_freed_memory

    if name != "mapped":
        keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    found = getattr(importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}"), name)()
    print(json.dumps([dataclasses.asdict(one) for one in found]))


def run(name: str) -> list[dict[str, object]]:
    """Run one benchmark in a separate process."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--measure", name],
        env=os.environ | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: list[dict[str, object]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def cells(row: Row) -> list[str]:
    """Return the cells of a row of the table."""
    aim = "" if row.aim is None else f"x{row.aim:.3g}" + ("" if row.met else ", **missed**")
    return [
        row.what,
        row.peer,
        f"x{row.ratio:.3g} ({row.low:.3g} to {row.high:.3g})",
        f"x{1 / row.ratio:.3g}" if row.ratio < 1 else "",
        aim,
        row.note,
    ]


HEADER = ["what", "peer", "time ratio, ours / peer", "speedup", "target", "note"]


def table(rows: list[Row]) -> list[str]:
    """Return a table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(row) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def machine() -> str:
    """Describe the machine and the versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}, {versions}"


def draw(curves: list[dict[str, object]], file: Path) -> None:
    """Draw the cost against the problem size, one panel per curve."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "regain"
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for index, curve in enumerate(curves):
        axes = figure.add_subplot(2, 3, index + 1)
        for colour, (name, points) in zip(COLOURS, dict(curve["lines"]).items(), strict=False):
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        axes.set_xscale("log")
        measured = sorted({x for points in dict(curve["lines"]).values() for x, _ in points})
        axes.set_xticks(measured, [f"{x:,.0f}" if x < 1e4 else f"{x:.0e}" for x in measured])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_title(str(curve["title"]), fontsize=9)
        axes.set_xlabel(str(curve["x"]))
        axes.set_ylabel(str(curve["y"]))
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(BENCHMARKS))
    parser.add_argument("--measure", choices=BENCHMARKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"{name} is not a benchmark; choose from {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        since = time.perf_counter()
        found = run(name)
        seconds = round(time.perf_counter() - since)
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "seconds": seconds, "found": found}
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        tell(name, found)
        print(f"({name}: {seconds} s)", flush=True)
    write_page()


def tell(name: str, found: list[dict[str, object]]) -> None:
    """Print the result of a benchmark."""
    if name != "growth":
        for row in found:
            print("  ".join(cell for cell in cells(Row(**row)) if cell))
        return
    for curve in found:
        print(f"{curve['title']}, {curve['y']} over {curve['x']}")
        for line, points in dict(curve["lines"]).items():
            print(f"  {line}: " + ", ".join(f"{x:g}: {y:.3g}" for x, y in points))


def write_page() -> None:
    """Write docs/benchmarks.md and its figure from the stored results."""
    kept = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in BENCHMARKS
        if (RESULTS / f"{name}.json").exists()
    }
    minutes = sum(content["seconds"] for content in kept.values()) / 60
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. A time ratio is our time divided by the peer's, measured in",
        "turns in one process or in alternating processes: the median (smallest to largest) of at",
        "least seven rounds, unless its section gives a number. Peers are real code, written as",
        "their users would, in [benchmarks](../benchmarks).",
        "",
        *(f"Machine: {one}." for one in sorted({content["machine"] for content in kept.values()})),
        f"All benchmarks take {minutes:.0f} minutes.",
        "",
    ]
    for name, content in kept.items():
        lines += [f"## {BENCHMARKS[name][1]}", "", f"`make bench BENCH={name}`", ""]
        if name == "growth":
            draw(content["found"], DOCS / "figures" / "growth.svg")
            lines += ["![cost against values, batches, processes, data, runs](figures/growth.svg)"]
        else:
            lines += table([Row(**row) for row in content["found"]])
        lines.append("")
    (DOCS / "benchmarks.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
