"""Dropout of structures: blocks of a map, residual branches, layers, weights."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from modules.bitmask import bitmask_blocks, worth_a_kernel
from modules.dropout import DropoutLayer, check_rate, dropout, scaled_mask

_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}


def drop_path(
    x: Tensor, p: float = 0.1, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Set each example's residual branch to zero with probability `p`. See `DropPath`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return x
    return x * scaled_mask(x, (x.shape[0],) + (1,) * (x.dim() - 1), p, generator)


def drop_block(
    x: Tensor,
    p: float = 0.1,
    block: int = 3,
    training: bool = True,
    generator: torch.Generator | None = None,
    couple_channels: bool = False,
    inplace: bool = False,
) -> Tensor:
    """Set blocks of neighbouring positions to zero, a fraction `p` of all. See `DropBlock`.

    Raises:
        ValueError: `block` is not a whole number of at least 1, or too large; `x` has no position,
            or more than three dimensions of them.
    """
    check_rate("p", p)
    check_block(block)
    dims = x.dim() - 2
    if dims not in _MAX_POOL:
        raise ValueError(f"blocks are for 1 to 3 dimensions after the channels, not {dims}")
    if not training or p == 0.0 or x.numel() == 0:
        return x
    if worth_a_kernel(x):
        y = bitmask_blocks(x, p, block, generator, couple_channels)
        return x.copy_(y) if inplace else y
    # A position is kept if none of the block**dims blocks that could cover it begins.
    begin = 1.0 - (1.0 - p) ** (1.0 / block**dims)
    channels = 1 if couple_channels else x.shape[1]
    # Blocks may begin outside of the map, so that its borders are covered as often as its middle.
    shape = [x.shape[0], channels, *(size + block - 1 for size in x.shape[2:])]
    # Drawn as floats whatever x is: rates this small need the resolution.
    begins = torch.empty(shape, device=x.device).bernoulli_(begin, generator=generator)
    dropped = _MAX_POOL[dims](begins, block, stride=1)
    keep = (1.0 - dropped).to(x.dtype).div_(1.0 - p)
    return x.mul_(keep) if inplace else x * keep


# A graph of `torch.fx` calls it as a whole: its checks need the values that a trace has not.
torch.fx.wrap("drop_block")


def check_block(block: int) -> None:
    """Raise an error that names `block` if it is no side of a block.

    Raises:
        ValueError: `block` is not a whole number of at least 1, or is above 2**31.
    """
    if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block < 2**31:
        raise ValueError(f"block is a whole number of at least 1 and below 2**31, not {block!r}")


def layer_drop(
    layer: nn.Module,
    *inputs: Any,
    p: float = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    **named: Any,
) -> Any:
    """Skip a whole layer with probability `p`: its first input is its output. See `LayerDrop`.

    The generator is one of the CPU, where the choice is made; ranks that shall make the same
    choices hand in generators of the same seed.
    """
    check_rate("p", p)
    if not training or p == 0.0 or torch.rand((), generator=generator).item() >= p:
        return layer(*inputs, **named)
    # Of no weight, but it gives each parameter a gradient (of zero): without one, training on
    # several devices would wait for it.
    trained = (parameter for parameter in layer.parameters() if parameter.requires_grad)
    return inputs[0] + sum(parameter.sum() * 0.0 for parameter in trained)


def _common_generator(device: torch.device) -> torch.Generator:
    """Make a generator on the CPU that is seeded alike on all ranks."""
    seed = torch.randint(2**62, ()).to(device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(seed, src=0)
    return torch.Generator().manual_seed(int(seed))


def weight_drop(
    layer: nn.Module,
    *inputs: Any,
    names: Sequence[str] = ("weight",),
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    **named: Any,
) -> Any:
    """Call a layer with each of its weights set to zero with probability `p`. See `WeightDrop`."""
    check_rate("p", p)
    if not training or p == 0.0:
        return layer(*inputs, **named)
    weights = {}
    for name in names:
        # A parameter, or what `torch.func.functional_call` put in its place.
        weight = attrgetter(name)(layer)
        weights[name] = dropout(weight, p, generator=generator)
    return torch.func.functional_call(layer, weights, inputs, named)


class DropPath(DropoutLayer):
    """Drops a residual branch, example by example (stochastic depth, Huang et al. 2016).

    Args:
        p: Probability to drop the branch, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, ...); the output has the same shape.

    Example:
        >>> x = DropPath(0.5)(torch.ones(8, 3))
        >>> set(x.flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.p, self.training, self.generator)


class DropBlock(DropoutLayer):
    """Drops blocks of neighbouring positions, channel by channel (Ghiasi et al. 2018).

    The rate is exact: each position, at the border too, is dropped with probability `p`. The paper
    chooses the density of blocks as if they never overlapped, so that less than `p` is dropped
    there, keeps blocks inside of the map, and scales by the fraction that was kept in the batch
    instead of the expected one. A mask for each channel is the paper's choice and torchvision's;
    timm's default is one mask for all channels of an example, `couple_channels` here and there.

    Args:
        p: Probability to drop a position, in [0, 1).
        block: Side of a block, in positions; 7 in the paper, for maps of 14 or more.
        generator: Source of randomness; the default one of the device if None.
        couple_channels: Whether all channels of an example lose the same positions.
        inplace: Whether to change the input itself.

    Shape:
        (batch, channels, ...) with one to three further dimensions; the output has the same shape
        and memory format.

    Raises:
        ValueError: `block` is not a whole number of at least 1, or too large.

    Example:
        >>> DropBlock(0.1, block=3)(torch.ones(2, 8, 14, 14)).shape
        torch.Size([2, 8, 14, 14])
        >>> y = DropBlock(0.5, couple_channels=True)(torch.ones(2, 8, 14, 14))
        >>> bool((y == y[:, :1]).all())
        True
    """

    def __init__(
        self,
        p: float = 0.1,
        block: int = 3,
        generator: torch.Generator | None = None,
        couple_channels: bool = False,
        inplace: bool = False,
    ) -> None:
        super().__init__(p, generator)
        check_block(block)
        self.block = block
        self.couple_channels = couple_channels
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return drop_block(
            x,
            self.p,
            self.block,
            self.training,
            self.generator,
            self.couple_channels,
            self.inplace,
        )

    def extra_repr(self) -> str:
        options = [name for name in ("couple_channels", "inplace") if getattr(self, name)]
        return ", ".join(
            [f"p={self.p}", f"block={self.block}", *(f"{name}=True" for name in options)]
        )


class LayerDrop(DropoutLayer):
    """Skips a whole layer for the whole batch (Fan et al. 2020, "LayerDrop").

    All ranks of a distributed run make the same choices: they draw from a generator of the layer's
    own, whose seed the ranks agree on at the first call in training. Nothing is scaled, as in the
    paper.

    Args:
        layer: A layer whose output has the shape of its first input.
        p: Probability to skip it, in [0, 1).
        generator: Source of randomness, on the CPU; the layer's own if None.

    Shape:
        That of the layer.

    Example:
        >>> LayerDrop(nn.Linear(4, 4), 0.5)(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """

    shared_draw = True

    def __init__(
        self, layer: nn.Module, p: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(p, generator)
        self.layer = layer

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if self.training and self.generator is None:
            self.generator = _common_generator(inputs[0].device)
        return layer_drop(
            self.layer,
            *inputs,
            p=self.p,
            training=self.training,
            generator=self.generator,
            **named,
        )


class WeightDrop(DropoutLayer):
    """Drops weights of a layer instead of its units (DropConnect, Wan et al. 2013).

    One draw serves the whole batch and, in a recurrent layer, all time steps: on the weights from
    hidden state to hidden state (`weight_hh_l0`) it is that of AWD-LSTM (Merity et al. 2018). The
    parameters stay those of the layer, so that an optimizer and a state dict see the whole weights.

    Args:
        layer: The layer whose weights are dropped.
        names: Which of its parameters.
        p: Probability to drop a weight, in [0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        That of the layer.

    Raises:
        ValueError: The layer has no parameter of such a name.

    Example:
        >>> recurrent = WeightDrop(nn.LSTM(3, 4), ["weight_hh_l0"], p=0.5)
        >>> recurrent(torch.ones(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    shared_draw = True

    def __init__(
        self,
        layer: nn.Module,
        names: Sequence[str] = ("weight",),
        p: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, generator)
        known = [name for name, _ in layer.named_parameters()]
        for name in names:
            if name not in known:
                raise ValueError(f"the layer has {', '.join(known)}, and no parameter {name!r}")
        self.layer = layer
        self.names = tuple(names)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return weight_drop(
            self.layer,
            *inputs,
            names=self.names,
            p=self.p,
            training=self.training,
            generator=self.generator,
            **named,
        )

    def extra_repr(self) -> str:
        return f"names={self.names}, p={self.p}"
