"""Residual branches of known architectures: where they end, and how they are dropped there."""

import re
from typing import Literal, NamedTuple

from torch import nn

# A slot of timm's and others' blocks for drop path: `nn.Identity` or None where it is off.
SLOT = re.compile(r"drop_path\d*")


class KnownBlock(NamedTuple):
    """A residual block, known by the package of its class and the names of its layers.

    Attributes:
        package: Where its class, or one that it inherits from, is defined.
        layers: Layers that it has.
        ends: Those of them that a residual branch ends with.
    """

    package: str
    layers: tuple[str, ...]
    ends: tuple[str, ...]


KNOWN = (
    KnownBlock("torchvision.models.resnet", ("conv3", "bn3"), ("bn3",)),
    KnownBlock("torchvision.models.resnet", ("conv2", "bn2"), ("bn2",)),
    KnownBlock(
        "torchvision.models.vision_transformer", ("self_attention", "mlp"), ("dropout", "mlp")
    ),
    # BERT and its relatives.
    KnownBlock(
        "transformers.models",
        ("attention.output.LayerNorm", "intermediate.dense", "output.LayerNorm"),
        ("attention.output.dropout", "output.dropout"),
    ),
    # DistilBERT.
    KnownBlock(
        "transformers.models",
        ("sa_layer_norm", "output_layer_norm"),
        ("attention.out_lin", "ffn.dropout"),
    ),
    # Wav2Vec2 and its relatives.
    KnownBlock(
        "transformers.models",
        ("attention", "layer_norm", "final_layer_norm"),
        ("dropout", "feed_forward.output_dropout"),
    ),
    # ViT and its relatives: one layer, called twice, ends both branches.
    KnownBlock(
        "transformers.models", ("layernorm_before", "layernorm_after", "mlp.fc2"), ("dropout",)
    ),
)


class BranchEnd(NamedTuple):
    """Where a residual branch ends.

    Attributes:
        block: Name of the block.
        name: Name of the layer there.
        way: Whether drop path is attached to this layer, or takes its place.
    """

    block: str
    name: str
    way: Literal["attached", "in place"]


def branch_ends(model: nn.Module) -> list[BranchEnd]:
    """List where the residual branches of a model end, in the order of depth.

    Returns:
        The ends; none if no block of the model is known.
    """
    found: list[BranchEnd] = []
    for name, block in model.named_modules():
        prefix = f"{name}." if name else ""
        slots = [slot for slot in (*block._modules, *vars(block)) if SLOT.fullmatch(slot)]
        slots = [slot for slot in slots if isinstance(getattr(block, slot), nn.Module | None)]
        if slots:
            found += [BranchEnd(name, prefix + slot, "in place") for slot in slots]
            continue
        if type(block).__name__ == "StochasticDepth":
            found.append(BranchEnd(name, name, "in place"))
            continue
        known = next((kind for kind in KNOWN if _is(block, kind)), None)
        if known is not None:
            for end in known.ends:
                layer = block.get_submodule(end)
                # A sequence would call what is attached to it as one of its layers.
                last = f".{len(layer) - 1}" if isinstance(layer, nn.Sequential) else ""
                found.append(BranchEnd(name, prefix + end + last, "attached"))
    return found


def _is(block: nn.Module, kind: KnownBlock) -> bool:
    packages = [f"{parent.__module__}." for parent in type(block).__mro__]
    return any(package.startswith(f"{kind.package}.") for package in packages) and all(
        _has(block, name) for name in (*kind.layers, *kind.ends)
    )


def _has(block: nn.Module, name: str) -> bool:
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True
