"""Write docs/layers.md: every layer with its paper, shapes and cost.

`make docs` runs it. The cost is the time of forward and backward divided by that of the plain
layer: the ratio of the medians of 21 runs each, in turns, on one thread.
"""

import inspect
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import regain

RUNS = 21
# Shapes of the measured tensors.
IMAGES = (64, 32, 16, 16)
SEQUENCES = (64, 32, 128)
WORDS = (64, 64)
# Attention probabilities: batch, heads, queries, keys.
HEADS = (64, 4, 64, 64)


class Row(NamedTuple):
    """A layer, the plain layer it is compared with, and the input shape."""

    name: str
    page: str
    layer: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGES


class FirstOutput(nn.Module):
    """Returns the output of a recurrent layer without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        """Call the layer."""
        return self.layer(x)[0]


def renorm() -> nn.Module:
    """Make a batch renorm after its warmup."""
    layer = regain.BatchRenorm(IMAGES[1], dims=2, warmup=1)
    layer(torch.randn(IMAGES))
    return layer


def lstm() -> nn.Module:
    """Make the plain layer for weight drop."""
    return nn.LSTM(SEQUENCES[2], 64, batch_first=True)


def images(kind: str) -> Callable[[], nn.Module]:
    """Return a function that makes a norm of a kind for images."""
    return lambda: regain.batch_norm(IMAGES[1], dims=2, kind=kind)


def convolution() -> nn.Module:
    """Make the plain layer for layer drop and weight standardization."""
    return nn.Conv2d(IMAGES[1], IMAGES[1], 3, padding=1)


def encoder() -> nn.Module:
    """Make the transformer layer for token dropout."""
    return nn.TransformerEncoderLayer(SEQUENCES[2], 4, 4 * SEQUENCES[2], 0.0, batch_first=True)


def standardized() -> nn.Module:
    """Make a convolution with standardized weights."""
    return regain.WeightStandardization.of(convolution())


DROPOUT, NORM = "dropout.md", "batchnorm.md"
ROWS = [
    Row("Dropout", DROPOUT, lambda: regain.Dropout(0.2), lambda: nn.Dropout(0.2)),
    Row("ChannelDropout", DROPOUT, lambda: regain.ChannelDropout(0.2), lambda: nn.Dropout(0.2)),
    Row(
        "LockedDropout",
        DROPOUT,
        lambda: regain.LockedDropout(0.2),
        lambda: nn.Dropout(0.2),
        SEQUENCES,
    ),
    Row("GaussianDropout", DROPOUT, lambda: regain.GaussianDropout(0.2), lambda: nn.Dropout(0.2)),
    Row("AlphaDropout", DROPOUT, lambda: regain.AlphaDropout(0.2), lambda: nn.Dropout(0.2)),
    Row("DropBlock", DROPOUT, lambda: regain.DropBlock(0.2, block=3), lambda: nn.Dropout(0.2)),
    Row("DropPath", DROPOUT, lambda: regain.DropPath(0.2), lambda: nn.Dropout(0.2)),
    Row("ConcreteDropout", DROPOUT, lambda: regain.ConcreteDropout(32), lambda: nn.Dropout(0.2)),
    Row(
        "VariationalDropout",
        DROPOUT,
        lambda: regain.VariationalDropout(32, 0.2),
        lambda: nn.Dropout(0.2),
    ),
    Row(
        "VariationalLinear",
        DROPOUT,
        lambda: regain.VariationalLinear(128, 128),
        lambda: nn.Linear(128, 128),
        SEQUENCES,
    ),
    Row(
        "VariationalConv2d",
        DROPOUT,
        lambda: regain.VariationalConv2d(IMAGES[1], IMAGES[1], 3, padding=1),
        convolution,
    ),
    Row("KWinners", DROPOUT, lambda: regain.KWinners(32), lambda: nn.Dropout(0.2)),
    Row(
        "AttentionDropout",
        DROPOUT,
        lambda: regain.AttentionDropout(0.1),
        lambda: nn.Dropout(0.1),
        HEADS,
    ),
    Row("DropHead", DROPOUT, lambda: regain.DropHead(0.1), lambda: nn.Dropout(0.1), HEADS),
    Row(
        "TokenDropout",
        DROPOUT,
        lambda: nn.Sequential(regain.TokenDropout(0.5), encoder()),
        encoder,
        SEQUENCES,
    ),
    Row(
        "LayerDrop",
        DROPOUT,
        lambda: regain.LayerDrop(convolution(), 0.2),
        convolution,
    ),
    Row(
        "WeightDrop",
        DROPOUT,
        lambda: FirstOutput(regain.WeightDrop(lstm(), ["weight_hh_l0"], 0.5)),
        lambda: FirstOutput(lstm()),
        SEQUENCES,
    ),
    Row(
        "EmbeddingDropout",
        DROPOUT,
        lambda: regain.EmbeddingDropout(nn.Embedding(10_000, 128), 0.1),
        lambda: nn.Embedding(10_000, 128),
        WORDS,
    ),
    Row(
        "WordDropout",
        DROPOUT,
        lambda: nn.Sequential(regain.WordDropout(0.1), nn.Embedding(10_000, 128)),
        lambda: nn.Embedding(10_000, 128),
        WORDS,
    ),
    Row(
        "MaskedBatchNorm",
        NORM,
        lambda: regain.MaskedBatchNorm(SEQUENCES[1], dims=1),
        lambda: nn.BatchNorm1d(SEQUENCES[1]),
        SEQUENCES,
    ),
    Row("GhostBatchNorm", NORM, images("ghost"), images("batch")),
    Row("BatchRenorm", NORM, renorm, images("batch")),
    Row("SyncBatchNorm", NORM, images("sync"), images("batch")),
    Row(
        "SubSpectralBatchNorm",
        NORM,
        lambda: regain.SubSpectralBatchNorm(IMAGES[1], bands=4),
        images("batch"),
    ),
    Row("FrozenBatchNorm", NORM, images("frozen"), images("batch")),
    Row("SplitBatchNorm", NORM, images("split"), images("batch")),
    Row("ChannelNorm", NORM, images("layer"), images("batch")),
    Row("MaskedGroupNorm", NORM, images("group"), images("batch")),
    Row("WeightStandardization", NORM, standardized, convolution),
]


def seconds(layer: nn.Module, x: Tensor, *further: Tensor) -> float:
    """Measure one forward and backward pass."""
    began = time.perf_counter()
    y = layer(x, *further)
    y.sum().backward()
    return time.perf_counter() - began


def cost(row: Row) -> float:
    """Return the time of a layer divided by that of the plain layer."""
    torch.manual_seed(0)
    words = row.shape == WORDS
    x = torch.randint(10_000, WORDS) if words else torch.randn(row.shape, requires_grad=True)
    layer, plain = row.layer(), row.plain()
    masked = row.name == "MaskedBatchNorm"
    # Three quarters of the full length, on average.
    lengths = torch.randint(row.shape[-1] // 2, row.shape[-1] + 1, (row.shape[0], 1))
    further = (torch.arange(row.shape[-1]) < lengths,) if masked else ()
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(RUNS + 3):
        for index, (candidate, more) in enumerate(((layer, further), (plain, ()))):
            taken = seconds(candidate, x, *more)
            # The first runs are warmup.
            if run >= 3:
                times[index].append(taken)
    return statistics.median(times[0]) / statistics.median(times[1])


def described(name: str) -> tuple[str, str, str]:
    """Return the summary, papers and shapes in a layer's docstring."""
    text = inspect.getdoc(getattr(regain, name)) or ""
    head = text.splitlines()[0]
    papers = re.findall(r"\(([^()]*\b(?:19|20)\d\d[^()]*)\)", text)
    shape = re.search(r"\nShape:\n(.*?)(?:\n\n|\n[A-Z]\w+:\n|$)", text, re.DOTALL)
    what = re.sub(r" \([^()]*\b(?:19|20)\d\d[^()]*\)", "", head).rstrip(".")
    shapes = " ".join(shape.group(1).split()) if shape else ""
    return what, "; ".join(dict.fromkeys(" ".join(p.split()) for p in papers)), shapes


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    lines = [
        "# All layers",
        "",
        "Written by `make docs` from the layers' docstrings. `cost` is the time of forward and",
        "backward divided by that of the plain layer on the same tensor: `nn.Dropout`,",
        "`nn.BatchNorm*`, or the wrapped layer; medians of "
        f"{RUNS} runs in turns, one thread, seed 0, torch {torch.__version__},",
        f"{platform.system()} {platform.machine()}. Ratios differ between machines.",
        "",
    ]
    for page, title in ((DROPOUT, "Dropout"), (NORM, "Normalization")):
        lines += [f"## {title}", "", f"How and when to use them: [{page}]({page}).", ""]
        lines += [
            "| layer | what it does | source | shape | cost |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in ROWS:
            if row.page == page:
                what, papers, shapes = described(row.name)
                lines.append(f"| `{row.name}` | {what} | {papers} | {shapes} | {cost(row):.2f} |")
        lines.append("")
    Path(__file__).with_name("layers.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
