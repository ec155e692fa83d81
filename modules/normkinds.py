"""Kinds of normalization by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .registry import Registry

NormFactory = Callable[..., nn.Module]

NORM_KINDS: Registry[NormFactory] = Registry("normalization")
# Kinds that can take their statistics over the batches of all ranks.
SYNCHRONIZED = ("batch", "sync")


def register_norm(name: str, needs_batch: bool = False) -> Callable[[NormFactory], NormFactory]:
    """Register a kind of norm: a class or function `(features, dims, masked=False, **options)`.

    `options` are `momentum`, `eps`, `affine`, `ghost_size`, `track_running_stats`, `device` and
    `dtype`, as in `batch_norm`. With `masked` the layer is called as `norm(x, mask)`.

    Args:
        name: Name for `Regularization(normalization=name)`.
        needs_batch: Whether its statistics come from the batch, which makes a bias before it
            redundant. A class that is found by its import path has an attribute of this name.

    Example:
        >>> from torch import nn
        >>> from regain import Regularization
        >>> @register_norm("instance")
        ... def instance(features, dims, masked=False, **options):
        ...     return nn.LazyInstanceNorm2d()
        >>> type(Regularization(normalization="instance").norm_layer(8, dims=2)).__name__
        'LazyInstanceNorm2d'
    """

    def add(factory: NormFactory) -> NormFactory:
        stored: Any = factory
        stored.needs_batch = needs_batch
        return NORM_KINDS.register(name)(factory)

    return add
