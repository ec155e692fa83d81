"""K-winners-take-all: keep the most active units. No dropout, though often taken for one."""

import math

import torch
from torch import Tensor, nn

from modules.checks import check_amount, check_rate
from modules.replay import first_call, may_be_checkpointed
from modules.tracing import is_proxy, record_function, recordable, transformed


def k_winners(x: Tensor, p: float = 0.5, boosted: Tensor | None = None) -> Tensor:
    """Set the share `p` of features that are least active to zero, position by position.

    See `KWinners`.

    Args:
        x: Activations.
        p: Fraction of features to silence, in [0, 1); at least one is kept.
        boosted: What the winners are chosen by; x itself if None.

    Shape:
        x and boosted: (batch, features, ...). The output has the same shape.
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
    # A loser that is infinite would be NaN times zero. Where the CPU can look for one at once, it
    # does: to choose by a mask that cannot be predicted takes it many times as long as a product.
    looked_at = x.device.type == "cpu" and not transformed()
    if looked_at and math.isfinite(x.detach().sum().item()):
        return x * won
    return torch.where(won > 0, x, 0.0)


@torch.library.custom_op("regain::first_duty_cycle", mutates_args=())
def _first_duty_cycle(duty_cycle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the duty cycles of a first call, and 1, or 0 at the second one: when compiled too.

    A compiled layer asks at each call whether an eager checkpoint has called it before.
    """
    found, again = first_call("KWinners", duty_cycle.clone)
    return found.clone(), duty_cycle.new_tensor(float(not again))


@_first_duty_cycle.register_fake
def _(duty_cycle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(duty_cycle), duty_cycle.new_empty(())


class KWinners(nn.Module):
    """Keeps the most active features at each position, in training and in evaluation.

    This is "keep only the top units" (Makhzani & Frey 2014, k-sparse autoencoders), with the
    boosting of sparse networks (Ahmad & Scheinkman 2019): a feature that wins rarely is ranked
    higher, so that none falls silent for good. It is NOT dropout: nothing is random, nothing is
    scaled, and it is the strongest features that are kept, not any. It makes activations sparse.
    Its place is after a ReLU: the boost multiplies, and would rank what is negative lower.

    Args:
        features: Number of features (dimension 1 of the input).
        p: Fraction of features to silence, in [0, 1); at least one is kept.
        boost: How strongly rare winners are favoured; 0 for not at all.
        period: Number of examples, about, that the duty cycles are averaged over.

    Shape:
        (batch, features, ...); the output has the same shape.

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
        # How often each feature won lately.
        self.register_buffer("duty_cycle", torch.empty(features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let all features begin as if they had won at the rate aimed at."""
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
            duty_cycle, first = _first_duty_cycle(duty_cycle)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        favour = (self.boost * (1.0 - self.p - duty_cycle)).exp().view(shape)
        y = k_winners(x, self.p, x.detach() * favour)
        if self.training:
            with torch.no_grad():
                won = (y != 0).transpose(0, 1).flatten(1)
                # A batch without examples moves nothing, nor does the second call of a checkpoint.
                if won.shape[1]:
                    # A comparison would fix a size that is a symbol.
                    least = torch.sym_min if torch.compiler.is_compiling() else min
                    weight = first * least(1.0, x.shape[0] / max(1, self.period))
                    self.duty_cycle.lerp_(won.float().mean(1).to(self.duty_cycle.dtype), weight)
        return y

    def extra_repr(self) -> str:
        return f"features={self.features}, p={self.p}, boost={self.boost}, period={self.period}"
