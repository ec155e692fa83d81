"""Dropout of tokens: a training step computes only a part of each sequence."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_amount, check_flag, check_rate
from .dropout import DropoutLayer, uniform
from .tracing import is_proxy, record_function, recordable

# Makes halves round up in spite of the rounding error of the rate.
TIE = 1e-3


class KeptTokens(NamedTuple):
    """Tokens that token dropout keeps of a batch.

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
        raise ValueError(
            f"token dropout needs (batch, tokens, ...), not an input of shape {tuple(x.shape)}"
        )
    batch, length = x.shape[:2]
    if mask is not None:
        if mask.shape != (batch, length):
            raise ValueError(
                f"the mask has the shape (batch, tokens), here {(batch, length)}, "
                f"not {tuple(mask.shape)}"
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
        # Sort padding last.
        scores = scores + ~valid
    chosen = scores.argsort(dim=1)[:, :keep]
    kept_mask = None
    if mask is None or valid is None:
        if ordered:
            chosen = chosen.sort(dim=1).values
    else:
        # Each sequence keeps its own number of tokens; shorter ones are padded.
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

    Removed tokens are not computed: time and memory of a transformer are multiplied by 1 - p, those
    of its attention matrix by (1 - p)^2. Each example draws its own tokens. Of their number, the
    rounded fraction `p` is removed, and at least one token is kept. Nothing is scaled. Put it after
    the position embeddings, or take the positions from `indices`. FLIP (Li et al. 2023) masks
    patches in the same way.

    Args:
        p: Fraction of the tokens to remove, in [0, 1); in padded sequences, of the valid tokens.
        prefix: Number of tokens at the start that are always kept, such as a class token.
        ordered: Whether to keep the order of the tokens; a transformer does not need it.
        generator: Source of randomness; the default one of the device if None.

    Shape:
        x: (batch, tokens, ...). mask: (batch, tokens), True at valid tokens. The output is (batch,
        kept, ...); with a mask it is a `KeptTokens` of the tokens, their mask and their indices.

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
        # A rate of 1 would remove all tokens.
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
