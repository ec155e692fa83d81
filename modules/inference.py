"""Better statistics for the batch norms of a trained model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from modules.batchnorm import MaskedBatchNorm
from modules.frozennorm import FrozenBatchNorm
from modules.kwinners import KWinners
from modules.renorm import BatchRenorm


def moving_norms(model: nn.Module) -> list[_BatchNorm]:
    """List the batch norms of a model whose running statistics move in training.

    A lazy one has none before its first batch.
    """
    still = {id(layer.norm) for layer in model.modules() if isinstance(layer, FrozenBatchNorm)}
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and not is_lazy(layer.running_mean)
        and id(layer) not in still
    ]


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give each layer the mode back, training or evaluation, that it had before."""
    modes = {layer: layer.training for layer in model.modules()}
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """Let the batch norms use the statistics of the batch, and all other layers evaluate.

    It yields the norms, whose running statistics move meanwhile; afterwards the modes come back.
    """
    norms = moving_norms(model)
    with modes_kept(model):
        model.eval()
        for layer in model.modules():
            # In evaluation mode they would count padding, or not hand on to their norm at all.
            if isinstance(layer, (MaskedBatchNorm, BatchRenorm)):
                layer.training = True
        for norm in norms:
            norm.training = True
        yield norms


def recompute_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> None:
    """Replace the running statistics of all batch norms by the means over some batches.

    This is precise batch norm (Wu & Johnson 2021). The running average follows weights that have
    moved on since; here all batches see the weights as they are. Dropout is off meanwhile. Each
    batch counts alike, so that they should be of one size; its variance is the unbiased one.

    Args:
        model: The model; its weights, modes and momenta stay as they are.
        batches: Inputs of the model, in the batch size of the training, without augmentation.
        forward: What is called with each batch; the model itself if None.

    Raises:
        ValueError: There is no batch; the statistics stay as they were, as they do after any error.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recompute_statistics(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]])])
        >>> norm.running_mean.item(), norm.running_var.item()
        (3.0, 5.0)
    """
    norms = moving_norms(model)
    kept = [(n.momentum, n.num_batches_tracked) for n in norms]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    # The wrapper would overwrite the buffers of each rank by those of the first.
    whole = model.module if isinstance(model, DistributedDataParallel) else model
    seen = 0
    try:
        # Compiled code would be compiled anew for this, where that is possible at all.
        stance = torch.compiler.set_stance("force_eager")
        with batch_statistics(model), torch.no_grad(), stance:
            for norm in norms:
                norm.momentum = None
                # A norm may have none, and then would take no average.
                assert norm.running_mean is not None
                norm.num_batches_tracked = norm.running_mean.new_zeros((), dtype=torch.long)
            for batch in batches:
                (forward or whole)(batch)
                seen += 1
        if not seen:
            raise ValueError("there is no batch to take statistics of")
    except BaseException:
        for buffer, before in statistics:
            buffer.copy_(before)
        raise
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


def average_buffers(model: nn.Module, group: distributed.ProcessGroup | None = None) -> None:
    """Average what the layers keep of their batches over the ranks of a distributed run.

    Each rank has followed its own batches. The variance of all is the mean of the ranks' variances
    plus the variance of their means. The duty cycles of `KWinners` are averaged too. One collective
    for the whole model; without a distributed run nothing changes.

    Args:
        model: The model, the same on all ranks.
        group: The ranks; all if None.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> average_buffers(norm)
        >>> norm.running_var.tolist()
        [1.0, 1.0]
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    pairs = [
        (norm.running_mean, norm.running_var)
        for norm in moving_norms(model)
        if norm.running_mean is not None and norm.running_var is not None
    ]
    # Their spread over the ranks belongs to no variance.
    cycles = [layer.duty_cycle for layer in model.modules() if isinstance(layer, KWinners)]
    pairs += [(cycle, torch.zeros_like(cycle)) for cycle in cycles]
    if not pairs:
        return
    # In double precision: the means may be far from zero, and near to each other.
    means, variances = (torch.cat(column).double() for column in zip(*pairs, strict=True))
    sums = torch.stack((means, means.square(), variances))
    distributed.all_reduce(sums, group=group)
    mean, square, variance = sums / distributed.get_world_size(group)
    variance += square - mean.square()
    sizes = [len(running_mean) for running_mean, _ in pairs]
    parts = zip(pairs, mean.split(sizes), variance.split(sizes), strict=True)
    for (running_mean, running_var), new_mean, new_variance in parts:
        running_mean.copy_(new_mean)
        running_var.copy_(new_variance)
