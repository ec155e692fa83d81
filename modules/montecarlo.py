"""Monte Carlo dropout: dropout at test time, and what several passes say together."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from modules.checks import check_amount
from modules.dropout import DropoutLayer
from modules.inference import modes_kept
from modules.learned import LearnedDropout

# How the layers of other libraries call the rate that they drop at.
RATES = ("p", "drop_prob", "drop_rate", "prob", "rate")


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_foreign_dropout(layer: nn.Module) -> bool:
    """Whether a layer of another library is a dropout, by its name, a rate, and no parts."""
    name = type(layer).__name__.lower()
    named = "drop" in name or "stochasticdepth" in name
    rated = any(_positive(getattr(layer, rate, None)) for rate in RATES)
    return named and rated and not list(layer.children())


def _drops(layer: nn.Module) -> bool:
    """Whether a layer drops something in training mode, and does nothing else there."""
    if isinstance(layer, LearnedDropout):
        return True
    if isinstance(layer, (DropoutLayer, _DropoutNd)):
        return layer.p > 0
    if isinstance(layer, nn.MultiheadAttention):
        return bool(layer.dropout > 0)
    if isinstance(layer, nn.RNNBase):
        # Between its layers.
        return layer.dropout > 0 and layer.num_layers > 1
    if _is_fused_attention(layer):
        return _positive(getattr(layer.attn_drop, "p", None))
    return _is_foreign_dropout(layer)


def _is_fused_attention(layer: nn.Module) -> bool:
    """Whether a layer is timm's attention, which hands its dropout's rate to a fused operation."""
    return hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop")


def _rates_left(layer: nn.Module) -> list[str]:
    """List the rates of a layer that it drops at by a function, out of reach from here."""
    if _drops(layer) or isinstance(layer, (DropoutLayer, _DropoutNd, nn.RNNBase)):
        return []
    return [
        name for name, value in vars(layer).items() if "drop" in name.lower() and _positive(value)
    ]


def _draws_for_all(layer: nn.Module) -> bool:
    """Whether one draw serves the whole batch."""
    if isinstance(layer, DropoutLayer):
        return layer.shared_draw
    # Of torchvision's StochasticDepth and timm's DropBlock2d.
    return getattr(layer, "mode", None) == "batch" or getattr(layer, "batchwise", False) is True


@contextmanager
def mc_dropout(model: nn.Module) -> Iterator[None]:
    """Turn on dropout and nothing else: all other layers are in evaluation mode.

    For Monte Carlo dropout (Gal & Ghahramani 2016). Turned on are our layers, PyTorch's, those of
    other libraries that are called something with "drop" or "StochasticDepth" and have a rate, and
    the dropout inside of `nn.MultiheadAttention`, `nn.LSTM`, `nn.GRU` and timm's attention. What
    other layers drop by a function stays off: a warning names those that hold such a rate.

    Args:
        model: The model, whose modes come back afterwards.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        >>> with mc_dropout(model):
        ...     [layer.training for layer in model]
        [False, True]
    """
    left = {
        f"{name or type(layer).__name__} ({', '.join(rates)})": layer
        for name, layer in model.named_modules()
        if (rates := _rates_left(layer))
    }
    if left:
        warnings.warn(
            f"mc_dropout cannot turn on the dropout of {', '.join(left)}: replace it by a layer",
            stacklevel=3,
        )
    with modes_kept(model):
        model.eval()
        for layer in model.modules():
            # In evaluation mode a transformer's layer may skip the dropout of its parts.
            fast = isinstance(layer, nn.TransformerEncoderLayer)
            layer.training = fast or isinstance(layer, DropoutLayer) or _drops(layer)
        yield


class MCPrediction(NamedTuple):
    """What the passes of Monte Carlo dropout say together.

    `mean` (batch, classes) are the mean probabilities; `entropy` (batch,) is theirs, in nats: all
    uncertainty; `mutual_information` (batch,), in nats, is the part of it in which the passes
    disagree: what more data could tell.
    """

    mean: Tensor
    entropy: Tensor
    mutual_information: Tensor


@torch.no_grad()
def mc_predict(
    model: nn.Module, *inputs: Tensor, passes: int = 20, limit: int = 4096
) -> MCPrediction:
    """Predict by several passes under dropout (Gal & Ghahramani 2016; Houlsby et al. 2011).

    Passes run together as one larger batch, up to `limit` examples; with a layer whose draw the
    whole batch shares (`LayerDrop`, `WeightDrop`, `EmbeddingDropout`) they run one by one. See
    `mc_dropout` for what counts as dropout; a warning says if there is none, for then the passes
    agree.

    Args:
        model: A model that returns logits (batch, classes).
        inputs: Tensors with the batch in the first dimension.
        passes: Number of passes, at least 1.
        limit: Largest number of examples at once, if one pass has not more by itself.

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
    if not any(_drops(layer) for layer in model.modules()):
        warnings.warn(
            "mc_predict finds no dropout in the model that it could turn on, so all passes agree; "
            "add a dropout layer with a rate above 0",
            stacklevel=3,
        )
    batch = len(inputs[0])
    shared = any(_drops(layer) and _draws_for_all(layer) for layer in model.modules())
    together = 1 if shared else min(passes, max(1, limit // max(1, batch)))
    logs = []
    with mc_dropout(model):
        for first in range(0, passes, together):
            count = min(together, passes - first)
            repeated = (x.repeat(count, *(1,) * (x.dim() - 1)) for x in inputs)
            log_p: Tensor = model(*repeated).float().log_softmax(1)
            logs.append(log_p.view(count, batch, log_p.shape[1]))
    log_p = torch.cat(logs)  # (passes, batch, classes)
    mean = log_p.exp().mean(0)
    entropy = torch.special.entr(mean).sum(1)
    disagreement = entropy + (log_p.exp() * log_p).sum(2).mean(0)
    # It is never below zero but by rounding.
    return MCPrediction(mean, entropy, disagreement.clamp(min=0.0))
