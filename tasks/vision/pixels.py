"""Pictures in memory: arrays and tensors of any common layout to bytes."""

import numpy as np
from torch import Tensor

CHANNELS = (1, 3, 4)


def pixel_array(value: np.ndarray | Tensor) -> np.ndarray:
    """Convert an array or a tensor to pixels as Pillow takes them.

    Args:
        value: One picture: (height, width), (height, width, channels) or (channels, height, width)
            with 1, 3 (RGB) or 4 (RGBA) channels. Where the last two fit, an array has the channels
            last and a tensor first. Floats are from 0 to 1; integers from 0 to 255, or to 65535 if
            they are `uint16`.

    Returns:
        Numbers of 8 bits, (height, width[, channels]), or of 16 bits, (height, width).

    Raises:
        ValueError: It has another shape, type or range.

    Example:
        >>> pixel_array(np.ones((3, 8, 6))).shape
        (8, 6, 3)
    """
    first = isinstance(value, Tensor)
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    array = _channels_last(array, first)
    if not array.size:
        raise ValueError(f"it has no pixels: its shape is {array.shape}")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating):
        return _from_floats(array)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"it holds {array.dtype}, not numbers")
    if array.dtype == np.uint16:
        # Pillow has no picture with several channels of 16 bits.
        return array if array.ndim == 2 else (array >> 8).astype(np.uint8)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise ValueError(f"its values are from {low} to {high}; give bytes from 0 to 255")
    return array.astype(np.uint8)


def _channels_last(array: np.ndarray, first: bool) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim != 3:
        more = "; give a list of pictures" if array.ndim == 4 else ""
        raise ValueError(
            f"its shape is {array.shape}, not (height, width), (height, width, channels) or "
            f"(channels, height, width){more}"
        )
    fits = {"first": array.shape[0] in CHANNELS, "last": array.shape[2] in CHANNELS}
    if not any(fits.values()):
        raise ValueError(f"its shape is {array.shape}, without a dimension of 1, 3 or 4 channels")
    if fits["first"] and (first or not fits["last"]):
        array = np.moveaxis(array, 0, -1)
    return np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)


def _from_floats(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("it holds values that are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"its values are floats from {low:.4g} to {high:.4g}; give floats from 0 to 1, or "
            "bytes from 0 to 255, not standardized ones"
        )
    pixels: np.ndarray = np.rint(array * 255).astype(np.uint8)
    return pixels
