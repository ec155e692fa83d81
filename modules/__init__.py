"""Regularization layers and functions for PyTorch models; they need only torch."""

from modules.adaptation import Tent, adabn, tent
from modules.attention import AttentionDropout, DropHead, attention_dropout, drop_head
from modules.augment import (
    AudioAugmentation,
    ImageAugmentation,
    TextAugmentation,
    random_crop,
)
from modules.bandnorm import SubSpectralBatchNorm
from modules.batchnorm import (
    GhostBatchNorm,
    MaskedBatchNorm,
    SplitBatchNorm,
    batch_norm,
    masked_norm,
)
from modules.channelnorm import ChannelNorm, MaskedGroupNorm, MaskedIdentity
from modules.checkpointing import CheckpointedBlock, recomputed
from modules.clipping import adaptive_clip_
from modules.concrete import ConcreteDropout, concrete_dropout
from modules.diagnostics import dead_units, variance_shift
from modules.dropout import (
    AlphaDropout,
    ChannelDropout,
    Dropout,
    GaussianDropout,
    LockedDropout,
    alpha_dropout,
    channel_dropout,
    dropout,
    gaussian_dropout,
    locked_dropout,
)
from modules.folding import fold_batchnorm, unfolded_norms
from modules.frozennorm import FrozenBatchNorm
from modules.inference import (
    average_buffers,
    recompute_statistics,
)
from modules.kwinners import KWinners, k_winners
from modules.learned import LearnedDropout
from modules.masks import mask_steps
from modules.mixing import cutmix, cutout, mixup
from modules.montecarlo import MCPrediction, mc_dropout, mc_predict
from modules.penalties import (
    elastic,
    l1_penalty,
    l2_penalty,
    max_norm_,
    parameter_groups,
    r_drop_loss,
)
from modules.regularization import Regularization
from modules.renorm import BatchRenorm
from modules.schedules import DropoutSchedule, dropout_rates
from modules.sharpness import SharpnessAware, sam_perturbation
from modules.structured import (
    DropBlock,
    DropPath,
    LayerDrop,
    WeightDrop,
    drop_block,
    drop_path,
    layer_drop,
    weight_drop,
)
from modules.sync import SyncBatchNorm
from modules.tokens import KeptTokens, TokenDropout, token_dropout
from modules.variational import (
    VariationalConv2d,
    VariationalDropout,
    VariationalLinear,
    log_uniform_kl,
    variational_dropout,
)
from modules.weightstandard import WeightStandardization, weight_standardization
from modules.words import EmbeddingDropout, WordDropout, embedding_dropout, word_dropout

__all__ = [
    "AlphaDropout",
    "AttentionDropout",
    "AudioAugmentation",
    "BatchRenorm",
    "ChannelDropout",
    "ChannelNorm",
    "CheckpointedBlock",
    "ConcreteDropout",
    "DropBlock",
    "DropHead",
    "DropPath",
    "Dropout",
    "DropoutSchedule",
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
    "sam_perturbation",
    "tent",
    "token_dropout",
    "unfolded_norms",
    "variance_shift",
    "variational_dropout",
    "weight_drop",
    "weight_standardization",
    "word_dropout",
]
