"""Clips in memory: arrays of samples with a rate to one channel of floats."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# More channels than a recording has: the dimension is that of time.
MOST_CHANNELS = 64
GIVE = "give (samples, rate), such as soundfile.read returns"


def mono(value: Any) -> tuple[Tensor, int]:
    """Return the samples of a clip as floats, the mean of its channels, and its rate in Hz.

    Args:
        value: (samples, rate). The samples are an array or a tensor, (samples,), (samples,
            channels) or (channels, samples): floats with full scale 1, or integers of 16 or 32
            bits, or unsigned ones of 8 bits as in WAV files.

    Raises:
        ValueError: It has no rate, or samples of another shape or type.

    Example:
        >>> mono((np.array([0, 16384], dtype=np.int16), 16_000))
        (tensor([0.0000, 0.5000]), 16000)
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"it is {type(value).__name__} without a sample rate; {GIVE}")
    samples, rate = value
    if isinstance(rate, np.ndarray | Tensor) or not isinstance(rate, int | float | np.number):
        raise ValueError(f"its sample rate is {type(rate).__name__}, not a number; {GIVE}")
    if not float(rate).is_integer():
        raise ValueError(f"its sample rate is {rate}, not a whole number")
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu().numpy()
    if not isinstance(samples, np.ndarray):
        raise ValueError(f"its samples are {type(samples).__name__}, not an array; {GIVE}")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > MOST_CHANNELS):
        raise ValueError(
            f"the shape of its samples is {samples.shape}, not (samples,), (samples, channels) or "
            "(channels, samples)"
        )
    floats = _floats(samples)
    if floats.ndim == 2:
        floats = floats.mean(axis=int(np.argmin(floats.shape)))
    return torch.from_numpy(np.ascontiguousarray(floats, dtype=np.float32)), int(rate)


def _floats(samples: np.ndarray) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        return samples
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float64) / 2.0 ** (8 * samples.dtype.itemsize - 1)
    raise ValueError(
        f"its samples are {samples.dtype}; give floats with full scale 1, or integers of 16 bits"
    )
