"""Gradient checkpointing: the backward pass recomputes activations instead of storing them."""

from contextlib import suppress
from typing import Any

from torch import nn


def checkpoint_blocks(model: nn.Module) -> None:
    """Turn on gradient checkpointing in the blocks of a model.

    Raises:
        ValueError: The model has no block that supports it.
    """
    found = False
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "checkpointing"):
            layer.checkpointing = found = True
        # Encoders of the package transformers; the first name is the newer one.
        elif hasattr(layer, "activation_checkpointing_enable"):
            layer.activation_checkpointing_enable({"use_reentrant": False})
            found = True
        elif hasattr(layer, "gradient_checkpointing_enable"):
            layer.gradient_checkpointing_enable({"use_reentrant": False})
            found = True
        elif hasattr(layer, "set_grad_checkpointing"):
            # Models of timm; some raise an AssertionError if they do not support it.
            with suppress(AssertionError):
                layer.set_grad_checkpointing()
                found = True
    if not found:
        raise ValueError(
            "gradient_checkpointing=true recomputes blocks, and this model has none; leave it "
            "at false"
        )
