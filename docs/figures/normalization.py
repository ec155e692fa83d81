"""Draw pre-activations of a deep network: without batch norm, before it and after it.

python docs/figures/normalization.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from regain import Regularization

# For a reproducible file: fixed ids, and one thread, which fixes the order of sums.
matplotlib.rcParams["svg.hashsalt"] = "regain"
torch.set_num_threads(1)

DEPTH, WIDTH, STEPS, BATCH = 10, 100, 200, 128
SHOWN = (1, 4, 7, 10)
COLOURS = ["#c0453b", "#d9822b", "#3a9a6b", "#2f6f9f"]


def network(reg: Regularization, inputs: int, classes: int) -> nn.Sequential:
    """Make a perceptron of `DEPTH` blocks: linear, norm, ReLU."""
    layers: list[nn.Module] = []
    features = inputs
    for _ in range(DEPTH):
        layers += [
            reg.prepare_layer(nn.Linear(features, WIDTH)),
            reg.norm_layer(WIDTH, dims=0),
        ]
        layers += [nn.ReLU()]
        features = WIDTH
    return nn.Sequential(*layers, nn.Linear(features, classes))


def train(model: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """Take `STEPS` steps of plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in eval mode."""
    right = model.eval()(x).argmax(dim=1) == y
    model.train()
    return float(right.float().mean())


@torch.no_grad()
def observe(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of each linear layer and of each norm for one batch."""
    before, after = [], []
    for index, layer in enumerate(model):
        x = layer(x)
        if index % 3 == 0:
            before.append(x.flatten())
        elif index % 3 == 1:
            after.append(x.flatten())
    return before[:DEPTH], after


def draw(picture: Path) -> None:
    """Draw the densities of pre-activations at the start and after training."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    x = (x - x.mean()) / x.std()
    plain = network(Regularization(), x.shape[1], 10)
    normed = network(Regularization(normalization="batch"), x.shape[1], 10)
    figure = Figure(figsize=(9.2, 5.0), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey="col")
    for row, when in zip(grid, ("at the start", f"after {STEPS} steps"), strict=True):
        if when != "at the start":
            train(plain, x, y)
            train(normed, x, y)
        without, _ = observe(plain, x[:512])
        before, after = observe(normed, x[:512])
        columns = (
            ("without batch norm", without),
            ("before batch norm", before),
            ("after batch norm", after),
        )
        for axes, (name, layers) in zip(row, columns, strict=True):
            for number, colour in zip(SHOWN, COLOURS, strict=True):
                values = layers[number - 1]
                density = torch.histc(values, bins=60, min=-3, max=3) / len(values) * 10
                edges = torch.linspace(-3, 3, 61)
                label = f"layer {number}: std {values.std():.2f}"
                axes.stairs(density, edges, color=colour, linewidth=1.4, label=label)
            axes.set_title(f"{name}, {when}", fontsize=10)
            axes.set(yscale="log", ylim=(1e-2, 1e2), xlim=(-3, 3))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7.5, loc="upper right", handlelength=1.0)
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    right = (f"{100 * accuracy(model, x, y):.0f} %" for model in (plain, normed))
    figure.suptitle(
        f"{DEPTH} layers on digits; training accuracy after {STEPS} steps: "
        "{} without, {} with batch norm".format(*right),
        fontsize=11,
    )
    for axes in grid[-1]:
        axes.set_xlabel("pre-activation")
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
