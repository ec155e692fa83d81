"""What is done to a trained model: better batch statistics, and folding."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from modules.batchnorm import FrozenBatchNorm, MaskedBatchNorm
from modules.kwinners import KWinners
from modules.renorm import BatchRenorm


def moving_norms(model: nn.Module) -> list[_BatchNorm]:
    """List the batch norms of a model whose running statistics move in training."""
    still = {id(layer.norm) for layer in model.modules() if isinstance(layer, FrozenBatchNorm)}
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
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
    kept = [(n.momentum, {k: b.clone() for k, b in n.named_buffers()}) for n in norms]
    seen = 0
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            for layer in model.modules():
                # In evaluation mode they would count padding, or not hand on to their norm at all.
                if isinstance(layer, (MaskedBatchNorm, BatchRenorm)):
                    layer.training = True
            for norm in norms:
                norm.training = True
                norm.momentum = None
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked.zero_()
            for batch in batches:
                (forward or model)(batch)
                seen += 1
        if not seen:
            raise ValueError("there is no batch to take statistics of")
    except BaseException:
        for norm, (_, buffers) in zip(norms, kept, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, (momentum, buffers) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.copy_(buffers["num_batches_tracked"])


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
    means, variances = (torch.cat(column) for column in zip(*pairs, strict=True))
    sums = torch.stack((means, means.square(), variances)).double()
    distributed.all_reduce(sums, group=group)
    mean, square, variance = sums / distributed.get_world_size(group)
    variance += square - mean.square()
    sizes = [len(running_mean) for running_mean, _ in pairs]
    parts = zip(pairs, mean.split(sizes), variance.split(sizes), strict=True)
    for (running_mean, running_var), new_mean, new_variance in parts:
        running_mean.copy_(new_mean)
        running_var.copy_(new_variance)


class _Uses(TorchFunctionMode):
    """Counts in how many operations each of some tensors takes part."""

    def __init__(self) -> None:
        super().__init__()
        # The tensors are kept, so that no other one gets the same id.
        self.of: dict[int, tuple[Tensor, int]] = {}

    def watch(self, tensor: Tensor) -> None:
        self.of[id(tensor)] = (tensor, 0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        watched = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.of]
        versions = [tensor._version for tensor in watched]
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor, version in zip(watched, versions, strict=True):
            # To hand a tensor on as it is, as dropout does in evaluation, is no use of it; nor is
            # to ask for its shape.
            same = tensor._version == version and any(tensor is other for other in made)
            if made and not same:
                self.of[id(tensor)] = (tensor, self.of[id(tensor)][1] + 1)
        return result


def fold_batchnorm(model: nn.Module, *example: Any) -> nn.Module:
    """Fold each batch norm that directly follows a convolution or linear layer into it.

    In evaluation batch norm is an affine map, which the layer before can do at no cost (Jacob et
    al. 2018). A batch norm is folded where its input is the output of such a layer, and nothing
    else uses that output; what runs between them in training only, such as dropout, does not
    matter.

    Args:
        model: The model; it stays as it is.
        example: Inputs of the model, which show what follows what.

    Returns:
        A copy for inference, with an identity in the place of each batch norm that is gone.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> folded = fold_batchnorm(model, torch.randn(2, 3, 8, 8))
        >>> type(folded[1]).__name__
        'Identity'
    """
    folded = deepcopy(model).eval()
    uses = _Uses()
    makers: dict[int, list[nn.Module]] = {}
    # The tensors themselves: of one that is gone another may get the id.
    calls: dict[nn.Module, list[Tensor]] = {}

    def after_layer(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        uses.watch(output)
        makers.setdefault(id(output), []).append(layer)
        calls.setdefault(layer, []).append(output)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.setdefault(norm, []).append(inputs[0])

    handles = []
    for layer in folded.modules():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            handles.append(layer.register_forward_hook(after_layer))
        elif isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad(), uses:
            folded(*example)
    finally:
        for handle in handles:
            handle.remove()
    names = {layer: name for name, layer in folded.named_modules()}
    for norm, seen in calls.items():
        if not isinstance(norm, _BatchNorm) or len(seen) != 1 or id(seen[0]) not in makers:
            continue
        before = makers[id(seen[0])]
        if len(before) != 1 or len(calls[before[0]]) != 1 or uses.of[id(seen[0])][1] != 1:
            continue
        layer = before[0]
        fused: nn.Module
        if isinstance(layer, _ConvNd):
            fused = fuse_conv_bn_eval(layer, norm, isinstance(layer, _ConvTransposeNd))
        else:
            assert isinstance(layer, nn.Linear)
            fused = fuse_linear_bn_eval(layer, norm)
        folded.set_submodule(names[layer], fused)
        folded.set_submodule(names[norm], nn.Identity())
    return folded.eval()
