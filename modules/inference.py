"""Better statistics for the batch norms of a trained model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from .kwinners import KWinners
from .torchnorm import BATCH_NORMS, BatchNormBase


def is_frozen(norm: nn.Module) -> bool:
    """Whether a batch norm never updates its running statistics."""
    return isinstance(norm, BatchNormBase) and norm.kind == "frozen"


def moving_norms(model: nn.Module) -> list[_NormBase]:
    """List the batch norms of a model whose running statistics are updated in training.

    A lazy one has none before its first batch.
    """
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, BATCH_NORMS)
        and layer.running_mean is not None
        and not is_lazy(layer.running_mean)
        and not is_frozen(layer)
    ]


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode of each layer, training or evaluation, at the end."""
    modes = {layer: layer.training for layer in model.modules()}
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[list[_NormBase]]:
    """Let the batch norms use the statistics of the whole batch, and all other layers evaluate.

    It yields the norms, whose running statistics are updated. Afterwards all layers are in the
    mode that they were in before.
    """
    norms = moving_norms(model)
    own = [norm for norm in norms if isinstance(norm, BatchNormBase)]
    with modes_kept(model):
        model.eval()
        for norm in norms:
            norm.training = True
        try:
            for norm in own:
                norm.whole_batch = True
            yield norms
        finally:
            for norm in own:
                norm.whole_batch = False


def recompute_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> None:
    """Replace the running statistics of all batch norms by the means over some batches.

    This is precise batch norm (Wu & Johnson 2021). The running average is over batches of earlier
    weights; here all batches see the present weights. Dropout is off. Each batch has the same
    weight, so that all should have the same size; the variance is unbiased.

    Args:
        model: The model; its weights, modes and momenta are not changed.
        batches: Inputs of the model, in the batch size of the training, without augmentation.
        forward: What is called with each batch; the model itself if None.

    Raises:
        ValueError: There is no batch. After this and any other error the statistics are as before.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recompute_statistics(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]])])
        >>> norm.running_mean.item(), norm.running_var.item()
        (3.0, 5.0)
    """
    norms = moving_norms(model)
    kept = [(n.momentum, n.num_batches_tracked) for n in norms]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(False)]
    # The wrapper would overwrite the buffers of each rank by those of rank 0.
    whole = model.module if isinstance(model, DistributedDataParallel) else model
    seen = 0
    try:
        # A compiled model would be compiled again for this, or could not be.
        stance = torch.compiler.set_stance("force_eager")
        with batch_statistics(model), torch.no_grad(), stance:
            for norm in norms:
                norm.momentum = None
                # PyTorch averages only if there is a count.
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
    """Average the buffers that follow the batches over the ranks of a distributed run.

    The variance of all is the mean of the ranks' variances plus the variance of their means. The
    duty cycles of `KWinners` are averaged too. One collective for the whole model; without a
    distributed run nothing changes.

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
    # They have no variance.
    cycles = [layer.duty_cycle for layer in model.modules() if isinstance(layer, KWinners)]
    pairs += [(cycle, torch.zeros_like(cycle)) for cycle in cycles]
    if not pairs:
        return
    # In double precision: the means may be large, and their differences small.
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
