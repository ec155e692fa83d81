"""K-winners-take-all: keep only the most active units. It is not a kind of dropout."""

import math

import torch
from torch import Tensor, nn

from .checks import check_amount, check_rate
from .dropoutkinds import DropoutSite, register_dropout
from .replay import first_call, may_be_checkpointed
from .tracing import is_proxy, record_function, recordable, transformed


def k_winners(x: Tensor, p: float = 0.5, boosted: Tensor | None = None) -> Tensor:
    """Set the fraction `p` of least active features to zero, at each position.

    See `KWinners`.

    Args:
        x: Activations.
        p: Fraction of features to set to zero, in [0, 1); at least one is kept.
        boosted: Activations that determine the winners; x itself if None.

    Shape:
        x and boosted: (batch, features, ...). The output has the same shape.

    Example:
        >>> k_winners(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 0.5)
        tensor([[0.0000, 0.4000, 0.3000, 0.0000]])
    """
    check_rate("p", p)
    if is_proxy(x):
        return record_function(k_winners, x, p, boosted)
    if p == 0.0:
        return x
    ranked = x if boosted is None else boosted
    count = max(1, round((1.0 - p) * int(x.shape[1])))
    winners = ranked.topk(count, dim=1, sorted=False).indices
    won = torch.zeros_like(x).scatter_(1, winners, 1.0)
    # A product would turn infinite losers into NaN. `torch.where` with a random mask is many times
    # slower on the CPU, so it is used there only if a value is not finite.
    checked = x.device.type == "cpu" and not transformed()
    if checked and math.isfinite(x.detach().sum().item()):
        return x * won
    return torch.where(won > 0, x, 0.0)


@torch.library.custom_op("regain::duty_cycle_of_first_call", mutates_args=())
def _duty_cycle_of_first_call(duty_cycle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the duty cycles of the first call of a checkpoint, and 1 in that call, else 0.

    A custom operation, so that a compiled layer under an eager checkpoint also looks them up at
    each call.
    """
    found, again = first_call("KWinners", duty_cycle.clone)
    return found.clone(), duty_cycle.new_tensor(float(not again))


@_duty_cycle_of_first_call.register_fake
def _(duty_cycle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(duty_cycle), duty_cycle.new_empty(())


class KWinners(nn.Module):
    """Keeps only the most active features at each position, in training and evaluation.

    These are k-sparse activations (Makhzani & Frey 2014) with the boosting of sparse networks
    (Ahmad & Scheinkman 2019): features that win rarely are ranked higher, so that none stays
    inactive. It is NOT dropout: nothing is random or scaled, and the strongest features are kept.
    Put it after a ReLU: boosting multiplies, and would rank negative values lower.

    Args:
        features: Number of features (dimension 1 of the input).
        p: Fraction of features to set to zero, in [0, 1); at least one is kept.
        boost: Strength of the boosting of rare winners, at least 0; 0 turns it off.
        period: Number of examples of the running average of the duty cycles, approximately.

    Shape:
        (batch, features, ...); the output has the same shape.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> x = KWinners(4, p=0.5)(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
        >>> (x > 0).tolist()
        [[False, True, True, False]]
    """

    duty_cycle: Tensor

    def __init__(
        self, features: int, p: float = 0.5, boost: float = 1.0, period: int = 1000
    ) -> None:
        super().__init__()
        self.p = check_rate("p", p)
        check_amount("features", features, whole=True)
        check_amount("boost", boost)
        check_amount("period", period, whole=True)
        self.features = features
        self.boost = boost
        self.period = period
        # Running average of how often each feature wins.
        self.register_buffer("duty_cycle", torch.empty(features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all duty cycles to the target rate, 1 - p."""
        self.duty_cycle.fill_(1.0 - self.p)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0:
            return x
        duty_cycle, first = self.duty_cycle, 1.0
        if may_be_checkpointed():
            duty_cycle, again = first_call(self, self.duty_cycle.clone)
            first = float(not again)
        elif torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            duty_cycle, first = _duty_cycle_of_first_call(duty_cycle)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        factor = (self.boost * (1.0 - self.p - duty_cycle)).exp().view(shape)
        y = k_winners(x, self.p, x.detach() * factor)
        if self.training:
            with torch.no_grad():
                won = (y != 0).transpose(0, 1).flatten(1)
                # An empty batch and the second call of a checkpoint update nothing.
                if won.shape[1]:
                    # `min` would specialize a symbolic size.
                    least = torch.sym_min if torch.compiler.is_compiling() else min
                    weight = first * least(1.0, x.shape[0] / max(1, self.period))
                    self.duty_cycle.lerp_(won.float().mean(1).to(self.duty_cycle.dtype), weight)
        return y

    def extra_repr(self) -> str:
        return f"features={self.features}, p={self.p}, boost={self.boost}, period={self.period}"


@register_dropout("kwinners")
def _kwinners(p: float, site: DropoutSite) -> nn.Module:
    return KWinners(site.features, p)
