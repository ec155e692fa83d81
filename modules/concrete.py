"""Concrete dropout: dropout with a learned rate."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_amount, check_generator, check_rate
from .dropout import uniform
from .dropoutkinds import DropoutSite, register_dropout
from .learned import LearnedDropout
from .tracing import is_proxy, record_function, recordable

# Temperature of the relaxed Bernoulli distribution; the value in the paper's experiments.
TEMPERATURE = 0.1


def concrete_dropout(
    x: Tensor, p: Tensor, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Drop each feature by a relaxed draw with a gradient for `p`. See `ConcreteDropout`."""
    if is_proxy(x):
        return record_function(concrete_dropout, x, p, training, generator)
    if not training:
        return x
    # At least in float32: logarithms of rates near 0 and 1 need the precision.
    rate = p.to(torch.promote_types(x.dtype, torch.float32))
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    draws = uniform(shape, rate.dtype, x.device, generator)
    # Exclude 0 and 1, where logits and their gradients are infinite.
    lowest, highest = torch.finfo(rate.dtype).tiny, 1.0 - torch.finfo(rate.dtype).eps
    rate, draws = rate.clamp(lowest, highest), draws.clamp(lowest, highest)
    dropped = ((rate.logit() + draws.logit()) / TEMPERATURE).sigmoid()
    return x * ((1.0 - dropped) / (1.0 - rate)).to(x.dtype)


class ConcreteDropout(LearnedDropout):
    """Dropout that learns its rate by gradient descent (Gal, Hron & Kendall 2017).

    The binary draw of each feature is relaxed to a number in (0, 1), usually close to 0 or 1, so
    that the loss has a gradient for the rate. All positions of a feature map share one draw. The
    loss alone would drive the rate to zero: add the `penalty` of each layer, divided by the number
    of training examples.

    Args:
        features: Number of features (dimension 1 of the input).
        p: Initial rate, in (0, 1).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, features, ...); the output has the same shape.

    Raises:
        ValueError: `p` is not in (0, 1).

    Example:
        >>> layer = ConcreteDropout(8, p=0.2)
        >>> layer(torch.ones(4, 8)).shape, round(layer.p.item(), 4)
        (torch.Size([4, 8]), 0.2)
    """

    def __init__(
        self, features: int, p: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if check_rate("p", p) == 0.0:
            raise ValueError(f"p is an initial rate in (0, 1), not {p!r}")
        check_amount("features", features, whole=True)
        check_generator(generator)
        self.features = features
        self.generator = generator
        self.initial_p = float(p)
        # One element, not a scalar: `fully_shard` rejects scalars.
        self.logit = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the rate to the initial rate."""
        nn.init.constant_(self.logit, math.log(self.initial_p / (1.0 - self.initial_p)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        # Version 0.1 saved a scalar.
        saved = state_dict.get(f"{prefix}logit")
        if isinstance(saved, Tensor) and saved.dim() == 0:
            state_dict[f"{prefix}logit"] = saved.view(1)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @property
    def p(self) -> Tensor:
        """The current rate, a scalar with a gradient.

        Under `fully_shard`, outside of a call of the layer, all ranks must read it together.
        """
        return self._whole_logit().sigmoid()

    def _whole_logit(self) -> Tensor:
        """Return the parameter as a scalar; under `fully_shard` one rank holds it."""
        return self.whole(self.logit).sum()

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        # During a call the parameter is not sharded.
        return concrete_dropout(x, self.logit.sigmoid(), self.training, self.generator)

    def penalty(self, weight: Tensor | None = None, length_scale: float = 0.01) -> Tensor:
        """Return the KL divergence from the prior, a scalar with a gradient (equation 3).

        It is the negative entropy of the draws, lowest at a rate of one half, plus the sum of
        `length_scale**2 / 2 * weight**2 / (1 - p)` over the weights of the next layer, which
        penalizes high rates of features with large weights.

        Args:
            weight: Weight of the next layer; if None it is regularized by weight decay alone.
            length_scale: Length scale of the Gaussian prior of the weights.
        """
        # logsigmoid: the logarithm of the rate would lose its gradient near 0 and 1.
        logit = self._whole_logit()
        p, log_p = logit.sigmoid(), nn.functional.logsigmoid(logit)
        log_keep = nn.functional.logsigmoid(-logit)
        total = self.features * (p * log_p + (1.0 - p) * log_keep)
        if weight is not None:
            total = total + length_scale**2 / 2 * weight.square().sum() / (1.0 - p)
        return total

    def extra_repr(self) -> str:
        # On the meta device the rate has no value; a sharded one must be read by all ranks
        # together.
        unknown = self.logit.is_meta or hasattr(self.logit, "full_tensor")
        p = self.initial_p if unknown else self.p.item()
        return f"features={self.features}, p={p:.3g}"


@register_dropout("concrete")
def _concrete(p: float, site: DropoutSite) -> nn.Module:
    return ConcreteDropout(site.features, p)
