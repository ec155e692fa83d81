"""Models of tables: each takes rows of numbers and one `Regularization`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regain import Regularization
from regain.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model.arch")


class Standardize(nn.Module):
    """Shifts and scales each column to mean 0 and standard deviation 1.

    Args:
        spec: Mean and standard deviation of each column, over the training split.

    Shape:
        (batch, columns); the output has the same shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean))
        # A column that never changes is 0.
        self.register_buffer("std", torch.tensor(spec.std).clamp(min=1e-6))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.std


@MODELS.register("mlp")
def mlp(spec: Any, reg: Regularization, depth: int = 2, width: int = 128) -> nn.Module:
    """Make a perceptron of `depth` hidden layers: linear, norm, ReLU, dropout."""
    layers: list[nn.Module] = [Standardize(spec), reg.input_dropout_layer()]
    features = len(spec.mean)
    for _ in range(depth):
        layers += [
            reg.prepare_layer(nn.Linear(features, width)),
            reg.norm_layer(width, dims=0),
            nn.ReLU(),
            reg.dropout_layer(width, dims=0),
        ]
        features = width
    return nn.Sequential(*layers, reg.head_dropout_layer(), nn.Linear(width, len(spec.classes)))


class Block(nn.Module):
    """A residual block of two linear layers (Gorishniy et al. 2021, arXiv 2106.11959).

    Args:
        width: Units of the input and of the output.
        reg: Regularization.
        index: Number of the block, from 0.
        blocks: How many there are.

    Shape:
        (batch, width); the output has the same shape.
    """

    def __init__(self, width: int, reg: Regularization, index: int, blocks: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            reg.norm_layer(width, dims=0),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            reg.dropout_layer(2 * width, dims=0),
            nn.Linear(2 * width, width),
            reg.drop_path_layer(index, blocks),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


@MODELS.register("resnet")
def resnet(spec: Any, reg: Regularization, depth: int = 2, width: int = 128) -> nn.Module:
    """Make a residual network of `depth` blocks, for tables."""
    return nn.Sequential(
        Standardize(spec),
        reg.input_dropout_layer(),
        nn.Linear(len(spec.mean), width),
        *(Block(width, reg, index, depth) for index in range(depth)),
        reg.norm_layer(width, dims=0),
        nn.ReLU(),
        reg.head_dropout_layer(),
        nn.Linear(width, len(spec.classes)),
    )
