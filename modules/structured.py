"""Dropout of structures: blocks of a map, residual branches, layers, weights."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from modules.bitmask import bitmask_blocks, worth_a_kernel
from modules.checks import check_flag, check_probability
from modules.dropout import DropoutLayer, dropout, keep_mask, masked, nothing_kept, uniform
from modules.replay import first_call, repeated
from modules.tracing import is_proxy, record_function, recordable, transformed

# Where layers are skipped, whatever the default device is.
_CPU = torch.device("cpu")
_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}


def drop_path(
    x: Tensor,
    p: float = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    scale_by_keep: bool = True,
) -> Tensor:
    """Set each example's residual branch to zero with probability `p`. See `DropPath`."""
    check_probability("p", p)
    if is_proxy(x):
        return record_function(drop_path, x, p, training, generator, scale_by_keep)
    if not training or p == 0.0:
        return x
    shape = (x.shape[0],) + (1,) * (x.dim() - 1)
    return masked(x, shape, p, generator, scale=scale_by_keep)


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
    check_probability("p", p)
    check_block(block)
    if is_proxy(x):
        options = (p, block, training, generator, couple_channels, inplace)
        return record_function(drop_block, x, *options)
    dims = x.dim() - 2
    if dims not in _MAX_POOL:
        raise ValueError(f"blocks are for 1 to 3 dimensions after the channels, not {dims}")
    if not training or p == 0.0 or x.numel() == 0:
        return x
    if p == 1.0:
        return nothing_kept(x, inplace)
    # A comparison of sizes would fix them in a graph.
    if not torch.compiler.is_compiling() and worth_a_kernel(x):
        with repeated(generator):
            y = bitmask_blocks(x, p, block, generator, couple_channels)
        return x.copy_(y) if inplace else y
    # A position is kept if none of the block**dims blocks that could cover it begins.
    begin = 1.0 - (1.0 - p) ** (1.0 / block**dims)
    channels = 1 if couple_channels else x.shape[1]
    # Blocks may begin outside of the map, so that its borders are covered as often as its middle.
    shape = [x.shape[0], channels, *(size + block - 1 for size in x.shape[2:])]
    # Drawn as floats whatever x is: rates this small need the resolution.
    single = x.new_empty(0, dtype=torch.float32)
    begins = keep_mask(single, tuple(shape), 1.0 - begin, generator)
    dropped = _MAX_POOL[dims](begins, block, stride=1)
    keep = (1.0 - dropped).to(x.dtype).div_(1.0 - p)
    return x.mul_(keep) if inplace else x * keep


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

    The generator is one of the CPU, where the choice is made; for ranks to make the same choices,
    their generators have the same seed.

    Raises:
        RuntimeError: `torch.fx` traces the call in training, and could only record one choice.
    """
    check_probability("p", p)
    if not training or p == 0.0:
        return layer(*inputs, **named)
    if is_proxy(inputs[0]):
        raise RuntimeError(
            "torch.fx would record one choice of LayerDrop for all calls; trace a model that "
            "contains the layer, or call eval() first"
        )
    if p == 1.0:
        return _skipped(layer, inputs[0])
    if transformed() and (generator is None or not torch.compiler.is_compiling()):
        # No branch may depend on the draw: the layer is computed, and chosen or not.
        output = layer(*inputs, **named)
        skip = uniform((), torch.float32, _CPU, generator).to(output.device) < p
        return torch.where(skip, inputs[0].to(output.dtype), output)
    if uniform((), torch.float32, _CPU, generator).item() >= p:
        return layer(*inputs, **named)
    return _skipped(layer, inputs[0])


def _skipped(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a copy of `x` that gives each parameter of the layer a gradient of zero.

    Without one, training on several devices would wait for it.
    """
    # The sum over no elements: it is zero for infinite weights too.
    zeros = [p.flatten()[:0].sum().to(x) for p in layer.parameters() if p.requires_grad]
    return x + sum(zeros[1:], zeros[0]) if zeros else x.clone()


def _common_generator(device: torch.device) -> torch.Generator:
    """Make a generator on the CPU that is seeded alike on all ranks."""
    seed = _draw_seed()
    if _several_ranks():
        # The backend may not know the CPU.
        seed = seed.to(device)
        distributed.broadcast(seed, src=0)
    return torch.Generator(_CPU).manual_seed(int(seed))


def _draw_seed() -> Tensor:
    return torch.randint(2**62, (), device=_CPU)


def _several_ranks() -> bool:
    initialized = distributed.is_available() and distributed.is_initialized()
    return initialized and distributed.get_world_size() > 1


def weight_drop(
    layer: nn.Module,
    *inputs: Any,
    names: Sequence[str] = ("weight",),
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    variational: bool = False,
    **named: Any,
) -> Any:
    """Call a layer with each of its weights set to zero with probability `p`. See `WeightDrop`."""
    check_probability("p", p)
    if not training or p == 0.0:
        return layer(*inputs, **named)
    weights = {}
    for name in names:
        # A parameter, or what `torch.func.functional_call` put in its place.
        weight = attrgetter(name)(layer)
        if variational:
            shape = (weight.shape[0],) + (1,) * (weight.dim() - 1)
            weights[name] = masked(weight, shape, p, generator)
        else:
            weights[name] = dropout(weight, p, generator=generator)
    return torch.func.functional_call(layer, weights, inputs, named)


class DropPath(DropoutLayer):
    """Drops a residual branch, example by example (stochastic depth, Huang et al. 2016).

    Args:
        p: Probability to drop the branch, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        scale_by_keep: Whether to divide what is kept by 1 - p.

    Shape:
        (batch, ...); the output has the same shape.

    Example:
        >>> x = DropPath(0.5)(torch.ones(8, 3))
        >>> set(x.flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def __init__(
        self,
        p: float = 0.1,
        generator: torch.Generator | None = None,
        scale_by_keep: bool = True,
    ) -> None:
        super().__init__(p, generator)
        self.scale_by_keep = check_flag("scale_by_keep", scale_by_keep)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.p, self.training, self.generator, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"p={self.p}" + ("" if self.scale_by_keep else ", scale_by_keep=False")


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

    @recordable
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

    Where no branch may depend on a draw, the layer is computed at each call, and its output is
    taken or not: in `torch.func`, and compiled or exported in a single process without a generator.
    There the draw is from PyTorch's default generator, and batch norm within the layer sees each
    batch.

    Args:
        layer: A layer whose output has the shape of its first input.
        p: Probability to skip it, in [0, 1].
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
        self._own_generator = generator is None

    @recordable
    def forward(self, *inputs: Any, **named: Any) -> Any:
        generator = self.generator
        if self.training and self._own_generator:
            default = transformed() and not _several_ranks()
            generator = None if default else self._agreed_generator(inputs[0].device)
        return layer_drop(
            self.layer,
            *inputs,
            p=self.p,
            training=self.training,
            generator=generator,
            **named,
        )

    def _agreed_generator(self, device: torch.device) -> torch.Generator:
        """Return the layer's generator; the first call in training makes it."""
        first, again = first_call(self, lambda: self.generator is None)
        if self.generator is None:
            self.generator = _common_generator(device)
        elif first and again:
            # The first call drew a seed from the default generator: what is drawn after it must be
            # the same.
            _draw_seed()
        return self.generator


class WeightDrop(DropoutLayer):
    """Drops weights of a layer instead of its units (DropConnect, Wan et al. 2013).

    One draw serves the whole batch and, in a recurrent layer, all time steps: on the weights from
    hidden state to hidden state (`weight_hh_l0`) it is that of AWD-LSTM (Merity et al. 2018). The
    parameters stay those of the layer, so that an optimizer and a state dict see the whole weights.

    Args:
        layer: The layer whose weights are dropped.
        names: Which of its parameters, a sequence of names.
        p: Probability to drop a weight, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        variational: Whether to drop whole rows of a weight, all that lead into one unit, as
            AWD-LSTM's option of this name does.

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
        variational: bool = False,
    ) -> None:
        super().__init__(p, generator)
        if isinstance(names, str):
            raise ValueError(f"names is a sequence of names such as [{names!r}], not {names!r}")
        known = [name for name, _ in layer.named_parameters()]
        for name in names:
            if name not in known:
                raise ValueError(f"the layer has {', '.join(known)}, and no parameter {name!r}")
        self.layer = layer
        self.names = tuple(names)
        self.variational = check_flag("variational", variational)

    @recordable
    def forward(self, *inputs: Any, **named: Any) -> Any:
        return weight_drop(
            self.layer,
            *inputs,
            names=self.names,
            p=self.p,
            training=self.training,
            generator=self.generator,
            variational=self.variational,
            **named,
        )

    def extra_repr(self) -> str:
        return f"names={self.names}, p={self.p}" + (
            ", variational=True" if self.variational else ""
        )
