"""Augmentation of whole batches: cutout, mixup and cutmix.

Mixup and cutmix mix a batch with a permutation of itself, with one proportion for the whole batch.
"""

import math

import torch
from torch import Tensor

from .checks import check_amount


def _boxes(images: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Draw one box per image around a random centre; True inside, (batch, 1, height, width)."""
    batch, _, rows, columns = images.shape
    y = torch.randint(0, rows, (batch, 1, 1, 1), device=images.device)
    x = torch.randint(0, columns, (batch, 1, 1, 1), device=images.device)
    row = torch.arange(rows, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(columns, device=images.device).view(1, 1, 1, -1)
    top, left = y - height // 2, x - width // 2
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)


def cutout(images: Tensor, size: int) -> Tensor:
    """Fill a random square of each image with its mean colour (DeVries & Taylor 2017).

    Args:
        images: The batch.
        size: Side of the square in pixels; part of it may lie outside the image.

    Shape:
        images: (batch, channels, height, width).

    Raises:
        ValueError: `size` is not a whole number of at least 0.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> (cutout(images, 2) != images).any(dim=1).sum(dim=(1, 2)).max() <= 4
        tensor(True)
    """
    check_amount("size", size, whole=True)
    mean = images.float().mean(dim=(2, 3), keepdim=True).to(images.dtype)
    return torch.where(_boxes(images, size, size), mean, images)


def _proportion(alpha: float) -> float:
    check_amount("alpha", alpha)
    if not alpha:
        raise ValueError(f"alpha is more than 0, not {alpha!r}")
    # On the CPU whatever the default device is: a Python float is needed.
    both = torch.full((2,), float(alpha), device="cpu")
    return float(torch.distributions.Beta(both[0], both[1]).sample())


def mixup(inputs: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend a batch and its targets with a permutation of themselves (Zhang et al. 2018).

    Args:
        inputs: The batch.
        targets: Class probabilities.
        alpha: The weight of the original batch is drawn from Beta(alpha, alpha); more than 0.

    Shape:
        inputs: (batch, ...). targets: (batch, classes). The outputs have the same shapes and types;
        integers, such as bytes, become float32.

    Raises:
        ValueError: `alpha` is out of its range.

    Example:
        >>> inputs, targets = mixup(torch.rand(4, 3), torch.eye(4), alpha=0.2)
        >>> targets.sum(dim=1).allclose(torch.ones(4))
        True
    """
    proportion = _proportion(alpha)
    order = torch.randperm(inputs.shape[0], device=inputs.device)
    return _blended(inputs, order, proportion), _blended(targets, order, proportion)


def _blended(x: Tensor, order: Tensor, proportion: float) -> Tensor:
    # Compute at least in float32; bytes become floats.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    blended = proportion * wide + (1.0 - proportion) * wide[order]
    return blended.to(x.dtype) if x.is_floating_point() else blended


def cutmix(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Paste a random box of another image of the batch into each image (Yun et al. 2019).

    Args:
        images: The batch.
        targets: Class probabilities; mixed in proportion to the area of the box in the image.
        alpha: The fraction of the image to keep is drawn from Beta(alpha, alpha); more than 0.

    Shape:
        images: (batch, channels, height, width). targets: (batch, classes). The outputs have the
        same shapes and types.

    Raises:
        ValueError: `alpha` is out of its range.

    Example:
        >>> images, targets = cutmix(torch.rand(4, 3, 8, 8), torch.eye(4), alpha=1.0)
        >>> targets.sum(dim=1).allclose(torch.ones(4))
        True
    """
    side = math.sqrt(1.0 - _proportion(alpha))
    order = torch.randperm(images.shape[0], device=images.device)
    box = _boxes(images, round(images.shape[2] * side), round(images.shape[3] * side))
    pasted = box.double().mean(dim=(1, 2, 3)).unsqueeze(1)
    mixed = (1 - pasted) * targets + pasted * targets[order]
    # Integer targets, such as one-hot vectors, become floats.
    dtype = targets.dtype if targets.is_floating_point() else torch.float32
    return torch.where(box, images[order], images), mixed.to(dtype)
