"""`Regularization`: the one specification that every model takes."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from modules.attention import AttentionDropout, DropHead
from modules.bandnorm import SubSpectralBatchNorm
from modules.batchnorm import batch_norm, masked_norm
from modules.channelnorm import MaskedIdentity
from modules.concrete import ConcreteDropout
from modules.dropout import (
    AlphaDropout,
    ChannelDropout,
    Dropout,
    GaussianDropout,
    LockedDropout,
    check_amount,
    check_rate,
)
from modules.kwinners import KWinners
from modules.structured import DropBlock, DropPath, LayerDrop, WeightDrop
from modules.tokens import TokenDropout
from modules.variational import VariationalDropout
from modules.weightstandard import RELU_GAIN, WeightStandardization
from modules.words import EmbeddingDropout

Layer = TypeVar("Layer", bound=nn.Module)
# Of these a layer's statistics come from the batch.
OF_THE_BATCH = ("batch", "ghost", "renorm", "split")
RATES = """dropout input_dropout head_dropout embedding_dropout weight_drop drop_path layer_drop
    token_dropout attention_head_dropout label_smoothing""".split()
# Numbers that may be None.
OPTIONAL = ("norm_momentum", "attention_dropout")
AMOUNTS = "weight_decay l1 l2 max_norm adaptive_clip r_drop sam".split()


@dataclass(frozen=True)
class Regularization:
    """What a model is regularized by; the default is nothing at all.

    It is plain data: YAML holds it, and two runs can be compared by it. A model asks it for a layer
    at each of its sites; a layer that is off is `nn.Identity`.

    Args:
        normalization: Normalization after convolutions and hidden layers: batch norm and its
            kinds, or layer, group or RMS norm. `frozen` has batch norm's scale and shift and
            normalizes nothing; `split` normalizes clean and augmented examples apart.
        sync: Whether batch norm takes its statistics over the batches of all ranks of a distributed
            run, as if they were one. `auto` does so for `batch`; the other kinds take those of
            each rank's own batch. True insists on it: with any other kind it is an error.
        norm_momentum: Weight of a batch in the running statistics; their plain average if None.
        norm_eps: Added to the variance.
        norm_affine: Whether a norm learns a scale and a shift.
        zero_init_gamma: Whether a residual branch of a vision model begins at zero, by the scale of
            its last norm.
        norm_recompute: Batches whose statistics replace the running ones before each validation
            (precise batch norm); 0: never.
        ghost_size: Examples that `ghost` normalizes together, at least.
        dropout: Rate to drop in the hidden layers; the first one of `concrete` and
            `variational`, and the fraction that `kwinners` silences.
        dropout_kind: What is dropped there: single units; whole channels; features, one mask for
            all time steps (`locked`); blocks of positions; or how: by `gaussian` noise, by `alpha`
            dropout between SELU units, at a rate that is learned (`concrete`; `variational`, by
            Gaussian noise at a rate of each unit), or none but the most active units kept
            (`kwinners`, which is no dropout).
        dropout_block: Side of a block, in positions.
        dropout_schedule: How all rates change while training, as `DropoutSchedule` does.
        dropout_schedule_share: Share of all steps after which the schedule has done its work.
        input_dropout: Rate to drop at the input (of text: features of the embedding).
        embedding_dropout: Rate to drop words, each everywhere in the batch.
        head_dropout: Rate to drop before the last layer.
        weight_drop: Rate to drop weights of fully connected and recurrent layers (DropConnect).
        drop_path: Rate to drop a residual branch in the last block; it grows linearly with depth.
        layer_drop: Rate to skip a layer that keeps its input's shape.
        token_dropout: Fraction of the tokens that a transformer does not see in a step.
        attention_dropout: Rate to drop attention probabilities of a transformer; that of `dropout`
            if None.
        attention_head_dropout: Rate to drop whole heads of attention.
        weight_decay: Decay of the weights by the optimizer; not of norms and biases, nor of
            embeddings.
        l1: Factor of the sum of absolute weights in the loss.
        l2: Factor of half the sum of squared weights in the loss.
        max_norm: Largest norm of the weights into a unit; 0 for no limit.
        weight_standardization: Whether convolutions and hidden linear layers compute with weights
            of mean 0 and variance 1 over their number, times a gain that is learnt.
        adaptive_clip: Largest norm of a unit's gradient in norms of its weights, except in the last
            layer; 0 for no limit.
        r_drop: Factor of the divergence between two passes under dropout.
        sam: Distance within which sharpness-aware minimization looks for the largest loss; 0: off.
        sam_adaptive: Whether this distance is relative to the size of each weight (ASAM).
        label_smoothing: Share of the target spread evenly over the classes.
        early_stopping: Stop after this many epochs without a better validation accuracy; 0: never.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> reg = Regularization(normalization="batch", dropout=0.3, dropout_kind="channel")
        >>> reg.dropout_layer(64, dims=2)
        ChannelDropout(p=0.3)
        >>> Regularization().norm_layer(64, dims=2)
        Identity()
    """

    normalization: Literal[
        "none", "batch", "ghost", "renorm", "frozen", "split", "layer", "group", "rms"
    ] = "none"
    sync: Literal["auto", True, False] = "auto"
    norm_momentum: float | None = 0.1
    norm_eps: float = 1e-5
    norm_affine: bool = True
    zero_init_gamma: bool = True
    norm_recompute: int = 0
    ghost_size: int = 32
    dropout: float = 0.0
    dropout_kind: Literal[
        "unit",
        "channel",
        "locked",
        "block",
        "gaussian",
        "alpha",
        "concrete",
        "variational",
        "kwinners",
    ] = "unit"
    dropout_block: int = 3
    dropout_schedule: Literal["constant", "linear", "curriculum", "early", "late"] = "constant"
    dropout_schedule_share: float = 0.5
    input_dropout: float = 0.0
    embedding_dropout: float = 0.0
    head_dropout: float = 0.0
    weight_drop: float = 0.0
    drop_path: float = 0.0
    layer_drop: float = 0.0
    token_dropout: float = 0.0
    attention_dropout: float | None = None
    attention_head_dropout: float = 0.0
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float = 0.0
    weight_standardization: bool = False
    adaptive_clip: float = 0.0
    r_drop: float = 0.0
    sam: float = 0.0
    sam_adaptive: bool = False
    label_smoothing: float = 0.0
    early_stopping: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            # By type too: 0 and False are equal.
            known = (type(value), value) in [(type(choice), choice) for choice in choices]
            if choices and field.name not in OPTIONAL and not known:
                names = " or ".join(map(repr, choices))
                raise ValueError(f"{field.name} is {names}, not {value!r}")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} is true or false, not {value!r}")
        for name in RATES:
            check_rate(name, getattr(self, name))
        if self.attention_dropout is not None:
            check_rate("attention_dropout", self.attention_dropout)
        share = self.dropout_schedule_share
        check_amount("dropout_schedule_share", share)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"dropout_schedule_share is in (0, 1], not {share!r}")
        for name in AMOUNTS:
            check_amount(name, getattr(self, name))
        for name in ("early_stopping", "ghost_size", "norm_recompute"):
            check_amount(name, getattr(self, name), whole=True)
        if self.sync is True and self.normalization != "batch":
            raise ValueError(
                f"sync=true is for normalization=batch, and normalization={self.normalization} "
                "has no statistics that ranks could share; leave sync at auto"
            )
        if self.sam_adaptive and not self.sam:
            raise ValueError("sam_adaptive=true is about the distance sam, which is 0; set sam=0.5")
        if self.weight_drop and self.weight_standardization:
            raise ValueError(
                f"weight_drop={self.weight_drop} and weight_standardization=True both replace the "
                "weights of a layer; use one of them"
            )
        # Each layer checks its own values; made here, they are refused before there is a model.
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
        return self.normalization in OF_THE_BATCH

    @property
    def synchronized(self) -> bool:
        """Whether the norms take their statistics over the batches of all ranks."""
        return self.normalization == "batch" and self.sync is not False

    def before_norm(self, layer: Layer) -> Layer:
        """Return a layer without its bias, if the norm that follows is over the batch.

        Its weights are standardized, if that is asked for.

        Such a norm makes it redundant. It is taken from the finished layer: drawn and thrown away,
        so that one seed gives all layers the same weights with a norm and without.
        """
        if self.needs_batch:
            layer.register_parameter("bias", None)
        return self.standardized(layer)

    def standardized(self, layer: Layer) -> Layer:
        """Let a convolution or hidden linear layer compute with standardized weights, if asked."""
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
        # Layer, group and RMS norm have no statistics of their own that bands could have apart.
        if bands > 1 and self.normalization not in ("layer", "group", "rms"):
            return SubSpectralBatchNorm(features, bands, **self._norm_options())
        return masked_norm(features, dims, **self._norm_options())

    def _norm_options(self) -> dict[str, Any]:
        return {
            # On one rank it is PyTorch's own.
            "kind": "sync" if self.synchronized else self.normalization,
            "momentum": self.norm_momentum,
            "eps": self.norm_eps,
            "affine": self.norm_affine,
            "ghost_size": self.ghost_size,
        }

    def dropout_layer(
        self, features: int, dims: int, time: bool = False, selu: bool = False
    ) -> nn.Module:
        """Make the dropout of a hidden layer; the channel of a vector (dims=0) is its unit.

        Args:
            features: Number of channels.
            dims: Number of dimensions after the channels.
            time: Whether the last dimension is time.
            selu: Whether the layer before is a SELU.

        Raises:
            ValueError: This kind of dropout does not fit such a layer.
        """
        p, kind = self.dropout, self.dropout_kind
        if p == 0.0:
            return nn.Identity()
        if kind == "block" and dims == 0:
            raise _misfit(kind, "drops neighbouring positions, and the hidden layers are vectors")
        if kind == "locked" and not time:
            raise _misfit(kind, "has one mask for all time steps, and there is no time here")
        if kind == "alpha" and not selu:
            raise _misfit(kind, "is for SELU units, which of all models mlp has (model.arch=mlp)")
        if kind == "channel" and dims > 0:
            return ChannelDropout(p)
        if kind == "locked":
            return LockedDropout(p, dim=-1)
        if kind == "block":
            return DropBlock(p, self.dropout_block)
        if kind == "gaussian":
            return GaussianDropout(p)
        if kind == "alpha":
            return AlphaDropout(p)
        if kind == "concrete":
            return ConcreteDropout(features, p)
        if kind == "variational":
            return VariationalDropout(features, p)
        if kind == "kwinners":
            return KWinners(features, p)
        return Dropout(p)

    def input_dropout_layer(self) -> nn.Module:
        """Make the dropout of the input; it drops single units."""
        return Dropout(self.input_dropout) if self.input_dropout else nn.Identity()

    def words_dropout_layer(self) -> nn.Module:
        """Make the dropout of embedded text (batch, time, features), one mask for all steps."""
        return LockedDropout(self.input_dropout) if self.input_dropout else nn.Identity()

    def embedding_layer(self, table: nn.Embedding) -> nn.Module:
        """Put an embedding under the dropout of its words."""
        return EmbeddingDropout(table, self.embedding_dropout) if self.embedding_dropout else table

    def head_dropout_layer(self) -> nn.Module:
        """Make the dropout before the last layer."""
        return Dropout(self.head_dropout) if self.head_dropout else nn.Identity()

    def weight_drop_layer(self, layer: nn.Module, *names: str) -> nn.Module:
        """Put the named weights of a layer under dropout; `weight` if none is named."""
        names = names or ("weight",)
        return WeightDrop(layer, names, self.weight_drop) if self.weight_drop else layer

    def drop_path_layer(self, block: int, blocks: int) -> nn.Module:
        """Make the drop path of block number `block` (from 0) of `blocks`."""
        return DropPath(self.drop_path * (block + 1) / blocks) if self.drop_path else nn.Identity()

    def layer_drop_layer(self, layer: nn.Module) -> nn.Module:
        """Let a layer that keeps its input's shape be skipped."""
        return LayerDrop(layer, self.layer_drop) if self.layer_drop else layer

    def token_dropout_layer(self, prefix: int = 0) -> TokenDropout | None:
        """Make the dropout of tokens, called with a mask; `prefix` first ones stay. None if off."""
        return TokenDropout(self.token_dropout, prefix) if self.token_dropout else None

    def attention_dropout_layer(self) -> nn.Module:
        """Make the dropout of attention probabilities."""
        p = self.dropout if self.attention_dropout is None else self.attention_dropout
        return AttentionDropout(p) if p else nn.Identity()

    def attention_head_dropout_layer(self, dim: int) -> nn.Module:
        """Make the dropout of attention heads, which stand side by side along `dim`."""
        p = self.attention_head_dropout
        return DropHead(p, dim) if p else nn.Identity()


def _misfit(kind: str, reason: str) -> ValueError:
    return ValueError(f"dropout_kind={kind} {reason}; use another kind")
