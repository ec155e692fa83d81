"""Structured dropout: blocks of a feature map, residual branches, layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from .checks import check_flag, check_probability
from .cpudropout import bitmask_blocks, uses_bitmask
from .dropout import DropoutLayer, keep_mask, masked, nothing_kept, uniform
from .dropoutkinds import DropoutSite, register_dropout, unsuitable
from .replay import first_call, repeated
from .tracing import is_proxy, record_function, recordable, transformed

# LayerDrop draws here, whatever the default device is: the choice is made in Python.
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
    """Set blocks of adjacent positions to zero, a fraction `p` of all. See `DropBlock`.

    Raises:
        ValueError: `block` is not a whole number of at least 1, or too large; `x` does not have one
            to three dimensions after the channels.
    """
    check_probability("p", p)
    check_block(block)
    if is_proxy(x):
        options = (p, block, training, generator, couple_channels, inplace)
        return record_function(drop_block, x, *options)
    dims = x.dim() - 2
    if dims not in _MAX_POOL:
        raise ValueError(f"drop_block needs 1 to 3 dimensions after the channels, not {dims}")
    if not training or p == 0.0 or x.numel() == 0:
        return x
    if p == 1.0:
        return nothing_kept(x, inplace)
    # Under compilation, a comparison of sizes would specialize the graph to them.
    if not torch.compiler.is_compiling() and uses_bitmask(x):
        with repeated(generator):
            y = bitmask_blocks(x, p, block, generator, couple_channels)
        return x.copy_(y) if inplace else y
    # A position is kept if none of the block**dims blocks that can cover it starts.
    start_rate = 1.0 - (1.0 - p) ** (1.0 / block**dims)
    channels = 1 if couple_channels else x.shape[1]
    # Blocks may start outside the map, so that borders are dropped as often as the middle.
    shape = [x.shape[0], channels, *(size + block - 1 for size in x.shape[2:])]
    # In float32 whatever the type of x is: such small rates need the precision.
    single = x.new_empty(0, dtype=torch.float32)
    starts = keep_mask(single, tuple(shape), 1.0 - start_rate, generator)
    dropped = _MAX_POOL[dims](starts, block, stride=1)
    keep = (1.0 - dropped).to(x.dtype).div_(1.0 - p)
    return x.mul_(keep) if inplace else x * keep


def check_block(block: int) -> None:
    """Raise an error that names `block` if it is not a valid block size.

    Raises:
        ValueError: `block` is not a whole number of at least 1 and below 2**31.
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

    The generator must be on the CPU, where the choice is made. For all ranks to make the same
    choices, give their generators the same seed.

    Raises:
        RuntimeError: `torch.fx` traces the call in training: it could record only one choice.
    """
    check_probability("p", p)
    if not training or p == 0.0:
        return layer(*inputs, **named)
    if is_proxy(inputs[0]):
        raise RuntimeError(
            "torch.fx would record a single choice of LayerDrop for all calls; trace a model that "
            "contains the layer, or call eval() first"
        )
    if p == 1.0:
        return _skipped(layer, inputs[0])
    if transformed() and (generator is None or not torch.compiler.is_compiling()):
        # Control flow cannot depend on the draw: compute the layer, then select its output.
        output = layer(*inputs, **named)
        skip = uniform((), torch.float32, _CPU, generator).to(output.device) < p
        return torch.where(skip, inputs[0].to(output.dtype), output)
    if uniform((), torch.float32, _CPU, generator).item() >= p:
        return layer(*inputs, **named)
    return _skipped(layer, inputs[0])


def _skipped(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a copy of `x` that gives each parameter of the layer a gradient of zero.

    Without a gradient, DistributedDataParallel would wait for it.
    """
    # An empty sum is zero even if weights are infinite.
    zeros = [p.flatten()[:0].sum().to(x) for p in layer.parameters() if p.requires_grad]
    return x + sum(zeros[1:], zeros[0]) if zeros else x.clone()


def _common_generator(device: torch.device) -> torch.Generator:
    """Make a CPU generator with the same seed on all ranks."""
    seed = _draw_seed()
    if _several_ranks():
        # The backend may not support CPU tensors.
        seed = seed.to(device)
        distributed.broadcast(seed, src=0)
    return torch.Generator(_CPU).manual_seed(int(seed))


def _draw_seed() -> Tensor:
    return torch.randint(2**62, (), device=_CPU)


def _several_ranks() -> bool:
    initialized = distributed.is_available() and distributed.is_initialized()
    return initialized and distributed.get_world_size() > 1


class DropPath(DropoutLayer):
    """Drops the residual branch of single examples (stochastic depth, Huang et al. 2016).

    Args:
        p: Probability to drop the branch, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        scale_by_keep: Whether to divide the kept branches by 1 - p.

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
    """Drops blocks of adjacent positions in each channel (Ghiasi et al. 2018).

    Each position, at the border too, is dropped with probability exactly `p`. The paper ignores
    that blocks overlap, and therefore drops less than `p`; it also keeps blocks inside the map, and
    scales by the fraction that was kept in the batch instead of the expected fraction. The paper
    and torchvision draw a mask for each channel. The default of timm is one mask for all channels
    of an example: `couple_channels`.

    Args:
        p: Probability to drop a position, in [0, 1).
        block: Side of a block, in positions; 7 in the paper, for maps of 14 or more.
        generator: Source of randomness; the default one of the device if None.
        couple_channels: Whether all channels of an example share one mask.
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

    All ranks of a distributed run make the same choices: each layer has its own generator, with a
    seed that rank 0 broadcasts at the first call in training. Outputs are not scaled, as in the
    paper.

    Under `torch.func`, and when compiled or exported in a single process without a generator,
    control flow cannot depend on a draw. The layer is then computed at each call, and its output is
    used or discarded. The draw comes from PyTorch's default generator, and batch norm in the layer
    sees every batch.

    Args:
        layer: A layer whose output has the shape of its first input.
        p: Probability to skip it, in [0, 1].
        generator: Source of randomness, on the CPU; if None the layer makes its own.

    Shape:
        The shapes of the layer.

    Raises:
        ValueError: An argument is out of its range.

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
            generator = None if default else self._common_generator(inputs[0].device)
        return layer_drop(
            self.layer,
            *inputs,
            p=self.p,
            training=self.training,
            generator=generator,
            **named,
        )

    def _common_generator(self, device: torch.device) -> torch.Generator:
        """Return the layer's generator; the first call in training makes it."""
        first, again = first_call(self, lambda: self.generator is None)
        if self.generator is None:
            self.generator = _common_generator(device)
        elif first and again:
            # The first call drew a seed from the default generator. Draw again, so that later draws
            # of the second call are the same.
            _draw_seed()
        return self.generator


@register_dropout("block")
def _block(p: float, site: DropoutSite) -> nn.Module:
    if site.dims == 0:
        raise unsuitable("block", "drops adjacent positions, and the hidden layers are vectors")
    return DropBlock(p, site.block)
