"""Regularization layers and functions for PyTorch models; they need only torch."""

from modules.augment import AudioAugmentation, ImageAugmentation, TextAugmentation
from modules.batchnorm import (
    MaskedBatchNorm,
    MaskedIdentity,
    SubSpectralBatchNorm,
    batch_norm,
    mask_steps,
)
from modules.dropout import (
    ChannelDropout,
    Dropout,
    LockedDropout,
    channel_dropout,
    dropout,
    locked_dropout,
    word_dropout,
)
from modules.penalties import parameter_groups
from modules.regularization import Regularization
from modules.structured import DropPath, drop_path

__all__ = [
    "AudioAugmentation",
    "ChannelDropout",
    "DropPath",
    "Dropout",
    "ImageAugmentation",
    "LockedDropout",
    "MaskedBatchNorm",
    "MaskedIdentity",
    "Regularization",
    "SubSpectralBatchNorm",
    "TextAugmentation",
    "batch_norm",
    "channel_dropout",
    "drop_path",
    "dropout",
    "locked_dropout",
    "mask_steps",
    "parameter_groups",
    "word_dropout",
]
