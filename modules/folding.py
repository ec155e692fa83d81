"""Folding of batch norms into the layers before them."""

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .batchnorm import MaskedBatchNorm
from .frozennorm import FrozenBatchNorm
from .ghostnorm import GhostBatchNorm
from .inference import is_frozen
from .masks import MaskedIdentity
from .renorm import BatchRenorm
from .splitnorm import SplitBatchNorm
from .sync import SyncBatchNorm
from .torchnorm import BATCH_NORMS, BatchNormBase

log = logging.getLogger(__name__)

# Classes whose forward is known; a subclass may compute something else.
LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm),
    *(BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm, SplitBatchNorm),
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Largest difference of outputs, relative to their norm. Float32 may be computed as TF32.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 0.02}
HALF = 0.1

Examples = Sequence[tuple[Any, ...]]


def fold_batchnorm(model: nn.Module, *example: Any, further: Examples = ()) -> nn.Module:
    """Fold each batch norm that directly follows a convolution or linear layer into it.

    In evaluation batch norm is an affine map, which the layer before can do at no cost (Jacob et
    al. 2018). A batch norm is folded if its input is always the output of one such layer, and
    nothing else uses that output. All others are kept; `unfolded_norms` lists them.

    The model runs on the examples to find the order of the layers. The folded model runs on them
    too: if its output differs by more than rounding, an error is raised.

    Args:
        model: The model; it is not changed.
        example: Inputs of the model.
        further: More inputs, each a tuple. They are needed if the model takes different paths for
            different inputs, such as with and without lengths: only paths that the inputs take
            are checked.

    Returns:
        A copy for inference, with an identity instead of each folded batch norm.

    Raises:
        RuntimeError: The folded model fails, or its output is not that of the model.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> folded = fold_batchnorm(model, torch.randn(2, 3, 8, 8))
        >>> type(folded[1]).__name__
        'Identity'
    """
    examples = (example, *further)
    found = _observe(model, examples)
    folded = _copy(model)
    for norm, layer in found.folds.items():
        _fold(folded.get_submodule(layer), folded.get_submodule(norm))
    folded_norms = {folded.get_submodule(norm) for norm in found.folds}
    for name, module in [*folded.named_modules(remove_duplicate=False)]:
        if module in folded_norms:
            masked = isinstance(module, MaskedBatchNorm)
            folded.set_submodule(name, MaskedIdentity() if masked else nn.Identity())
    folded.eval()
    if found.folds:
        _check_outputs(_copy(folded), examples, found.outputs)
    if found.left:
        listed = "; ".join(f"{name}: {reason}" for name, reason in found.left.items())
        log.info(f"{len(found.left)} batch norms are not folded: {listed}")
    return folded


def unfolded_norms(model: nn.Module, *example: Any, further: Examples = ()) -> dict[str, str]:
    """List the batch norms that `fold_batchnorm` does not fold, each with the reason.

    Args:
        model: The model; it is not changed.
        example: Inputs of the model.
        further: More inputs, each a tuple.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
        >>> unfolded_norms(model, torch.randn(2, 3, 8, 8))
        {'2': 'its input is not the output of a convolution or linear layer'}
    """
    return _observe(model, (example, *further)).left


def _copy(model: nn.Module) -> nn.Module:
    # Weight norm, spectral norm and pruning keep a computed weight with a gradient as an attribute,
    # which `deepcopy` refuses; the next forward computes it again.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return deepcopy(model, memo)


def _run(model: nn.Module, examples: Examples) -> list[Any]:
    """Return the model's output for each example, always with the same random numbers."""
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    with torch.no_grad(), torch.random.fork_rng(devices):
        # Copies: a model may change its inputs in place.
        return [
            model(*tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, example))
            for example in examples
        ]


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Fold a norm into the parameters of the layer before it."""
    assert isinstance(norm, _NormBase)
    assert isinstance(layer, (_ConvNd, nn.Linear))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, trained = layer.weight.detach(), layer.weight.requires_grad
    wide = torch.promote_types(weight.dtype, norm.running_var.dtype)
    scale = (norm.running_var.to(torch.promote_types(wide, torch.float32)) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias.detach()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    if isinstance(layer, _ConvTransposeNd):
        # (in, out / groups, ...): the rows of a group compute the channels of that group.
        inputs = len(weight) // layer.groups
        factors = scale.view(layer.groups, -1).repeat_interleave(inputs, dim=0)
    else:
        factors = scale.view(-1, 1)
    scaled = weight * factors.view(*factors.shape, *(1,) * (weight.dim() - 2))
    layer.weight = nn.Parameter(scaled.to(weight.dtype), trained)
    layer.bias = nn.Parameter(shift.to(weight.dtype), trained)


def _check_outputs(folded: nn.Module, examples: Examples, wanted: list[Any]) -> None:
    try:
        found = _run(folded, examples)
    except Exception as error:
        raise RuntimeError(
            f"the folded model fails ({error}); if a forward reads attributes of a batch norm, "
            "fold only the parts of the model that do not"
        ) from error
    pairs = zip_longest(_tensors(found), _tensors(wanted))
    worst = max((_difference(x, y) for x, y in pairs), default=0.0)
    if worst > 1.0:
        raise RuntimeError(
            f"the output of the folded model differs from the model's by {worst:.2g} times what "
            "rounding explains; fold the parts of the model one by one to find the cause"
        )


def _tensors(values: Any) -> list[Tensor]:
    found = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return [x for x in found if x.is_floating_point() and not x.is_meta]


def _difference(x: Tensor | None, y: Tensor | None) -> float:
    """Return the relative error of x, in norm, divided by the tolerance."""
    if x is None or y is None or x.shape != y.shape:
        return math.inf
    tolerance = TOLERANCES.get(y.dtype, HALF)
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    # Equal values first: the difference of two infinities is NaN.
    difference = (
        torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, x - y).nan_to_num(math.inf).norm()
    )
    return float(difference / y.nan_to_num().norm()) / tolerance if difference else 0.0


class _Findings(NamedTuple):
    """Results of a run on the examples: layer by norm, reason by norm, and the outputs."""

    folds: dict[str, str]
    left: dict[str, str]
    outputs: list[Any]


def _observe(model: nn.Module, examples: Examples) -> _Findings:
    """Run a copy of the model to see which norms can be folded into which layers."""
    copy = _copy(model).eval()
    observer = _Observer(copy)
    with observer:
        outputs = _run(copy, examples)
    names = {module: name for name, module in copy.named_modules()}
    folds, left = {}, {}
    for norm in observer.norms:
        layer, reason = observer.verdict(norm, names)
        if layer is None:
            left[names[norm]] = reason
        else:
            folds[names[norm]] = names[layer]
    return _Findings(folds, left, outputs)


@dataclass
class _Output:
    """An output of a layer, and its uses."""

    layer: nn.Module
    # While it is referenced, no other storage gets the same address.
    storage: StorageWeakRef
    fits: bool
    norms: list[nn.Module] = field(default_factory=list)
    other_use: str = ""

    def kept(self) -> bool:
        """Whether a tensor still uses its memory."""
        if not self.storage.expired():  # type: ignore[no-untyped-call]
            gc.collect()
        return not self.storage.expired()  # type: ignore[no-untyped-call]


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records how the operations of a model use the outputs of its layers and the weights.

    Tensors are identified by their memory, so that a view counts as a use of its base.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The second norm of a `SplitBatchNorm`, which is for training.
        own = (module for module in model.modules() if isinstance(module, BatchNormBase))
        inside = {child for module in own for child in module.children()}
        self.norms: list[nn.Module] = [
            module
            for module in model.modules()
            if isinstance(module, BATCH_NORMS) and module not in inside
        ]
        # Owners of each storage: (first element, last element, module).
        self.owners: dict[int, list[tuple[int, int, nn.Module]]] = {}
        for module in model.modules():
            for tensor in _own_tensors(module):
                part = (*_extent(tensor), module)
                self.owners.setdefault(_address(tensor), []).append(part)
        self.problems: dict[nn.Module, str] = {}
        self.outputs: dict[int, _Output] = {}
        self.inputs: dict[nn.Module, list[_Output | None]] = {norm: [] for norm in self.norms}
        # Active calls of modules whose class is known.
        self.running: list[nn.Module] = []
        for norm in self.norms:
            self._watch(norm, _norm_problem(norm), self._before_norm)
        for layer in model.modules():
            if isinstance(layer, (_ConvNd, nn.Linear)):
                self._watch(layer, _problem(layer, LAYERS) or self._sharing_problem(layer))
                layer.register_forward_hook(self._after_layer)

    def _watch(self, module: nn.Module, problem: str, before: Any = None) -> None:
        if problem:
            self.problems[module] = problem
            return
        if before is not None:
            module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_pre_hook(lambda called, _: self.running.append(called))
        module.register_forward_hook(lambda *_: self.running.pop() and None)

    def _sharing_problem(self, layer: nn.Module) -> str:
        shared = any(owner is not layer for t in _own_tensors(layer) for owner in self._owners(t))
        return "shares parameters with another module" if shared else ""

    def _owners(self, tensor: Tensor) -> Iterator[nn.Module]:
        parts = self.owners.get(_address(tensor), ())
        if parts:
            first, last = _extent(tensor)
            yield from (owner for begin, end, owner in parts if begin <= last and first <= end)

    def _after_layer(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not _address(output):
            return
        assert isinstance(layer.weight, Tensor)
        # The channels of a convolution's batch are in the second dimension; those of a linear
        # layer are in the last one.
        fits = output.dim() == (2 if isinstance(layer, nn.Linear) else layer.weight.dim())
        storage = StorageWeakRef(output.untyped_storage())  # type: ignore[no-untyped-call]
        known = self.outputs.setdefault(_address(output), _Output(layer, storage, fits))
        if known.layer is not layer:
            # A subclass whose forward returns its input.
            known.other_use = known.other_use or type(layer).__name__

    def _before_norm(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(kwargs[name] for name in ("x", "input") if name in kwargs)
        output = self.outputs.get(_address(x))
        self.inputs[norm].append(output)
        if output is not None:
            output.norms.append(norm)
        if norm.training and not is_frozen(norm):
            self.problems.setdefault(norm, "takes its statistics from the batch")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        now = self.running[-1] if self.running else None
        for tensor in tree_leaves((args, kwargs)):
            if not isinstance(tensor, Tensor):
                continue
            output = self.outputs.get(_address(tensor))
            if output is not None and now not in output.norms:
                output.other_use = output.other_use or str(func)
            for owner in self._owners(tensor):
                if owner is not now:
                    self.problems.setdefault(owner, f"has parameters that {func} uses elsewhere")
        return func(*args, **(kwargs or {}))

    def verdict(self, norm: nn.Module, names: dict[nn.Module, str]) -> tuple[nn.Module | None, str]:
        """Return the layer that a norm can be folded into, or None and the reason."""
        if norm in self.problems:
            return None, f"it {self.problems[norm]}"
        if not self.inputs[norm]:
            return None, "the examples do not call it"
        sources = {output.layer for output in self.inputs[norm] if output is not None}
        if None in self.inputs[norm]:
            return None, "its input is not the output of a convolution or linear layer"
        if len(sources) > 1:
            found = ", ".join(names[layer] for layer in sources)
            return None, f"it follows several layers: {found}"
        (layer,) = sources
        name = names[layer]
        if layer in self.problems:
            return None, f"{name} {self.problems[layer]}"
        for output in self.outputs.values():
            if output.layer is not layer:
                continue
            if output.other_use:
                return None, f"the output of {name} is also used by {output.other_use}"
            if output.norms != [norm]:
                return None, f"the output of {name} does not always go to it, once"
            if not output.fits:
                return None, f"the channels of {name} are not in the second dimension"
            if output.kept():
                return None, f"the output of {name} is kept"
        return layer, ""


def _problem(module: nn.Module, known: tuple[type[nn.Module], ...]) -> str:
    """Return why a module may not do what its class says, or an empty string."""
    if is_parametrized(module):
        return "is parametrized"
    if type(module) not in known:
        return f"is a {type(module).__name__}, which may compute something else"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "has hooks"
    if "forward" in vars(module):
        return "has a replaced forward"
    tensors = _own_tensors(module)
    if not all(type(t) in (Tensor, nn.Parameter) and _address(t) for t in tensors):
        return "has parameters that are no plain tensors"
    return ""


def _norm_problem(norm: nn.Module) -> str:
    problem = _problem(norm, NORMS)
    if not problem and getattr(norm, "running_mean", None) is None:
        problem = "has no running statistics"
    return problem


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _address(tensor: Tensor) -> int:
    """Return an identifier of the storage of a tensor; 0 if it has no plain storage."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    address: int = tensor.untyped_storage()._cdata
    return address


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first and the last element of its storage that a tensor may use."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return first, first + sum((size - 1) * stride for size, stride in steps)
