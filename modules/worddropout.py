"""Dropout of words: of tokens, and of rows of an embedding table."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import check_probability
from .dropout import DropoutLayer, nothing_kept, scaled_mask, uniform
from .tracing import is_proxy, record_function, recordable


def word_dropout(
    ids: Tensor,
    p: float,
    replacement: int,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace each token id by `replacement` with probability `p` (Iyyer et al. 2015).

    Args:
        ids: Token ids.
        p: Probability to replace a token, in [0, 1].
        replacement: The new id, usually that of the unknown word.
        keep: True at tokens that are never replaced (padding, special tokens).
        generator: Source of randomness; the default one of the device if None.

    Shape:
        ids and keep: (batch, time). The output has the same shape.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 0]])
        >>> word_dropout(ids, 0.0, replacement=1).tolist()
        [[5, 6, 7, 0]]
    """
    check_probability("p", p)
    if is_proxy(ids):
        return record_function(word_dropout, ids, p, replacement, keep, generator)
    if p == 0.0:
        return ids
    drop = uniform(ids.shape, torch.float32, ids.device, generator) < p
    if keep is not None:
        drop = drop & ~keep
    return ids.masked_fill(drop, replacement)


def embedding_dropout(
    table: nn.Embedding,
    ids: Tensor,
    p: float = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Look ids up in a table with rows set to zero at rate `p`. See `EmbeddingDropout`."""
    check_probability("p", p)
    words: Tensor = table(ids)
    if not training or p == 0.0:
        return words
    if p == 1.0:
        return nothing_kept(words)
    # Mask the looked-up rows, not the table, which may be far larger.
    rows = scaled_mask(words, (table.num_embeddings,), p, generator)
    return words * rows[ids].unsqueeze(-1)


class WordDropout(DropoutLayer):
    """Replaces whole tokens during training (Iyyer et al. 2015, "word dropout").

    Each occurrence of a word is drawn separately; `EmbeddingDropout` drops all its occurrences.

    Args:
        p: Probability to replace a token, in [0, 1].
        replacement: The new id, usually that of the unknown word.
        kept: Ids that are never replaced: padding and special tokens.
        generator: Source of randomness; the default one of the device if None.

    Shape:
        ids: (batch, time) or any other shape; the output has the same.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> layer = WordDropout(0.9, replacement=1, kept=[0, 2])
        >>> layer(torch.tensor([[2, 0, 0, 0]])).tolist()
        [[2, 0, 0, 0]]
    """

    kept: Tensor

    def __init__(
        self,
        p: float = 0.1,
        replacement: int = 1,
        kept: Sequence[int] = (0,),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, generator)
        self.replacement = replacement
        self.kept_ids = tuple(kept)
        empty = torch.empty(len(self.kept_ids), dtype=torch.long)
        self.register_buffer("kept", empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the tensor of kept ids, which is uninitialized after a move from the meta device."""
        self.kept.copy_(torch.tensor(self.kept_ids, dtype=torch.long, device="cpu"))

    @recordable
    def forward(self, ids: Tensor) -> Tensor:
        if not self.training:
            return ids
        keep = torch.isin(ids, self.kept)
        return word_dropout(ids, self.p, self.replacement, keep, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}, replacement={self.replacement}, kept={list(self.kept_ids)}"


class EmbeddingDropout(DropoutLayer):
    """Drops rows of an embedding table during training (Gal & Ghahramani 2016; Merity et al. 2018).

    A dropped word is zero at each of its occurrences in the batch, so that a repeated word cannot
    identify a text.

    Args:
        table: The embedding whose rows are dropped.
        p: Probability to drop a row, in [0, 1].
        generator: Source of randomness; the default one of the device if None.

    Shape:
        ids: any shape; the output has one more dimension, the embedding dimension.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> table = nn.Embedding(10, 4)
        >>> words = EmbeddingDropout(table, 0.5)(torch.tensor([[3, 3, 3]]))
        >>> bool((words[0, 0] == words[0, 1]).all())
        True
    """

    shared_draw = True

    def __init__(
        self, table: nn.Embedding, p: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(p, generator)
        self.table = table

    @recordable
    def forward(self, ids: Tensor) -> Tensor:
        return embedding_dropout(self.table, ids, self.p, self.training, self.generator)
