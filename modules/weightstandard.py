"""Weight standardization: a norm of the weights instead of the activations."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from modules.dropout import check_amount

Layer = TypeVar("Layer", bound=nn.Module)
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# With it the outputs of a ReLU have variance 1, if its inputs are normal with variance 1.
RELU_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))


def weight_standardization(
    weight: Tensor, gain: Tensor | None = None, scaled: bool = False, eps: float = 1e-6
) -> Tensor:
    """Give the weights into each unit mean 0 and variance 1. See `WeightStandardization`.

    Args:
        weight: (units, ...), as linear layers and convolutions have it.
        gain: (units,), a factor for each unit; 1 if None.
        scaled: Whether the variance is 1 over the number of weights into a unit.
        eps: Added to the sum of squares, after the mean is subtracted, that a unit is divided by.
    """
    units, fan_in = weight.shape[0], weight[0].numel()
    scale = weight.new_ones(units) if gain is None else gain
    if scaled:
        scale = scale / math.sqrt(fan_in)
    # Batch norm of a batch of one, whose channels are the units: faster than its single operations.
    rows = weight.reshape(1, units, fan_in)
    normed = F.batch_norm(rows, None, None, scale, training=True, eps=eps / fan_in)
    return normed.view_as(weight)


class WeightStandardization(nn.Module):
    """Standardizes the weights into each unit of a layer (Qiao et al. 2019).

    The layer computes with weights of mean 0 and variance 1 for each unit, and learns the weights
    that these come from. A norm shall follow, which sets the scale of the output: group norm with
    it needs no large batch. `scaled` is for a network without norms (Brock et al. 2021, scaled
    weight standardization): the variance is 1 over the number of weights into a unit, so that the
    signal keeps its scale, and each unit learns a gain.

    It is a parametrization, which `WeightStandardization.of(layer)` registers: the state dict has
    the learnt weights as `parametrizations.weight.original`.

    Args:
        units: Number of units: rows of a linear layer, output channels of a convolution.
        scaled: Whether to divide by the root of the number of weights, and to learn a gain.
        gain: First value of the gain, more than 0; with `scaled` alone. `RELU_GAIN`, 1.713, keeps
            the variance from one layer with ReLU to the next.
        eps: Added to the sum of squares, after the mean is subtracted, that a unit is divided by.

    Shape:
        (units, ...); the output has the same shape.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> layer = WeightStandardization.of(nn.Conv2d(3, 8, 3))
        >>> layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(
        self, units: int, scaled: bool = False, gain: float = 1.0, eps: float = 1e-6
    ) -> None:
        super().__init__()
        check_amount("units", units, whole=True)
        for name, value in (("units", units), ("gain", gain), ("eps", eps)):
            check_amount(name, value)
            if not value:
                raise ValueError(f"{name} is more than 0, not {value!r}")
        if gain != 1.0 and not scaled:
            raise ValueError(f"gain={gain!r} is for scaled=True; a norm sets the scale otherwise")
        self.scaled = scaled
        self.eps = eps
        self.gain = nn.Parameter(torch.full((units,), float(gain))) if scaled else None

    @staticmethod
    def of(layer: Layer, scaled: bool = False, gain: float = 1.0, eps: float = 1e-6) -> Layer:
        """Let a linear layer or convolution compute with standardized weights, and return it.

        Args:
            layer: An `nn.Linear` or `nn.Conv*`; it is changed.
            scaled: As in the constructor.
            gain: As in the constructor.
            eps: As in the constructor.

        Raises:
            ValueError: It is another layer, or has one weight to a unit, which would be zero.
        """
        if not isinstance(layer, KINDS):
            names = ", ".join(f"nn.{kind.__name__}" for kind in KINDS)
            raise ValueError(f"weights of {names} are standardized, not of {type(layer).__name__}")
        weight = layer.weight
        if weight[0].numel() < 2:
            raise ValueError(f"a single weight into a unit would be zero: {layer!r}")
        standard = WeightStandardization(len(weight), scaled, gain, eps)
        standard.to(device=weight.device, dtype=weight.dtype)
        parametrize.register_parametrization(layer, "weight", standard)
        return layer

    def forward(self, weight: Tensor) -> Tensor:
        return weight_standardization(weight, self.gain, self.scaled, self.eps)

    def extra_repr(self) -> str:
        return f"scaled={self.scaled}, eps={self.eps}"
