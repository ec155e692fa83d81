"""Draw the masks of each kind of dropout, with the layers of `regain`.

python docs/figures/masks.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from regain import (
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    Dropout,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    KWinners,
    LayerDrop,
    LockedDropout,
    WeightDrop,
    WordDropout,
)

# For a reproducible file: fixed ids, and one thread, which fixes the order of sums.
matplotlib.rcParams["svg.hashsalt"] = "regain"
torch.set_num_threads(1)

RATE = 0.3
DROPPED, KEPT = "#d9822b", "#2f6f9f"
COLOURS = LinearSegmentedColormap.from_list("dropped to kept", [DROPPED, "#f3efe6", KEPT])
WORDS = "the cat saw the dog and the dog saw it".split()


def source(seed: int = 3) -> torch.Generator:
    """Make a generator for a layer."""
    return torch.Generator().manual_seed(seed)


def montage(maps: Tensor, columns: int = 3) -> Tensor:
    """Lay the channels (channels, height, width) side by side, with a gap of NaN between."""
    padded = nn.functional.pad(maps, (1, 1, 1, 1), value=float("nan"))
    rows = [torch.cat(list(row), dim=1) for row in padded.split(columns)]
    return torch.cat(rows)


def of_maps(layer: nn.Module) -> Tensor:
    """Return the factors on 6 channels of 12 by 12."""
    return montage(layer(torch.ones(1, 6, 12, 12))[0])


def of_words(layer: EmbeddingDropout | WordDropout) -> Tensor:
    """Return the factors on the words of six copies of a text, one per row."""
    known = sorted(set(WORDS))
    ids = torch.tensor([[known.index(word) + 2 for word in WORDS]]).repeat(6, 1)
    changed = layer(ids)
    if isinstance(layer, WordDropout):
        return (changed == ids).float()
    return changed[..., 0]


def layers_kept(steps: int = 12, depth: int = 6) -> Tensor:
    """Return which of `depth` layers ran in each of `steps` batches."""
    one, stack = torch.ones(1, 1), []
    for number in range(depth):
        double = nn.Linear(1, 1, bias=False).requires_grad_(False)
        nn.init.constant_(double.weight, 2.0)
        stack.append(LayerDrop(double, RATE, source(10 + number)))
    # A skipped layer returns its input, 1; the layer itself doubles it.
    return torch.tensor([[layer(one).item() - 1 for _ in range(steps)] for layer in stack])


def weights_kept() -> Tensor:
    """Return the factors on the weights of a layer of 12 inputs and 6 units."""
    layer = nn.Linear(12, 6, bias=False)
    nn.init.ones_(layer.weight)
    dropped = WeightDrop(layer, p=RATE, generator=source())
    # For the identity matrix the output is the weights. One mask is used for the batch.
    return dropped(torch.eye(12)).T.detach()


def winners() -> Tensor:
    """Return the most active of 12 units for 6 examples, as 0 or 1."""
    activity = torch.rand(6, 12, generator=source()) + 0.1
    return (KWinners(12, p=RATE)(activity) > 0).float()


def panel(axes: Axes, title: str, where: str, factors: Tensor) -> None:
    """Draw the factors as cells, blue for kept and orange for dropped."""
    axes.imshow(
        factors.detach().numpy(),
        cmap=COLOURS,
        vmin=0.0,
        vmax=1 / (1 - RATE),
        interpolation="none",
        aspect="auto",
    )
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(where, fontsize=9)
    axes.set(xticks=[], yticks=[])
    if "texts" in where:
        axes.set_xticks(range(len(WORDS)), WORDS, rotation=90, fontsize=8)
        axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw(picture: Path) -> None:
    """Write the masks of all layers to one figure."""
    torch.manual_seed(3)
    table = nn.Embedding(12, 4)
    nn.init.ones_(table.weight)
    time = LockedDropout(RATE, source())(torch.ones(1, 20, 10))[0].T
    paths = DropPath(RATE, source())(torch.ones(6, 12))
    relaxed = ConcreteDropout(12, RATE, generator=source())(torch.ones(6, 12))
    words = WordDropout(RATE, generator=source(5))
    panels: list[tuple[str, str, Tensor]] = [
        ("Dropout", "6 channels, height, width", of_maps(Dropout(RATE, source()))),
        ("ChannelDropout", "6 channels, height, width", of_maps(ChannelDropout(RATE, source()))),
        ("DropBlock(block=4)", "6 channels, height, width", of_maps(DropBlock(RATE, 4, source()))),
        ("GaussianDropout", "6 channels, height, width", of_maps(GaussianDropout(RATE, source()))),
        ("LockedDropout", "features over time", time),
        ("DropPath", "examples, units of the branch", paths),
        ("ConcreteDropout", "examples, features", relaxed),
        ("KWinners (not dropout)", "examples, units", winners()),
        ("WordDropout", "6 texts, the same words", of_words(words)),
        (
            "EmbeddingDropout",
            "6 texts, the same words",
            of_words(EmbeddingDropout(table, RATE, source())),
        ),
        ("WeightDrop", "units, inputs of one layer", weights_kept()),
        ("LayerDrop", "6 layers, 12 batches", layers_kept()),
    ]
    figure = Figure(figsize=(9.2, 6.0), layout="constrained")
    for axes, one in zip(figure.subplots(3, 4).flat, panels, strict=True):
        panel(axes, *one)
    figure.suptitle(
        f"p = {RATE}: orange is dropped, light blue kept unscaled, dark blue kept and scaled by "
        f"{1 / (1 - RATE):.2f}",
        fontsize=11,
    )
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
