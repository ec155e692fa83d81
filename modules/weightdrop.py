"""Dropout of weights: DropConnect."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from .checks import check_flag, check_probability
from .dropout import DropoutLayer, dropout, masked
from .tracing import recordable


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
        # The parameter, or its replacement under `torch.func.functional_call`.
        weight = attrgetter(name)(layer)
        if variational:
            shape = (weight.shape[0],) + (1,) * (weight.dim() - 1)
            weights[name] = masked(weight, shape, p, generator)
        else:
            weights[name] = dropout(weight, p, generator=generator)
    return torch.func.functional_call(layer, weights, inputs, named)


class WeightDrop(DropoutLayer):
    """Drops weights of a layer instead of its units (DropConnect, Wan et al. 2013).

    The whole batch and, in a recurrent layer, all time steps share one mask. On the
    hidden-to-hidden weights (`weight_hh_l0`) this is the weight drop of AWD-LSTM (Merity et al.
    2018). The parameters of the layer are not changed: the optimizer and the state dict see the
    full weights.

    Args:
        layer: The layer whose weights are dropped.
        names: Names of the parameters to drop, a sequence.
        p: Probability to drop a weight, in [0, 1].
        generator: Source of randomness; the default one of the device if None.
        variational: Whether to drop whole rows of a weight, all inputs of one unit, as the option
            of this name in AWD-LSTM does.

    Shape:
        The shapes of the layer.

    Raises:
        ValueError: The layer has no parameter with one of the names.

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
            raise ValueError(
                f"names is a sequence of names, such as [{names!r}], not the string {names!r}"
            )
        known = [name for name, _ in layer.named_parameters()]
        for name in names:
            if name not in known:
                raise ValueError(
                    f"the layer has no parameter {name!r}; its parameters are {', '.join(known)}"
                )
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
