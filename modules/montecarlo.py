"""Monte Carlo dropout: dropout at test time, and the combined prediction of several passes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .checks import check_amount
from .dropout import DropoutLayer
from .inference import modes_kept
from .learned import LearnedDropout

# Names of the dropout rate in layers of other libraries.
RATES = ("p", "drop_prob", "drop_rate", "prob", "rate")


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_foreign_dropout(layer: nn.Module) -> bool:
    """Whether a layer of another library is dropout: by its name, a rate, and no children."""
    name = type(layer).__name__.lower()
    named = "drop" in name or "stochasticdepth" in name
    rated = any(_positive(getattr(layer, rate, None)) for rate in RATES)
    return named and rated and not list(layer.children())


def _drops(layer: nn.Module) -> bool:
    """Whether a layer applies dropout in training mode, and has no other effect there."""
    if isinstance(layer, LearnedDropout):
        return True
    if isinstance(layer, (DropoutLayer, _DropoutNd)):
        return layer.p > 0
    if isinstance(layer, nn.MultiheadAttention):
        return bool(layer.dropout > 0)
    if isinstance(layer, nn.RNNBase):
        # A single layer has none: dropout is between layers.
        return layer.dropout > 0 and layer.num_layers > 1
    if _is_fused_attention(layer):
        return _positive(getattr(layer.attn_drop, "p", None))
    return _is_foreign_dropout(layer)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has a layer that `mc_dropout` turns on.

    Example:
        >>> has_dropout(nn.Dropout(0.5)), has_dropout(nn.Dropout(0.0))
        (True, False)
    """
    return any(_drops(layer) for layer in model.modules())


def _is_fused_attention(layer: nn.Module) -> bool:
    """Whether a layer is timm's attention, which passes its dropout rate to a fused operation."""
    return hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop")


def _unreachable_rates(layer: nn.Module) -> list[str]:
    """List the rates of dropout that a layer applies by a function, so that it stays off."""
    if _drops(layer) or isinstance(layer, (DropoutLayer, _DropoutNd, nn.RNNBase)):
        return []
    return [
        name for name, value in vars(layer).items() if "drop" in name.lower() and _positive(value)
    ]


def _has_shared_draw(layer: nn.Module) -> bool:
    """Whether all examples of a batch share one draw."""
    if isinstance(layer, DropoutLayer):
        return layer.shared_draw
    # Options of torchvision's StochasticDepth and timm's DropBlock2d.
    return getattr(layer, "mode", None) == "batch" or getattr(layer, "batchwise", False) is True


@contextmanager
def mc_dropout(model: nn.Module) -> Iterator[None]:
    """Turn on only dropout: all other layers are in evaluation mode.

    For Monte Carlo dropout (Gal & Ghahramani 2016). It turns on the dropout layers of this library
    and of PyTorch, layers of other libraries that have "drop" or "StochasticDepth" in their class
    name and a rate, and the dropout inside `nn.MultiheadAttention`, `nn.LSTM`, `nn.GRU` and timm's
    attention. Dropout that other layers apply by a function stays off; a warning names layers with
    such a rate.

    Args:
        model: The model; the mode of each layer is restored at the end.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        >>> with mc_dropout(model):
        ...     [layer.training for layer in model]
        [False, True]
    """
    left = {
        f"{name or type(layer).__name__} ({', '.join(rates)})": layer
        for name, layer in model.named_modules()
        if (rates := _unreachable_rates(layer))
    }
    if left:
        warnings.warn(
            f"mc_dropout cannot turn on the dropout of {', '.join(left)}: replace it by a layer",
            stacklevel=3,
        )
    with modes_kept(model):
        model.eval()
        for layer in model.modules():
            # In evaluation mode its fast path skips the dropout of its children.
            fast = isinstance(layer, nn.TransformerEncoderLayer)
            layer.training = fast or isinstance(layer, DropoutLayer) or _drops(layer)
        yield


class MCPrediction(NamedTuple):
    """Prediction of Monte Carlo dropout.

    `mean` (batch, classes): mean probabilities of all passes. `entropy` (batch,): their entropy in
    nats, the total uncertainty. `mutual_information` (batch,): the disagreement of the passes in
    nats, the part of the uncertainty that more training data could reduce.
    """

    mean: Tensor
    entropy: Tensor
    mutual_information: Tensor


def mc_predict(
    model: nn.Module, *inputs: Tensor, passes: int = 20, limit: int = 4096
) -> MCPrediction:
    """Predict by several passes with dropout (Gal & Ghahramani 2016; Houlsby et al. 2011).

    Passes run together as one larger batch of up to `limit` examples. They run one by one if a
    layer shares one draw over the batch (`LayerDrop`, `WeightDrop`, `EmbeddingDropout`). See
    `mc_dropout` for what counts as dropout. If there is none, all passes agree, and a warning says
    so.

    Args:
        model: A model that returns logits (batch, classes).
        inputs: Tensors with the batch in the first dimension.
        passes: Number of passes, at least 1.
        limit: Largest number of examples at once, at least 1; a single pass may exceed it.

    Raises:
        ValueError: `passes` or `limit` is not a whole number of at least 1.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        >>> mc_predict(model, torch.randn(2, 4), passes=10).mean.shape
        torch.Size([2, 3])
    """
    for name, value in (("passes", passes), ("limit", limit)):
        check_amount(name, value, whole=True)
        if not value:
            raise ValueError(f"{name} is at least 1, not 0")
    if not has_dropout(model):
        warnings.warn(
            "mc_predict finds no dropout to turn on in the model, so all passes agree; add a "
            "dropout layer with a rate above 0",
            stacklevel=2,
        )
    return mc_mean(mc_passes(model, *inputs, passes=passes, limit=limit))


@torch.no_grad()
def mc_passes(model: nn.Module, *inputs: Tensor, passes: int, limit: int) -> Tensor:
    """Return the log-probabilities (passes, batch, classes) of each pass; see `mc_predict`."""
    batch = len(inputs[0])
    shared = any(_drops(layer) and _has_shared_draw(layer) for layer in model.modules())
    together = 1 if shared else min(passes, max(1, limit // max(1, batch)))
    logs = []
    with mc_dropout(model):
        for first in range(0, passes, together):
            count = min(together, passes - first)
            repeated = (x.repeat(count, *(1,) * (x.dim() - 1)) for x in inputs)
            log_p: Tensor = model(*repeated).float().log_softmax(1)
            logs.append(log_p.view(count, batch, log_p.shape[1]))
    return torch.cat(logs)


def mc_mean(log_p: Tensor) -> MCPrediction:
    """Combine the log-probabilities (passes, batch, classes) of several passes.

    Example:
        >>> disagreeing = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> round(mc_mean(disagreeing).mutual_information.item(), 2)
        0.69
    """
    mean = log_p.exp().mean(0)
    entropy = torch.special.entr(mean).sum(1)
    own = torch.special.entr(log_p.exp()).sum(2).mean(0)
    # Negative only by rounding.
    return MCPrediction(mean, entropy, (entropy - own).clamp(min=0.0))
