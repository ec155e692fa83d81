"""`Regularization`: the regularization settings of a model, and the layers made from them."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from .attention import AttentionDropout, DropHead
from .bandnorm import SubSpectralBatchNorm
from .batchnorm import batch_norm, masked_norm
from .checks import check_amount, check_rate
from .dropout import Dropout, LockedDropout
from .dropoutkinds import DROPOUT_KINDS, DropoutSite
from .masks import MaskedIdentity
from .normkinds import NORM_KINDS, SYNCHRONIZED
from .structured import DropBlock, DropPath, LayerDrop
from .tokendropout import TokenDropout
from .weightdrop import WeightDrop
from .weightstandard import RELU_GAIN, WeightStandardization
from .worddropout import EmbeddingDropout

Layer = TypeVar("Layer", bound=nn.Module)
RATES = """dropout input_dropout head_dropout embedding_dropout weight_drop drop_path layer_drop
    token_dropout attention_head_dropout""".split()


@dataclass(frozen=True)
class Regularization:
    """Regularization settings of the layers of a model; by default all are off.

    It is plain data, which is written to YAML and compared between runs. A model asks it for a
    layer at each of its sites; a layer that is off is `nn.Identity`. Regularization by training,
    such as weight decay, is configured elsewhere.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> reg = Regularization(normalization="batch", dropout=0.3, dropout_kind="channel")
        >>> reg.dropout_layer(64, dims=2)
        ChannelDropout(p=0.3)
        >>> Regularization().norm_layer(64, dims=2)
        Identity()
    """

    normalization: str = "none"
    """Norm after convolutions and hidden layers: `none`, `batch` or another kind of batch norm
    (`ghost`, `renorm`, `frozen`, `split`), `layer`, `group` or `rms`, or your own kind as
    `package.module:Name` or `path/to/file.py:Name`. `frozen` has only the scale and
    shift of batch norm; `split` normalizes clean and augmented examples separately."""
    sync_bn: Literal["auto", True, False] = "auto"
    """Whether batch norm uses the statistics of the batches of all ranks of a distributed run.
    `auto` does so for `batch`; the other kinds use the per-rank batch and refuse True."""
    norm_momentum: float | None = 0.1
    """Weight of a batch in the running statistics, in [0, 1]; their plain average if None."""
    norm_eps: float = 1e-5
    """Added to the variance, at least 0."""
    norm_affine: bool = True
    """Whether a norm learns a scale and a shift."""
    zero_init_gamma: bool = True
    """Whether the last norm of a residual branch of a vision model is initialized with scale 0, so
    that the branch begins as the identity."""
    ghost_size: int = 32
    """Smallest number of examples that `ghost` normalizes together."""
    dropout: float = 0.0
    """Dropout rate in the hidden layers, in [0, 1); the initial rate of `concrete` and
    `variational`, and the fraction of units that `kwinners` sets to zero."""
    dropout_kind: str = "unit"
    """Kind of dropout in the hidden layers: `unit`, single units; `channel`, whole channels;
    `locked`, features with one mask for all time steps; `block`, blocks of positions; `gaussian`,
    multiplicative noise; `alpha`, for SELU units; `concrete` and `variational`, with learned rates;
    `kwinners`, all but the most active units; or your own kind as `package.module:Name` or
    `path/to/file.py:Name`."""
    dropout_block: int = 3
    """Side of a block for `dropout_kind=block`, in positions, at least 1."""
    input_dropout: float = 0.0
    """Dropout rate of the input, in [0, 1); for text, of the features of the embedding."""
    embedding_dropout: float = 0.0
    """Rate to drop words, at all their occurrences in the batch, in [0, 1)."""
    head_dropout: float = 0.0
    """Dropout rate before the last layer, in [0, 1)."""
    weight_drop: float = 0.0
    """Rate to drop weights of fully connected and recurrent layers (DropConnect), in [0, 1)."""
    drop_path: float = 0.0
    """Rate to drop the residual branch of the last block, in [0, 1); it grows linearly with
    depth."""
    layer_drop: float = 0.0
    """Rate to skip a layer whose output has the shape of its input, in [0, 1)."""
    token_dropout: float = 0.0
    """Fraction of the tokens that are removed from the input of a transformer, in [0, 1)."""
    attention_dropout: float | None = None
    """Rate to drop attention probabilities of a transformer, in [0, 1); `dropout` if None."""
    attention_head_dropout: float = 0.0
    """Rate to drop whole attention heads, in [0, 1)."""
    weight_standardization: bool = False
    """Whether convolutions and hidden linear layers use weights standardized to mean 0 and
    variance 1, with a learned gain."""

    def __post_init__(self) -> None:
        # `1 == True`: check the type.
        if not isinstance(self.sync_bn, bool) and self.sync_bn != "auto":
            raise ValueError(f"sync_bn is 'auto' or True or False, not {self.sync_bn!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} is true or false, not {value!r}")
        for name in RATES:
            check_rate(name, getattr(self, name))
        if self.attention_dropout is not None:
            check_rate("attention_dropout", self.attention_dropout)
        check_amount("ghost_size", self.ghost_size, whole=True)
        DROPOUT_KINDS.find(self.dropout_kind)
        if self.sync_bn is True and self.normalization not in SYNCHRONIZED:
            raise ValueError(
                f"sync_bn=true is for normalization=batch, and normalization={self.normalization} "
                "has no statistics to synchronize; leave sync_bn at auto"
            )
        if self.weight_drop and self.weight_standardization:
            raise ValueError(
                f"weight_drop={self.weight_drop} and weight_standardization=True both replace the "
                "weights of a layer; use one of them"
            )
        # Each layer checks its own values; building one here reports them before there is a model.
        if self.normalized:
            self.norm_layer(2, dims=1)
        if self.dropout_kind == "block":
            DropBlock(self.dropout, self.dropout_block)

    @property
    def normalized(self) -> bool:
        """Whether a norm follows each layer."""
        return self.normalization != "none"

    @property
    def needs_batch(self) -> bool:
        """Whether the norms take their statistics over a batch."""
        if not self.normalized:
            return False
        return bool(getattr(NORM_KINDS.find(self.normalization), "needs_batch", False))

    @property
    def synchronized(self) -> bool:
        """Whether the norms take their statistics over the batches of all ranks."""
        return self.normalization in SYNCHRONIZED and self.sync_bn is not False

    def prepare_layer(self, layer: Layer) -> Layer:
        """Prepare a convolution or linear layer for the norm that follows it.

        A norm over the batch makes its bias redundant. The bias is initialized, then removed, so
        that the RNG stream is the same with and without a norm. The weights are standardized if
        `weight_standardization` is true.
        """
        if self.needs_batch:
            layer.register_parameter("bias", None)
        return self.standardized(layer)

    def standardized(self, layer: Layer) -> Layer:
        """Standardize the weights of a layer if `weight_standardization` is true."""
        if not self.weight_standardization:
            return layer
        return WeightStandardization.of(layer, scaled=True, gain=RELU_GAIN)

    def norm_layer(self, features: int, dims: int) -> nn.Module:
        """Make the norm for `features` channels followed by `dims` dimensions."""
        if not self.normalized:
            return nn.Identity()
        return batch_norm(features, dims, **self._norm_options())

    def masked_norm_layer(self, features: int, dims: int, bands: int = 1) -> nn.Module:
        """Make the norm called as `norm(x, mask)`; with `bands`, one for each frequency band."""
        if not self.normalized:
            return MaskedIdentity()
        # Layer, group and RMS norm have no running statistics to separate by band.
        if bands > 1 and self.normalization not in ("layer", "group", "rms"):
            return SubSpectralBatchNorm(features, bands, **self._norm_options())
        return masked_norm(features, dims, **self._norm_options())

    def _norm_options(self) -> dict[str, Any]:
        return {
            "kind": self.normalization,
            "momentum": self.norm_momentum,
            "eps": self.norm_eps,
            "affine": self.norm_affine,
            "ghost_size": self.ghost_size,
        }

    def dropout_layer(
        self, features: int, dims: int, time: bool = False, selu: bool = False
    ) -> nn.Module:
        """Make the dropout of a hidden layer.

        Args:
            features: Number of channels.
            dims: Number of dimensions after the channels; 0 for vectors.
            time: Whether the last dimension is time.
            selu: Whether the previous layer is a SELU.

        Raises:
            ValueError: This kind of dropout does not suit the layer.
        """
        if self.dropout == 0.0:
            return nn.Identity()
        site = DropoutSite(features, dims, time, selu, self.dropout_block)
        return DROPOUT_KINDS.find(self.dropout_kind)(self.dropout, site)

    def input_dropout_layer(self) -> nn.Module:
        """Make the dropout of the input, on single units."""
        return Dropout(self.input_dropout) if self.input_dropout else nn.Identity()

    def words_dropout_layer(self) -> nn.Module:
        """Make the dropout of embedded text (batch, time, features): one mask for all steps."""
        return LockedDropout(self.input_dropout) if self.input_dropout else nn.Identity()

    def embedding_layer(self, table: nn.Embedding) -> nn.Module:
        """Wrap an embedding in dropout of its words."""
        return EmbeddingDropout(table, self.embedding_dropout) if self.embedding_dropout else table

    def head_dropout_layer(self) -> nn.Module:
        """Make the dropout before the last layer."""
        return Dropout(self.head_dropout) if self.head_dropout else nn.Identity()

    def weight_drop_layer(self, layer: nn.Module, *names: str) -> nn.Module:
        """Wrap a layer in dropout of the named weights; of `weight` if none is named."""
        names = names or ("weight",)
        return WeightDrop(layer, names, self.weight_drop) if self.weight_drop else layer

    def drop_path_layer(self, block: int, blocks: int) -> nn.Module:
        """Make the drop path of block number `block` (from 0) of `blocks`."""
        return DropPath(self.drop_path * (block + 1) / blocks) if self.drop_path else nn.Identity()

    def layer_drop_layer(self, layer: nn.Module) -> nn.Module:
        """Wrap a layer, whose output has the shape of its input, so that it may be skipped."""
        return LayerDrop(layer, self.layer_drop) if self.layer_drop else layer

    def token_dropout_layer(self, prefix: int = 0) -> TokenDropout | None:
        """Make the dropout of tokens, which keeps the first `prefix` ones; None if off."""
        return TokenDropout(self.token_dropout, prefix) if self.token_dropout else None

    def attention_dropout_layer(self) -> nn.Module:
        """Make the dropout of attention probabilities."""
        p = self.dropout if self.attention_dropout is None else self.attention_dropout
        return AttentionDropout(p) if p else nn.Identity()

    def attention_head_dropout_layer(self, dim: int) -> nn.Module:
        """Make the dropout of attention heads; `dim` is their dimension."""
        p = self.attention_head_dropout
        return DropHead(p, dim) if p else nn.Identity()
