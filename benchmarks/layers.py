"""Our layers on the CPU against those of PyTorch, torchvision and timm."""

from collections.abc import Callable

import torch
from timm.layers import DropBlock2d, PatchDropout, ScaledStdConv2d
from timm.layers import DropPath as TimmDropPath
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import DropBlock2d as TorchvisionDropBlock2d
from torchvision.ops import StochasticDepth

from benchmarks.measure import Row, compare
from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    GaussianDropout,
    MaskedBatchNorm,
    SyncBatchNorm,
    TokenDropout,
    VariationalDropout,
    VariationalLinear,
    WeightStandardization,
    adaptive_clip_,
)

# Output of a convolution: 8.4 million values.
SHAPE = (128, 64, 32, 32)
# Tokens of a small vision transformer: a class token and 14 x 14 patches.
TOKENS, HEADS = (32, 197, 384), 6
DRAWS_LITTLE = "few random numbers; both take as long as the product"


class Multiply(nn.Module):
    """The minimum work of a dropout layer: read, multiply, write."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * 1.25


def both_ways(layer: Callable[..., Tensor], x: Tensor, *further: Tensor) -> Callable[[], object]:
    """Return a function that runs a forward and a backward pass."""
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
    """Compare two layers on feature maps of size `SHAPE`."""
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    kind = "" if dtype == torch.float32 else ", bfloat16"
    what = f"`{type(ours).__name__}`, {'x'.join(map(str, SHAPE))}{kind}"
    # Single turns vary by half: other processes share memory and cores.
    return compare(what, peer, both_ways(ours, x), both_ways(theirs, x), aim, note, rounds=15)


def mapped() -> list[Row]:
    """Some dropout layers in a process that has not called `keep_freed_memory`."""
    return [
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`"),
        against(Dropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(DropBlock(0.1, 7), TorchvisionDropBlock2d(0.1, 7), "torchvision `DropBlock2d`"),
    ]


def dropout() -> list[Row]:
    """Dropout layers, forward and backward."""
    return [
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`", 1 / 6),
        against(Dropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(Dropout(0.1), nn.Dropout(0.1), "`nn.Dropout`", 1 / 6, torch.bfloat16),
        against(AlphaDropout(0.1), nn.AlphaDropout(0.1), "`nn.AlphaDropout`", 1 / 6),
        against(ChannelDropout(0.1), nn.Dropout2d(0.1), "`nn.Dropout2d`", note=DRAWS_LITTLE),
        against(ChannelDropout(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(DropPath(0.1), TimmDropPath(0.1), "timm `DropPath`", note=DRAWS_LITTLE),
        against(
            DropPath(0.1),
            StochasticDepth(0.1, "row"),
            "torchvision `StochasticDepth`",
            note=DRAWS_LITTLE,
        ),
        against(DropPath(0.1), Multiply(), "`x * 1.25`", 2.5),
        against(
            DropBlock(0.1, 7), TorchvisionDropBlock2d(0.1, 7), "torchvision `DropBlock2d`", 1 / 6
        ),
        against(
            DropBlock(0.1, 7),
            DropBlock2d(0.1, 7, couple_channels=False),
            "timm `DropBlock2d`, separate channels",
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
                "`nn.BatchNorm1d`, with padding",
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


class SelfAttention(nn.Module):
    """Self-attention with our dropout, and the projections of `nn.MultiheadAttention`."""

    def __init__(self, dropout: AttentionDropout, heads: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Linear(TOKENS[2], 3 * TOKENS[2])
        self.outside = nn.Linear(TOKENS[2], TOKENS[2])
        self.dropout, self.heads = dropout, heads

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        query, key, value = self.inside(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = self.heads(self.dropout.attend(query, key, value))
        return self.outside(x.transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    """Self-attention of PyTorch."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(TOKENS[2], HEADS, p, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return self.layer(x, x, x, need_weights=False)[0]


def attention() -> list[Row]:
    """Token, attention, head and variational dropout, forward and backward."""
    x = torch.randn(TOKENS, requires_grad=True)
    shape = "x".join(map(str, TOKENS))
    # The output has no removed tokens, so neither has its gradient.
    kept = torch.ones(TOKENS[0], 1 + (TOKENS[1] - 1) // 2, TOKENS[2])
    block = nn.TransformerEncoderLayer(TOKENS[2], HEADS, 4 * TOKENS[2], 0.0, batch_first=True)

    def removing(layer: Callable[..., Tensor]) -> Callable[[], object]:
        def passes() -> None:
            layer(x).backward(kept)
            x.grad = None

        return passes

    def row(what: str, peer: str, ours: nn.Module, theirs: nn.Module) -> Row:
        return compare(f"{what}, {shape}", peer, both_ways(ours, x), both_ways(theirs, x))

    return [
        compare(
            f"`TokenDropout(0.5, ordered=False)`, {shape}",
            "timm `PatchDropout(0.5)`",
            removing(TokenDropout(0.5, ordered=False)),
            removing(PatchDropout(0.5)),
        ),
        compare(
            f"a transformer layer after `TokenDropout(0.5)`, {shape}",
            "the layer alone",
            removing(nn.Sequential(TokenDropout(0.5), block)),
            both_ways(block, x),
        ),
        row(
            "self-attention with `AttentionDropout(0.1)`",
            "`nn.MultiheadAttention(dropout=0.1)`",
            SelfAttention(AttentionDropout(0.1), nn.Identity()),
            TorchAttention(0.1),
        ),
        row(
            "self-attention with `AttentionDropout(0.1, columns=True)`",
            "`nn.MultiheadAttention(dropout=0.1)`",
            SelfAttention(AttentionDropout(0.1, columns=True), nn.Identity()),
            TorchAttention(0.1),
        ),
        row(
            "self-attention with `DropHead(0.1)`",
            "`nn.MultiheadAttention`",
            SelfAttention(AttentionDropout(0.0), DropHead(0.1)),
            TorchAttention(0.0),
        ),
        row(
            "`VariationalDropout`",
            "`GaussianDropout`",
            VariationalDropout(TOKENS[1]),
            GaussianDropout(0.1),
        ),
        row(
            "`VariationalLinear`",
            "`nn.Linear`",
            VariationalLinear(TOKENS[2], TOKENS[2]),
            nn.Linear(TOKENS[2], TOKENS[2]),
        ),
    ]


def without_norms() -> list[Row]:
    """Alternatives to norms: standardized weights, forward and backward, and clipping."""
    x = torch.randn(16, 64, 16, 16, requires_grad=True)
    ours = WeightStandardization.of(nn.Conv2d(64, 64, 3, padding=1), scaled=True)
    theirs = ScaledStdConv2d(64, 64, 3, padding=1)
    model = resnet18()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    parameters = list(model.parameters())
    return [
        compare(
            "`WeightStandardization`, 3x3 convolution, 16x64x16x16",
            "timm `ScaledStdConv2d`",
            both_ways(ours, x),
            both_ways(theirs, x),
        ),
        compare(
            "`adaptive_clip_`, ResNet-18",
            "timm `adaptive_clip_grad`",
            lambda: adaptive_clip_(parameters),
            lambda: adaptive_clip_grad(parameters),
            1.05,
        ),
    ]
