"""Test-time adaptation of the batch norms of a trained model to a shifted domain."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_amount
from .inference import batch_statistics, moving_norms, recompute_statistics


def adabn(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> None:
    """Recompute the statistics of the batch norms on another domain (Li et al. 2017, AdaBN).

    It calls `recompute_statistics` with batches of the new domain; no labels are needed. The
    weights do not change: the domains are assumed to differ in the mean and variance of channels.

    Args:
        model: The trained model; its weights and modes are not changed.
        batches: Inputs of the new domain, all of one size, with all its classes in each batch.
        forward: Called with each batch; the model itself if None.

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

    A call normalizes a batch by its own statistics, returns the logits, and takes one Adam step on
    the scales and shifts of the batch norms that reduces the entropy of the predictions. No labels
    are needed, and no other parameter changes. The running statistics are updated.

    Args:
        model: The trained model; calls change it, but not its modes and gradients.
        lr: Learning rate, more than 0; 0.001 in the paper for small images. If it is too large, the
            model predicts one class for all examples.
        forward: Called with each batch, returns logits (batch, classes); the model itself if None.

    Shape:
        The input of the model; the output is (batch, classes).

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
        """Adapt the model to a batch, and return its logits from before the step."""
        with self._training_norms_only():
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
        """Restore the batch norms to their state at construction."""
        for norm, first in zip(self.norms, self.first, strict=True):
            norm.load_state_dict(first)
        self.optimizer = torch.optim.Adam(self.parameters, self.lr)

    @contextmanager
    def _training_norms_only(self) -> Iterator[None]:
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
                    # With a count of 0 batch renorm is in its warmup: it uses only the batch.
                    if count is not None:
                        count.zero_()
                for layer in self.model.modules():
                    # cuDNN has a backward pass of recurrent layers only in training mode.
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
    """Adapt a model to a whole set of unlabelled inputs before evaluation (Wang et al. 2021).

    It calls `Tent` with all batches, then recomputes the statistics of the norms on the new domain.
    After that `model.eval()` can predict single examples.

    Args:
        model: The trained model; its modes and other parameters are not changed.
        batches: Inputs of the new domain, all of one size, with all its classes in each batch.
        lr: Learning rate, more than 0.
        epochs: Number of passes over the batches, at least 1.
        forward: Called with each batch, returns logits (batch, classes); the model itself if None.

    Returns:
        The `Tent` object; its `reset` undoes the adaptation.

    Raises:
        ValueError: A value is out of its range, there is no batch, or the model has no batch norm
            to adapt. The model is then unchanged.

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
        # The batches are read several times.
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
