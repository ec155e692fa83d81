"""Regularization layers and functions for PyTorch models; they need only torch."""

from .adaptation import Tent, adabn, tent
from .alphadropout import AlphaDropout, alpha_dropout
from .attention import AttentionDropout, DropHead, attention_dropout, drop_head
from .augment import (
    AudioAugmentation,
    ImageAugmentation,
    TextAugmentation,
    random_crop,
)
from .bandnorm import SubSpectralBatchNorm
from .batchnorm import MaskedBatchNorm, batch_norm, masked_norm
from .checkpointing import CheckpointedBlock, recomputed
from .clipping import adaptive_clip_
from .concrete import ConcreteDropout, concrete_dropout
from .convert import Conversion, conversions, convert, to_plain
from .diagnostics import dead_units, variance_shift
from .dropout import (
    ChannelDropout,
    Dropout,
    GaussianDropout,
    LockedDropout,
    channel_dropout,
    dropout,
    gaussian_dropout,
    locked_dropout,
)
from .dropoutkinds import DropoutSite, register_dropout
from .examplenorm import ChannelNorm, MaskedGroupNorm
from .folding import fold_batchnorm, unfolded_norms
from .frozennorm import FrozenBatchNorm
from .ghostnorm import GhostBatchNorm
from .inference import (
    average_buffers,
    recompute_statistics,
)
from .kwinners import KWinners, k_winners
from .learned import LearnedDropout
from .masks import MaskedIdentity, mask_steps
from .mixing import cutmix, cutout, mixup
from .montecarlo import MCPrediction, mc_dropout, mc_predict
from .normkinds import register_norm
from .penalties import (
    elastic,
    l1_penalty,
    l2_penalty,
    max_norm_,
    parameter_groups,
    r_drop_loss,
)
from .regularization import Regularization
from .renorm import BatchRenorm
from .schedules import DropoutSchedule, dropout_rates
from .sharpness import SharpnessAware, sam_perturbation
from .splitnorm import SplitBatchNorm
from .structured import (
    DropBlock,
    DropPath,
    LayerDrop,
    drop_block,
    drop_path,
    layer_drop,
)
from .sync import SyncBatchNorm, convert_sync_batchnorm
from .tokendropout import KeptTokens, TokenDropout, token_dropout
from .variational import (
    VariationalConv2d,
    VariationalDropout,
    VariationalLinear,
    log_uniform_kl,
    variational_dropout,
)
from .weightdrop import WeightDrop, weight_drop
from .weightstandard import WeightStandardization, weight_standardization
from .worddropout import EmbeddingDropout, WordDropout, embedding_dropout, word_dropout

__all__ = [
    "AlphaDropout",
    "AttentionDropout",
    "AudioAugmentation",
    "BatchRenorm",
    "ChannelDropout",
    "ChannelNorm",
    "CheckpointedBlock",
    "ConcreteDropout",
    "Conversion",
    "DropBlock",
    "DropHead",
    "DropPath",
    "Dropout",
    "DropoutSchedule",
    "DropoutSite",
    "EmbeddingDropout",
    "FrozenBatchNorm",
    "GaussianDropout",
    "GhostBatchNorm",
    "ImageAugmentation",
    "KWinners",
    "KeptTokens",
    "LayerDrop",
    "LearnedDropout",
    "LockedDropout",
    "MCPrediction",
    "MaskedBatchNorm",
    "MaskedGroupNorm",
    "MaskedIdentity",
    "Regularization",
    "SharpnessAware",
    "SplitBatchNorm",
    "SubSpectralBatchNorm",
    "SyncBatchNorm",
    "Tent",
    "TextAugmentation",
    "TokenDropout",
    "VariationalConv2d",
    "VariationalDropout",
    "VariationalLinear",
    "WeightDrop",
    "WeightStandardization",
    "WordDropout",
    "adabn",
    "adaptive_clip_",
    "alpha_dropout",
    "attention_dropout",
    "average_buffers",
    "batch_norm",
    "channel_dropout",
    "concrete_dropout",
    "conversions",
    "convert",
    "convert_sync_batchnorm",
    "cutmix",
    "cutout",
    "dead_units",
    "drop_block",
    "drop_head",
    "drop_path",
    "dropout",
    "dropout_rates",
    "elastic",
    "embedding_dropout",
    "fold_batchnorm",
    "gaussian_dropout",
    "k_winners",
    "l1_penalty",
    "l2_penalty",
    "layer_drop",
    "locked_dropout",
    "log_uniform_kl",
    "mask_steps",
    "masked_norm",
    "max_norm_",
    "mc_dropout",
    "mc_predict",
    "mixup",
    "parameter_groups",
    "r_drop_loss",
    "random_crop",
    "recompute_statistics",
    "recomputed",
    "register_dropout",
    "register_norm",
    "sam_perturbation",
    "tent",
    "to_plain",
    "token_dropout",
    "unfolded_norms",
    "variance_shift",
    "variational_dropout",
    "weight_drop",
    "weight_standardization",
    "word_dropout",
]
