"""Kinds of dropout by name, and the description of a site in a model."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .registry import Registry


class DropoutSite(NamedTuple):
    """A hidden layer after which a model applies dropout."""

    features: int
    """Number of channels."""
    dims: int
    """Number of dimensions after the channels; 0 for vectors."""
    time: bool = False
    """Whether the last dimension is time."""
    selu: bool = False
    """Whether the previous layer is a SELU."""
    block: int = 3
    """Side of a block, in positions."""


DropoutFactory = Callable[[float, DropoutSite], nn.Module]

DROPOUT_KINDS: Registry[DropoutFactory] = Registry("dropout_kind")


def register_dropout(name: str) -> Callable[[DropoutFactory], DropoutFactory]:
    """Register a kind of dropout: a class or function called with `(p, site)`.

    Args:
        name: Name for `Regularization(dropout_kind=name)`.

    Example:
        >>> from regain import Dropout, Regularization
        >>> @register_dropout("half")
        ... def half(p, site):
        ...     return Dropout(p / 2)
        >>> Regularization(dropout=0.5, dropout_kind="half").dropout_layer(64, dims=2)
        Dropout(p=0.25)
    """
    return DROPOUT_KINDS.register(name)


def unsuitable(kind: str, reason: str) -> ValueError:
    """Return the error for a kind of dropout that does not suit a site."""
    return ValueError(f"dropout_kind={kind} {reason}; use another kind")
