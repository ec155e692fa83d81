"""Adapting a trained model to unlabelled batches of a shifted domain, by its batch norms alone."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modules.dropout import check_amount
from modules.inference import batch_statistics, moving_norms, recompute_statistics


def adabn(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> None:
    """Give the batch norms the statistics of another domain (Li et al. 2017, AdaBN).

    The weights stay: what differs between the domains is assumed to be the mean and variance of
    each channel. It needs no labels. It is `recompute_statistics` on batches of the new domain.

    Args:
        model: The trained model; its weights and modes stay as they are.
        batches: Inputs of the new domain, all of one size, with all its classes in each batch.
        forward: What is called with each batch; the model itself if None.

    Raises:
        ValueError: There is no batch, or the model has no batch norm with running statistics.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> adabn(model, [2 * torch.randn(64, 4) + 1 for _ in range(10)])
    """
    if not moving_norms(model):
        raise ValueError("the model has no batch norm with running statistics to adapt")
    recompute_statistics(model, batches, forward)


class Tent:
    """Adapts a model to each batch that it predicts (Wang et al. 2021, Tent).

    A call normalizes a batch by its own statistics, returns the logits, and takes one step of Adam
    on the scales and shifts of the batch norms towards a smaller entropy of the predictions. It
    needs no labels; all other parameters stay. The running statistics follow the batches.

    Args:
        model: The trained model; it is changed by each call, its modes and gradients are not.
        lr: Learning rate, more than 0; 0.001 in the paper on small images. A large one ends with
            the same class for all examples.
        forward: What is called with each batch and returns logits (batch, classes); the model
            itself if None.

    Shape:
        What the model takes; the output is (batch, classes).

    Raises:
        ValueError: `lr` is out of its range, or the model has no batch norm with a scale and
            running statistics.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> online = Tent(model)
        >>> online(torch.randn(64, 4)).shape
        torch.Size([64, 3])
        >>> online.reset()
    """

    def __init__(
        self, model: nn.Module, lr: float = 1e-3, forward: Callable[[Any], Any] | None = None
    ) -> None:
        check_amount("lr", lr)
        if not lr:
            raise ValueError(f"lr is more than 0, not {lr!r}")
        self.model = model
        self.lr = lr
        self.forward = forward or model
        self.norms = moving_norms(model)
        self.parameters = [
            parameter for norm in self.norms for parameter in norm.parameters(recurse=False)
        ]
        if not self.parameters:
            raise ValueError("the model has no batch norm with a scale and running statistics")
        self.first = [
            {name: value.detach().clone() for name, value in norm.state_dict().items()}
            for norm in self.norms
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr)

    def __call__(self, batch: Any) -> Tensor:
        """Return the logits of a batch, and adapt the model to it."""
        with self._only_norms_learn():
            logits: Tensor = self.forward(batch)
            if not len(logits):
                return logits.detach()
            log_p = logits.float().log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            gradients = torch.autograd.grad(entropy, self.parameters, allow_unused=True)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        return logits.detach()

    def reset(self) -> None:
        """Give the batch norms back what they had when this object was made."""
        for norm, first in zip(self.norms, self.first, strict=True):
            norm.load_state_dict(first)
        self.optimizer = torch.optim.Adam(self.parameters, self.lr)

    @contextmanager
    def _only_norms_learn(self) -> Iterator[None]:
        everything = list(self.model.parameters())
        kept = [(parameter.requires_grad, parameter.grad) for parameter in everything]
        counts = [norm.num_batches_tracked for norm in self.norms]
        seen = [None if count is None else count.clone() for count in counts]
        dropouts = []
        try:
            with batch_statistics(self.model), torch.enable_grad():
                for parameter in everything:
                    parameter.requires_grad_(False)
                for parameter in self.parameters:
                    parameter.requires_grad_(True)
                for count in counts:
                    # In its warmup, a batch renorm uses the statistics of the batch alone.
                    if count is not None:
                        count.zero_()
                for layer in self.model.modules():
                    # On the GPU a recurrent layer has a backward pass in training mode alone.
                    if isinstance(layer, nn.RNNBase):
                        dropouts.append((layer, layer.dropout))
                        layer.dropout, layer.training = 0.0, True
                yield
        finally:
            for layer, dropout in dropouts:
                layer.dropout = dropout
            for count, before in zip(counts, seen, strict=True):
                if count is not None and before is not None:
                    count.copy_(before)
            for parameter, (required, gradient) in zip(everything, kept, strict=True):
                parameter.requires_grad_(required)
                parameter.grad = gradient


def tent(
    model: nn.Module,
    batches: Iterable[Any],
    lr: float = 1e-3,
    epochs: int = 1,
    forward: Callable[[Any], Any] | None = None,
) -> Tent:
    """Adapt a model to a whole set of unlabelled inputs (Wang et al. 2021), and then evaluate it.

    It goes over all batches as `Tent` does, and gives the norms the statistics of the new domain
    at the end, so that `model.eval()` predicts single examples.

    Args:
        model: The trained model; its modes and all other parameters stay as they are.
        batches: Inputs of the new domain, all of one size, with all its classes in each batch.
        lr: Learning rate, more than 0.
        epochs: How often all batches are seen, at least 1.
        forward: What is called with each batch and returns logits (batch, classes); the model
            itself if None.

    Returns:
        What `reset` of undoes it.

    Raises:
        ValueError: A value is out of its range, there is no batch, or the model has no batch norm
            to adapt. The model is then as before.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> adapted = tent(model, [2 * torch.randn(64, 4) + 1 for _ in range(10)], epochs=2)
        >>> adapted.reset()
    """
    check_amount("epochs", epochs, whole=True)
    if not epochs:
        raise ValueError(f"epochs is at least 1, not {epochs!r}")
    adapted = Tent(model, lr, forward)
    if isinstance(batches, Iterator):
        # It is gone over several times.
        batches = list(batches)
    try:
        for _ in range(epochs):
            for batch in batches:
                adapted(batch)
        recompute_statistics(model, batches, forward)
    except BaseException:
        adapted.reset()
        raise
    return adapted
