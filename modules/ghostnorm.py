"""Ghost batch norm's work: the parts of a batch, each normalized by itself."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modules.masks import mask_steps, spread, valid_steps
from modules.torchnorm import check_input


def normalize_parts(norm: nn.Module, x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Normalize each part of a batch by itself, in training.

    Args:
        norm: A masked norm around the `nn.BatchNorm*` whose parameters and statistics are used.
        x: (batch, channels, ...).
        mask: (batch, time), True at valid steps, or None for all.
        size: Examples of a part, at least; a batch is cut as evenly as `Tensor.tensor_split` does.
    """
    mask = None if mask is None else valid_steps(mask, x)
    if torch.compiler.is_compiling():
        plain: Any = norm.norm
        return _by_operations(plain, x, mask, size)
    parts = max(1, len(x) // size)
    if parts == 1:
        y: Tensor = norm(x, mask)
        return y
    masks = [None] * parts if mask is None else mask.tensor_split(parts)
    pairs = zip(x.tensor_split(parts), masks, strict=True)
    return torch.cat([norm(part, valid) for part, valid in pairs])


def _by_operations(norm: _BatchNorm, x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Do it without a loop over the parts, so that one graph serves batches of every size."""
    check_input(norm, x)
    batch, channels = x.shape[:2]
    # Symbols, where any batch size is compiled for.
    parts: Any = torch.sym_max(1, batch // size)
    # The first parts have an example more, if the batch does not divide evenly.
    least, longer = batch // parts, batch % parts
    index = torch.arange(batch, device=x.device)
    after = index - longer * (least + 1)
    part = torch.where(after < 0, index // (least + 1), longer + after // least)
    wide = mask_steps(x, mask).to(torch.promote_types(x.dtype, torch.float32))
    dims = list(range(2, x.dim()))
    if 1 in (size * x.shape[2:].numel(), batch * x.shape[2:].numel()):
        raise ValueError(f"batch norm needs more than one value a channel: {tuple(x.shape)}")
    ones = wide.new_ones(()) if mask is None else spread(mask, x).to(wide.dtype)
    values = ones.expand(batch, 1, *x.shape[2:])

    def per_part(values: Tensor) -> Tensor:
        sums = values.sum(dims) if dims else values
        # A row more, which stays empty: a size that may be 1 would need a graph of its own.
        return sums.new_zeros(parts + 1, sums.shape[1]).index_add(0, part, sums)

    def per_example(found: Tensor) -> Tensor:
        return found[part].view(batch, -1, *(1,) * len(dims))

    count = per_part(values).clamp(min=1.0)
    mean = per_part(wide) / count
    centred = mask_steps(wide - per_example(mean), mask)
    variance = per_part(centred.square()) / count
    shape = (1, channels, *(1,) * len(dims))
    y = centred * per_example((variance + norm.eps).rsqrt())
    if norm.weight is not None:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    _update_running(
        norm, mean.detach(), (variance * count / (count - 1).clamp(min=1.0)).detach(), parts
    )
    return mask_steps(y.to(x.dtype), mask)


@torch.no_grad()
def _update_running(norm: _BatchNorm, mean: Tensor, variance: Tensor, parts: int) -> None:
    """Move the running statistics by all parts, one after the other, as one weighted sum."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(parts)
    # How many parts follow; the last row is none.
    later = torch.arange(parts, -1, -1, device=mean.device).to(mean.dtype) - 1
    if norm.momentum is None:
        weights = (1.0 / norm.num_batches_tracked.to(mean.dtype)).expand_as(later)
    else:
        weights = norm.momentum * torch.pow(1.0 - norm.momentum, later)
    weights = weights.masked_fill(later < 0, 0.0).to(mean.dtype)
    for running, found in ((norm.running_mean, mean), (norm.running_var, variance)):
        wide = running.to(found.dtype)
        moved = ((found - wide) * weights[:, None]).sum(0)
        running.copy_(wide + moved)
