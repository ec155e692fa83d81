"""Concrete dropout: a rate that is learnt."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from modules.checks import check_amount, check_generator, check_rate
from modules.dropout import uniform
from modules.learned import LearnedDropout
from modules.tracing import is_proxy, record_function, recordable

# Of the relaxed Bernoulli distribution; the value of the paper's experiments.
TEMPERATURE = 0.1


def concrete_dropout(
    x: Tensor, p: Tensor, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Drop each feature by a relaxed draw that has a gradient for `p`. See `ConcreteDropout`."""
    if is_proxy(x):
        return record_function(concrete_dropout, x, p, training, generator)
    if not training:
        return x
    # In single precision at least: the logarithms of rates near 0 and 1 need it.
    rate = p.to(torch.promote_types(x.dtype, torch.float32))
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    draws = uniform(shape, rate.dtype, x.device, generator)
    # Neither 0 nor 1, where the logarithm has no value, nor its gradient.
    lowest, highest = torch.finfo(rate.dtype).tiny, 1.0 - torch.finfo(rate.dtype).eps
    rate, draws = rate.clamp(lowest, highest), draws.clamp(lowest, highest)
    dropped = ((rate.logit() + draws.logit()) / TEMPERATURE).sigmoid()
    return x * ((1.0 - dropped) / (1.0 - rate)).to(x.dtype)


class ConcreteDropout(LearnedDropout):
    """Dropout that learns its rate by gradient descent (Gal, Hron & Kendall 2017).

    The draw of each feature is relaxed to a number between 0 and 1, most of them near one of both,
    so that the loss has a gradient for the rate. Positions of a feature map share the draw. The
    loss alone would lead the rate to zero: add `penalty` of each layer, divided by the number of
    training examples.

    Args:
        features: Number of features (dimension 1 of the input).
        p: The rate to begin with, in (0, 1).
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
            raise ValueError(f"p of concrete dropout begins in (0, 1), not at {p!r}")
        check_amount("features", features, whole=True)
        check_generator(generator)
        self.features = features
        self.generator = generator
        self.initial_p = float(p)
        # Of one element and not a scalar, which `fully_shard` does not take.
        self.logit = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the rate to the one that it began with."""
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
        """The rate as it is now, a scalar with a gradient.

        Between the calls of a layer under `fully_shard` all ranks must ask for it together.
        """
        return self._whole_logit().sigmoid()

    def _whole_logit(self) -> Tensor:
        """Return the parameter as a scalar; under `fully_shard` one rank holds it."""
        return self.whole(self.logit).sum()

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        # Of one element, and whole while the layer is called.
        return concrete_dropout(x, self.logit.sigmoid(), self.training, self.generator)

    def penalty(self, weight: Tensor | None = None, length_scale: float = 0.01) -> Tensor:
        """The divergence from the prior, a scalar with a gradient; equation 3 of the paper.

        It is the negative entropy of the draws, lowest at a rate of one half, and for the weights
        that meet the dropped features `length_scale**2 / 2 * weight**2 / (1 - p)` summed up: large
        weights make a high rate expensive.

        Args:
            weight: Weights of the layer after this one; None leaves them to weight decay.
            length_scale: Of the Gaussian prior over the weights.
        """
        # By logsigmoid: a logarithm of the rate itself loses its gradient near 0 and 1.
        logit = self._whole_logit()
        p, log_p = logit.sigmoid(), nn.functional.logsigmoid(logit)
        log_keep = nn.functional.logsigmoid(-logit)
        total = self.features * (p * log_p + (1.0 - p) * log_keep)
        if weight is not None:
            total = total + length_scale**2 / 2 * weight.square().sum() / (1.0 - p)
        return total

    def extra_repr(self) -> str:
        # On meta the rate has no value, and in pieces it is not for one rank to ask for.
        unknown = self.logit.is_meta or hasattr(self.logit, "full_tensor")
        p = self.initial_p if unknown else self.p.item()
        return f"features={self.features}, p={p:.3g}"
