"""`Regularization`: the one specification that every model takes."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from modules.batchnorm import MaskedBatchNorm, MaskedIdentity, SubSpectralBatchNorm, batch_norm
from modules.dropout import ChannelDropout, Dropout, LockedDropout, check_amount, check_rate
from modules.structured import DropPath


@dataclass(frozen=True)
class Regularization:
    """What a model is regularized by; the default is nothing at all.

    It is plain data: YAML holds it, and two runs can be compared by it. A model asks it for a layer
    at each of its sites; a layer that is off is `nn.Identity`.

    Args:
        normalization: Normalization after convolutions and hidden layers.
        dropout: Rate to drop in the hidden layers.
        dropout_kind: What is dropped there: single units, or whole channels (in a recurrent
            network: features, for all time steps alike).
        input_dropout: Rate to drop at the input (of text: features of the embedding).
        head_dropout: Rate to drop before the last layer.
        drop_path: Rate to drop a residual branch in the last block; it grows linearly with depth.
        weight_decay: Decay of the weights; not of norms and biases, nor of embeddings.
        label_smoothing: Share of the target spread evenly over the classes.
        early_stopping: Stop after this many epochs without a better validation accuracy; 0: never.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> reg = Regularization(normalization="batch", dropout=0.3, dropout_kind="channel")
        >>> reg.dropout_layer(dims=2)
        ChannelDropout(p=0.3)
        >>> Regularization().norm_layer(64, dims=2)
        Identity()
    """

    normalization: Literal["none", "batch"] = "none"
    dropout: float = 0.0
    dropout_kind: Literal["unit", "channel"] = "unit"
    input_dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    early_stopping: int = 0

    def __post_init__(self) -> None:
        if self.normalization not in ("none", "batch"):
            raise ValueError(f"normalization is 'none' or 'batch', not {self.normalization!r}")
        if self.dropout_kind not in ("unit", "channel"):
            raise ValueError(f"dropout_kind is 'unit' or 'channel', not {self.dropout_kind!r}")
        for name in ("dropout", "input_dropout", "head_dropout", "drop_path", "label_smoothing"):
            check_rate(name, getattr(self, name))
        check_amount("weight_decay", self.weight_decay)
        check_amount("early_stopping", self.early_stopping, whole=True)

    @property
    def normalized(self) -> bool:
        """Whether a norm follows each layer; its shift makes that layer's bias redundant."""
        return self.normalization != "none"

    def norm_layer(self, features: int, dims: int) -> nn.Module:
        """Make the norm for `features` channels followed by `dims` dimensions."""
        return batch_norm(features, dims) if self.normalized else nn.Identity()

    def masked_norm_layer(self, features: int, dims: int, bands: int = 1) -> nn.Module:
        """Make the norm called as `norm(x, mask)`; with `bands`, one for each frequency band."""
        if not self.normalized:
            return MaskedIdentity()
        if bands > 1:
            return SubSpectralBatchNorm(features, bands)
        return MaskedBatchNorm(features, dims)

    def dropout_layer(self, dims: int) -> nn.Module:
        """Make the dropout of hidden layers; the channel of a vector (dims=0) is its unit."""
        if self.dropout_kind == "channel" and dims > 0:
            return _layer(ChannelDropout, self.dropout)
        return _layer(Dropout, self.dropout)

    def sequence_dropout_layer(self) -> nn.Module:
        """Make the dropout of hidden layers for (batch, time, features)."""
        kind = LockedDropout if self.dropout_kind == "channel" else Dropout
        return _layer(kind, self.dropout)

    def input_dropout_layer(self) -> nn.Module:
        """Make the dropout of the input; it drops single units."""
        return _layer(Dropout, self.input_dropout)

    def embedding_dropout_layer(self) -> nn.Module:
        """Make the dropout of embedded text (batch, time, features), one mask for all steps."""
        return _layer(LockedDropout, self.input_dropout)

    def head_dropout_layer(self) -> nn.Module:
        """Make the dropout before the last layer."""
        return _layer(Dropout, self.head_dropout)

    def drop_path_layer(self, block: int, blocks: int) -> nn.Module:
        """Make the drop path of block number `block` (from 0) of `blocks`."""
        return _layer(DropPath, self.drop_path * (block + 1) / blocks)


def _layer(
    kind: type[Dropout] | type[ChannelDropout] | type[LockedDropout] | type[DropPath], p: float
) -> nn.Module:
    return kind(p) if p > 0.0 else nn.Identity()
