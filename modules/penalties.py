"""Penalties on weights."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group with and one without weight decay.

    Decay is for the matrices and kernels of linear, convolutional and recurrent layers. Norms and
    biases are few and do not overfit (He et al. 2019, "Bag of Tricks"); the rows of an embedding
    that a batch does not touch would fade without a gradient to hold them.

    Args:
        model: The model to be trained.
        weight_decay: Decay of the first group; the second has none.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> [(len(g["params"]), g["weight_decay"]) for g in parameter_groups(model, 0.1)]
        [(1, 0.1), (3, 0.0)]
    """
    # Known by their layer, for their weights may be matrices too.
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm))
        for parameter in module.parameters(recurse=False)
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in exempt]
    chosen = {id(p) for p in decayed}
    kept = [p for p in parameters if id(p) not in chosen]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
