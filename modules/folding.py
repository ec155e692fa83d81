"""Folding of batch norms into the layers before them."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


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
