"""The layers on the CPU against those of PyTorch, torchvision and timm."""

from collections.abc import Callable

import torch
from timm.layers import DropBlock2d
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn
from torchvision.ops import DropBlock2d as TorchvisionDropBlock2d
from torchvision.ops import StochasticDepth

from benchmarks.measure import Row, compare
from modules import (
    AlphaDropout,
    ChannelDropout,
    DropBlock,
    Dropout,
    DropPath,
    MaskedBatchNorm,
    SyncBatchNorm,
)

# Of a convolution's output: 8.4 million values.
SHAPE = (128, 64, 32, 32)
AT_ITS_BEST = "few numbers are drawn, and both take as long as the product"


class Multiply(nn.Module):
    """The least that a layer of this kind can do: read, multiply, write."""

    def forward(self, x: Tensor) -> Tensor:
        """Do it."""
        return x * 1.25


def both_ways(layer: Callable[..., Tensor], x: Tensor, *further: Tensor) -> Callable[[], object]:
    """Make a forward and a backward pass."""
    upstream = torch.ones_like(x)

    def passes() -> None:
        layer(x, *further).backward(upstream)
        x.grad = None

    return passes


def against(
    ours: nn.Module,
    theirs: nn.Module,
    peer: str,
    aim: float | None = None,
    dtype: torch.dtype = torch.float32,
    note: str = "",
) -> Row:
    """Compare two layers on maps of that size."""
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    kind = "" if dtype == torch.float32 else ", bfloat16"
    what = f"`{type(ours).__name__}`, {'x'.join(map(str, SHAPE))}{kind}"
    # Single turns differ by half: the system shares its memory and cores with others.
    return compare(what, peer, both_ways(ours, x), both_ways(theirs, x), aim, note, rounds=15)


def mapped() -> list[Row]:
    """Some of them in a process that has not called `keep_freed_memory`."""
    return [
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`"),
        against(Dropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(DropBlock(0.1, 7), TorchvisionDropBlock2d(0.1, 7), "torchvision `DropBlock2d`"),
    ]


def dropout() -> list[Row]:
    """Dropout and its family, forward and backward."""
    return [
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`", 1 / 6),
        against(Dropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`", 1 / 6, torch.bfloat16),
        against(AlphaDropout(0.1), nn.AlphaDropout(0.1), "`nn.AlphaDropout`", 1 / 6),
        against(ChannelDropout(0.1), nn.Dropout2d(0.1), "`nn.Dropout2d`", note=AT_ITS_BEST),
        against(ChannelDropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(DropPath(0.1), TimmDropPath(0.1), "timm `DropPath`", note=AT_ITS_BEST),
        against(
            DropPath(0.1),
            StochasticDepth(0.1, "row"),
            "torchvision `StochasticDepth`",
            note=AT_ITS_BEST,
        ),
        against(DropPath(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(
            DropBlock(0.1, 7), TorchvisionDropBlock2d(0.1, 7), "torchvision `DropBlock2d`", 1 / 6
        ),
        against(
            DropBlock(0.1, 7),
            DropBlock2d(0.1, 7, couple_channels=False),
            "timm `DropBlock2d`, each channel by itself",
            1 / 6,
        ),
        against(DropBlock(0.1, 7), Multiply(), "`x * 1.25`", 2.5),
    ]


def norms() -> list[Row]:
    """Batch norms, forward and backward."""
    rows = []
    for batch, channels, steps in ((64, 96, 101), (256, 48, 101)):
        x = torch.randn(batch, channels, steps, requires_grad=True)
        lengths = torch.randint(steps // 2, steps + 1, (batch, 1))
        mask = torch.arange(steps) < lengths
        rows.append(
            compare(
                f"`MaskedBatchNorm`, {batch}x{channels}x{steps}",
                "`nn.BatchNorm1d`, padding counted in",
                both_ways(MaskedBatchNorm(channels), x, mask),
                both_ways(nn.BatchNorm1d(channels), x),
                1.3,
            )
        )
    x = torch.randn(SHAPE, requires_grad=True)
    rows.append(
        compare(
            f"`SyncBatchNorm`, one process, {'x'.join(map(str, SHAPE))}",
            "`nn.BatchNorm2d`",
            both_ways(SyncBatchNorm(SHAPE[1]), x),
            both_ways(nn.BatchNorm2d(SHAPE[1]), x),
            1.05,
        )
    )
    return rows
