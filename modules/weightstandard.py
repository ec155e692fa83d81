"""Weight standardization: normalization of weights instead of activations."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .checks import check_amount

Layer = TypeVar("Layer", bound=nn.Module)
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# With this gain a ReLU maps normal inputs with variance 1 to outputs with variance 1.
RELU_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))


def weight_standardization(
    weight: Tensor, gain: Tensor | None = None, scaled: bool = False, eps: float = 1e-6
) -> Tensor:
    """Standardize the weights of each unit to mean 0 and variance 1. See `WeightStandardization`.

    Args:
        weight: (units, ...), the weight of a linear layer or convolution.
        gain: (units,), a factor for each unit; 1 if None.
        scaled: Whether the variance is 1 / (number of weights of a unit) instead of 1.
        eps: Added to the sum of squared deviations from the mean.

    Example:
        >>> weight_standardization(torch.tensor([[1.0, 3.0]])).round()
        tensor([[-1.,  1.]])
    """
    units, fan_in = weight.shape[0], weight[0].numel()
    scale = weight.new_ones(units) if gain is None else gain
    if scaled:
        scale = scale / math.sqrt(fan_in)
    # Batch norm of one example whose channels are the units: faster than single operations.
    rows = weight.reshape(1, units, fan_in)
    normed = F.batch_norm(rows, None, None, scale, training=True, eps=eps / fan_in)
    return normed.view_as(weight)


class WeightStandardization(nn.Module):
    """Standardizes the weights of each unit of a layer (Qiao et al. 2019).

    The layer computes with weights of mean 0 and variance 1 for each unit; the weights before
    standardization are learned. Put a norm after the layer to set the scale of the output; with
    group norm no large batch is needed. `scaled` is for networks without norms (Brock et al. 2021,
    scaled weight standardization): the variance is 1 / (number of weights of a unit), which
    preserves the scale of the signal, and each unit learns a gain.

    It is a parametrization, registered by `WeightStandardization.of(layer)`: the state dict holds
    the learned weights as `parametrizations.weight.original`.

    Args:
        units: Number of units: rows of a linear layer, output channels of a convolution.
        scaled: Whether to divide by the root of the number of weights, and to learn a gain.
        gain: Initial gain, more than 0; only with `scaled`. `RELU_GAIN`, 1.713, preserves the
            variance from one layer with ReLU to the next.
        eps: Added to the sum of squared deviations from the mean, more than 0.

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
            raise ValueError(f"gain={gain!r} requires scaled=True; otherwise a norm sets the scale")
        self.scaled = scaled
        self.eps = eps
        self.gain = nn.Parameter(torch.full((units,), float(gain))) if scaled else None

    @staticmethod
    def of(layer: Layer, scaled: bool = False, gain: float = 1.0, eps: float = 1e-6) -> Layer:
        """Standardize the weights of a linear layer or convolution, and return the layer.

        Args:
            layer: An `nn.Linear` or `nn.Conv*`; it is changed.
            scaled: As in the constructor.
            gain: As in the constructor.
            eps: As in the constructor.

        Raises:
            ValueError: It is another layer, or its units have a single weight, which would be zero.
        """
        if not isinstance(layer, KINDS):
            names = ", ".join(f"nn.{kind.__name__}" for kind in KINDS)
            raise ValueError(
                f"only weights of {names} can be standardized, not of {type(layer).__name__}"
            )
        weight = layer.weight
        if weight[0].numel() < 2:
            raise ValueError(
                f"each unit has a single weight, which would be standardized to zero: {layer!r}"
            )
        standard = WeightStandardization(len(weight), scaled, gain, eps)
        standard.to(device=weight.device, dtype=weight.dtype)
        parametrize.register_parametrization(layer, "weight", standard)
        return layer

    def forward(self, weight: Tensor) -> Tensor:
        return weight_standardization(weight, self.gain, self.scaled, self.eps)

    def extra_repr(self) -> str:
        return f"scaled={self.scaled}, eps={self.eps}"
