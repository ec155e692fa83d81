"""Dropout in attention: of probabilities and of whole heads."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_flag, check_probability
from .dropout import DropoutLayer, dropout, masked
from .tracing import is_proxy, record_function, recordable


def attention_dropout(
    weights: Tensor,
    p: float = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    columns: bool = False,
    renormalize: bool = False,
) -> Tensor:
    """Set attention probabilities to zero with probability `p`. See `AttentionDropout`."""
    check_probability("p", p)
    if is_proxy(weights):
        given = (p, training, generator, columns, renormalize)
        return record_function(attention_dropout, weights, *given)
    if not training or p == 0.0:
        return weights
    if columns:
        weights = masked(weights, (*weights.shape[:-2], 1, weights.shape[-1]), p, generator)
    else:
        weights = dropout(weights, p, generator=generator)
    if renormalize:
        total = weights.sum(-1, keepdim=True)
        # The output of a query that has lost all keys is zero.
        weights = weights / torch.where(total > 0, total, 1.0)
    return weights


def drop_head(
    x: Tensor,
    p: float = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    dim: int = 1,
) -> Tensor:
    """Set each attention head to zero as a whole with probability `p`. See `DropHead`.

    Raises:
        ValueError: `x` has no dimension `dim`, or `dim` is the batch dimension.
    """
    check_probability("p", p)
    if is_proxy(x):
        return record_function(drop_head, x, p, training, generator, dim)
    if not -x.dim() < dim < x.dim() or dim == 0:
        raise ValueError(
            f"dim={dim!r} is no dimension of heads in an input of shape {tuple(x.shape)}"
        )
    if not training or p == 0.0:
        return x
    shape = [1] * x.dim()
    shape[0], shape[dim] = x.shape[0], x.shape[dim]
    return masked(x, tuple(shape), p, generator)


class AttentionDropout(DropoutLayer):
    """Drops attention probabilities during training (Vaswani et al. 2017; Zehui et al. 2019).

    Call it with the probabilities after the softmax, or call `attend` with queries, keys and
    values, which uses PyTorch's fused attention where possible.

    Args:
        p: Probability to drop an attention probability, in [0, 1].
        columns: Whether to drop a key for all queries of a head at once (the columns of
            DropAttention), instead of each pair of query and key independently.
        renormalize: Whether to scale the kept probabilities to the sum 1 (DropAttention) instead of
            by 1 / (1 - p).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, heads, queries, keys); the output has the same shape.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> weights = torch.full((2, 4, 5, 5), 0.2)
        >>> AttentionDropout(0.2)(weights).shape
        torch.Size([2, 4, 5, 5])
        >>> query = key = value = torch.ones(2, 4, 5, 8)
        >>> AttentionDropout(0.2, renormalize=True).attend(query, key, value).shape
        torch.Size([2, 4, 5, 8])
    """

    def __init__(
        self,
        p: float = 0.1,
        columns: bool = False,
        renormalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, generator)
        self.columns = check_flag("columns", columns)
        self.renormalize = check_flag("renormalize", renormalize)

    @recordable
    def forward(self, weights: Tensor) -> Tensor:
        return attention_dropout(
            weights, self.p, self.training, self.generator, self.columns, self.renormalize
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """Compute scaled dot-product attention with this dropout.

        Without `columns`, `renormalize` and a generator, and with `columns` alone, all is done by
        `torch.nn.functional.scaled_dot_product_attention`. Other options need the matrix of
        probabilities in memory.

        Args:
            query: (batch, heads, queries, features).
            key: (batch, heads, keys, features).
            value: (batch, heads, keys, value features).
            mask: True where a query may attend to a key, or floats that are added to the scores.
            is_causal: Whether a query attends only to keys up to its own index.
            scale: Factor of the scores; 1 / sqrt(features) if None.
        """
        p = self.p if self.training else 0.0
        plain = not self.columns and not self.renormalize and self.generator is None
        if self.columns and not self.renormalize:
            # To drop a key is to set its value to zero.
            value = drop_keys(value, p, self.generator)
        elif p and not plain:
            # With an identity matrix as values, the output is the probabilities.
            identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
            identity = identity.expand(*key.shape[:-2], -1, -1)
            weights = F.scaled_dot_product_attention(
                query, key, identity, mask, is_causal=is_causal, scale=scale
            )
            return (
                attention_dropout(weights, p, True, self.generator, self.columns, self.renormalize)
                @ value
            )
        return F.scaled_dot_product_attention(
            query, key, value, mask, p if plain else 0.0, is_causal, scale=scale
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, columns={self.columns}, renormalize={self.renormalize}"


def drop_keys(value: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Set all values of a key to zero with probability `p`: (batch, heads, keys, features)."""
    if p == 0.0:
        return value
    return masked(value, (*value.shape[:-1], 1), p, generator)


class DropHead(DropoutLayer):
    """Drops whole attention heads (Zhou et al. 2020, "Scheduled DropHead").

    Each example draws its own heads, so that no head can rely on another. Put it between attention
    and its output projection, where heads are still separate. Kept heads are scaled by 1 / (1 - p),
    as in `Dropout`; the paper scales by the number of heads over the number of kept heads. The
    schedule of the paper, with high rates at the start and the end of training, is not in
    `DropoutSchedule`.

    Args:
        p: Probability to drop a head, in [0, 1].
        dim: The dimension of the heads.
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, heads, queries, features) or, with another `dim`, any shape; the output has the
        same. Split concatenated heads by `x.unflatten(-1, (heads, -1))` first.

    Raises:
        ValueError: `dim` is not a whole number, or is 0, the batch dimension.

    Example:
        >>> x = DropHead(0.5)(torch.ones(2, 8, 5, 4))
        >>> set(x.mean(dim=(2, 3)).flatten().tolist()) <= {0.0, 2.0}
        True
    """

    def __init__(
        self, p: float = 0.1, dim: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(p, generator)
        if not isinstance(dim, int) or isinstance(dim, bool) or dim == 0:
            raise ValueError(f"dim is a dimension after the batch, not {dim!r}")
        self.dim = dim

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return drop_head(x, self.p, self.training, self.generator, self.dim)
