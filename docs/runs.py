"""Fill the tables of docs/results.md from the single runs in results/; `make docs` runs it."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from blocks import fill, table

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Args:
        what: Data and model.
        files: Names in `results`, one of each seed.
        target: The accuracy that the run is to reach, in %; None for none.
    """

    what: str
    files: tuple[str, ...]
    target: float | None = None

    def read(self) -> list[dict[str, Any]]:
        """Read the runs."""
        return [json.loads((RESULTS / f"{name}.json").read_text()) for name in self.files]

    def test(self, accuracy: float, decimals: int = 2) -> str:
        """Return a test accuracy in %, bold if it reaches the target."""
        text = f"{accuracy:.{decimals}f}"
        return f"**{text}**" if self.target is not None and accuracy >= self.target else text

    @property
    def aim(self) -> str:
        """The target as text."""
        return "none" if self.target is None else f"{self.target:g}"


def seeds_of(name: str, count: int) -> tuple[str, ...]:
    """Return the names of the results of the first seeds."""
    return tuple(f"{name}-s{seed}" for seed in range(count))


MR = Line("MR; TextCNN from scratch, mean of five splits", seeds_of("nlp-mr-dropout", 5), 76.1)
REAL = [
    Line("Arabic Speech Commands, half; TC-ResNet8, width 48", ("speech-arabic-full-s0",), 95.0),
    Line("TREC; TextCNN from scratch", ("nlp-trec-dropout-s0",), 91.2),
    Line("SST-2, sentences alone; TextCNN from scratch", ("nlp-sst2-dropout-s0",)),
    Line("SST-2; MiniLM, dropout", ("nlp-sst2-minilm-s0",), 89),
    Line(
        "SST-2; MiniLM, dropout and masked batch norm, 3 epochs",
        ("nlp-sst2-minilm-batchnorm-s0",),
        89,
    ),
    Line("CIFAR-10; ResNet-9, width 32, 18 epochs", ("vision-cifar10-full-s0",)),
    Line("CIFAR-10; CNN, 10 epochs", ("vision-cifar10-cnn-s0",)),
    MR,
]
FAST = [
    (Line("Arabic Speech Commands, half; `full`", seeds_of("fast/speech-25", 3), 95), 25),
    (
        Line(
            "the same, [configs/speech/fast.yaml](../configs/speech/fast.yaml)",
            seeds_of("fast/speech-10", 3),
            95,
        ),
        10,
    ),
    (Line("MR; TextCNN from scratch", seeds_of("fast/nlp-mr-7", 5), 76.1), 7),
    (
        Line(
            "the same, batches of 64, twice the learning rate", seeds_of("fast/nlp-mr-4", 5), 76.1
        ),
        4,
    ),
    (Line("MR; MiniLM, pretrained", ("fast/nlp-mr-minilm-s0",), 81.5), 1),
    (Line("TREC; MiniLM, pretrained", ("fast/nlp-trec-minilm-s0",), 91.2), 1),
]
# File, recipe, width and epochs.
CURVES = [
    ("vision-10", "`fast.yaml`", 48, 18),
    ("vision-airbench-64", "airbench94", 64, 10),
    ("vision-airbench-76", "airbench94", 76, 10),
    ("vision-20", "`fast.yaml`, wider, longer, with cutout", 64, 22),
    ("vision-airbench-104", "airbench94", 104, 10),
]


def percent(runs: list[dict[str, Any]], split: str) -> list[float]:
    """Return the accuracies of runs in %: `best` on validation, or `test`."""
    key = "val/acc" if split == "best" else "acc"
    return [100 * run[split][key] for run in runs]


def real() -> list[str]:
    """Return the table of runs on real data."""
    rows = []
    for line in REAL:
        runs = line.read()
        rows.append(
            [
                line.what,
                f"0 to {len(runs) - 1}" if len(runs) > 1 else "0",
                f"{fmean(percent(runs, 'best')):.2f}",
                line.test(fmean(percent(runs, "test"))),
                line.aim,
                f"{sum(run['seconds']['all'] for run in runs) / 60:.1f}",
            ]
        )
    heads = ["data and model", "seed", "validation %", "test %", "target %", "minutes"]
    return table(heads, rows)


def splits() -> list[str]:
    """Return the sentence on the splits of MR."""
    found = percent(MR.read(), "test")
    each = ", ".join(f"{one:.2f}" for one in found[:-1])
    return [
        f"MR, test accuracy of each split: {each} and {found[-1]:.2f} (standard deviation "
        f"{stdev(found):.2f})."
    ]


def fast() -> list[str]:
    """Return the table of short trainings of speech and text."""
    rows = []
    for line, epochs in FAST:
        runs = line.read()
        tests = percent(runs, "test")
        bounds = f" ({min(tests):.2f} to {max(tests):.2f})" if len(runs) > 1 else ""
        count = {1: "0", 3: "0, 1, 2"}.get(len(runs), f"0 to {len(runs) - 1}")
        rows.append(
            [
                line.what,
                count,
                str(epochs),
                f"{fmean(percent(runs, 'best')):.1f}",
                line.test(fmean(tests)) + bounds,
                line.aim,
                f"{median(run['seconds']['all'] for run in runs):.0f}",
            ]
        )
    heads = ["data and model", "seeds", "epochs", "validation %", "test %", "target %", "seconds"]
    return table(heads, rows)


def curves() -> list[str]:
    """Return the table of short trainings on CIFAR-10."""
    rows = []
    for name, recipe, width, epochs in CURVES:
        run = json.loads((RESULTS / "fast" / f"{name}.json").read_text())
        if "curve" in run:
            points, end, test = run["curve"], run["seconds"], run["test"]
            validation = points[-1][1]
        else:
            accuracies = [row["val/acc"] for row in run["history"]]
            points = list(zip(run["seconds"]["epochs"], accuracies, strict=True))
            end, test, validation = run["seconds"]["all"], run["test"]["acc"], max(accuracies)
        reached = [
            next(second for second, accuracy in points if accuracy >= aim) for aim in (0.85, 0.89)
        ]
        rows.append(
            [
                *(recipe, str(width), str(epochs)),
                *(f"{100 * validation:.1f}", f"{100 * test:.2f}"),
                *(f"{second / 60:.1f}" for second in (*reached, end)),
            ]
        )
    heads = ["recipe", "width", "epochs", "validation %, one view", "test %, six views"]
    return table([*heads, "minutes to 85 %", "to 89 %", "in all"], rows)


def main() -> None:
    """Write the tables."""
    made = {"real": real(), "splits": splits(), "fast": fast(), "curves": curves()}
    fill(DOCS / "results.md", made)


if __name__ == "__main__":
    main()
