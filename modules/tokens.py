"""Dropout of tokens: a training step sees, and computes, a part of each sequence."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.checks import check_amount, check_flag, check_rate
from modules.dropout import DropoutLayer, uniform
from modules.tracing import is_proxy, record_function, recordable

# So that halves round up, whatever the rate's last bit is.
TIE = 1e-3


class KeptTokens(NamedTuple):
    """What token dropout leaves of a batch.

    `x` (batch, kept, ...) are the tokens; `mask` (batch, kept) is True at valid ones, None if no
    mask was given; `indices` (batch, kept) are their indices in the sequence.
    """

    x: Tensor
    mask: Tensor | None
    indices: Tensor


def token_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
    prefix: int = 1,
    ordered: bool = True,
) -> KeptTokens:
    """Remove a fraction `p` of the tokens of each sequence. See `TokenDropout`.

    Raises:
        ValueError: `x` has fewer than two dimensions, `mask` is not (batch, tokens), or `prefix` is
            not a whole number of at least 0.
    """
    check_rate("p", p)
    check_amount("prefix", prefix, whole=True)
    if is_proxy(x):
        given = (p, training, generator, mask, prefix, ordered)
        function: Any = token_dropout
        recorded: Any = record_function(function, x, *given)
        return recorded  # type: ignore[no-any-return]
    if x.dim() < 2:
        raise ValueError(f"tokens are (batch, tokens, ...), not {tuple(x.shape)}")
    batch, length = x.shape[:2]
    if mask is not None:
        if mask.shape != (batch, length):
            raise ValueError(
                f"the mask of {(batch, length)} tokens has that shape, not {tuple(mask.shape)}"
            )
        mask = mask.bool()
    prefix = min(prefix, length)
    count = length - prefix
    keep = min(count, max(1, math.floor(count * (1.0 - p) + 0.5 + TIE)))
    if not training or keep == count:
        return KeptTokens(x, mask, torch.arange(length, device=x.device).expand(batch, -1))
    scores = uniform((batch, count), torch.float32, x.device, generator)
    valid = None if mask is None else mask[:, prefix:]
    if valid is not None:
        # Padding comes last.
        scores = scores + ~valid
    chosen = scores.argsort(dim=1)[:, :keep]
    kept_mask = None
    if mask is None or valid is None:
        if ordered:
            chosen = chosen.sort(dim=1).values
    else:
        # A short sequence has padding where a longer one still has tokens.
        own = (valid.sum(1, keepdim=True) * (1.0 - p) + 0.5 + TIE).floor().clamp(min=1)
        ranks = torch.arange(keep, device=x.device)
        kept = (ranks < own) & valid.gather(1, chosen)
        if ordered:
            chosen = torch.where(kept, chosen, chosen + count).sort(dim=1).values
            kept, chosen = chosen < count, chosen % count
        kept_mask = torch.cat((mask[:, :prefix], kept), dim=1)
    first = torch.arange(prefix, device=x.device).expand(batch, -1)
    indices = torch.cat((first, chosen + prefix), dim=1)
    rows = torch.arange(batch, device=x.device).unsqueeze(1)
    return KeptTokens(x[rows, indices], kept_mask, indices)


class TokenDropout(DropoutLayer):
    """Removes tokens of a sequence during training (PatchDropout, Liu et al. 2023).

    What is removed is not computed: a transformer takes less time and memory by the rate, its
    attention by the square of it. Each example draws its own tokens, of which the rounded fraction
    `p` goes, and at least one stays. Nothing is scaled. Put it behind the position embeddings, or
    take the positions from `indices`. It is also the masking of FLIP (Li et al. 2023).

    Args:
        p: Fraction of the tokens to remove, in [0, 1); of padded sequences, of the valid ones.
        prefix: Number of tokens at the beginning that always stay, such as a class token.
        ordered: Whether what is kept stays in its order; a transformer does not need it.
        generator: Source of randomness; the default one of the device if None.

    Shape:
        x: (batch, tokens, ...). mask: (batch, tokens), True at valid tokens. The output is (batch,
        kept, ...) and, where a mask is given, a tuple of it, its mask and the kept indices.

    Raises:
        ValueError: `prefix` is not a whole number of at least 0.

    Example:
        >>> patches = torch.randn(2, 1 + 196, 64)
        >>> TokenDropout(0.5)(patches).shape
        torch.Size([2, 99, 64])
        >>> mask = torch.tensor([[True] * 197, [True] * 21 + [False] * 176])
        >>> TokenDropout(0.5)(patches, mask).mask.sum(dim=1).tolist()
        [99, 11]
    """

    def __init__(
        self,
        p: float = 0.5,
        prefix: int = 1,
        ordered: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        # Of a rate of 1 no token would be left.
        super().__init__(check_rate("p", p), generator)
        check_amount("prefix", prefix, whole=True)
        self.prefix = prefix
        self.ordered = check_flag("ordered", ordered)

    @recordable
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | KeptTokens:
        kept = token_dropout(
            x, self.p, self.training, self.generator, mask, self.prefix, self.ordered
        )
        return kept.x if mask is None else kept

    def extra_repr(self) -> str:
        return f"p={self.p}, prefix={self.prefix}, ordered={self.ordered}"
