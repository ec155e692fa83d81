"""Sharpness-aware minimization: the gradient at the worst weights in a neighbourhood."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .checks import check_amount


def sam_perturbation(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.01,
) -> list[Tensor]:
    """Return the perturbation of the weights that raises the loss most. See `SharpnessAware`.

    Example:
        >>> sam_perturbation([torch.zeros(2)], [torch.tensor([3.0, 4.0])], rho=0.5)
        [tensor([0.3000, 0.4000])]
    """
    if adaptive:
        scales = [weight.abs() + eta for weight in weights]
        gradients = [g * scale for g, scale in zip(gradients, scales, strict=True)]
    norm = torch.nn.utils.get_total_norm(gradients)
    length = torch.where(norm > 0, rho / norm, 0.0)
    steps = [g * length.to(g) for g in gradients]
    if adaptive:
        steps = [step * scale for step, scale in zip(steps, scales, strict=True)]
    return steps


class SharpnessAware:
    """Sharpness-aware minimization, SAM (Foret et al. 2021) and ASAM (Kwon et al. 2021).

    It minimizes the largest loss within a distance `rho` of the weights, which leads to flat
    minima. Each step takes two passes over the batch. The first computes the gradient g and the
    perturbation rho g / |g|. The second computes the gradient at the perturbed weights, which the
    optimizer applies to the original weights. ASAM measures the distance relative to each weight,
    with T = |w| + eta: its perturbation is rho T^2 g / |T g|. If eta is 0, scaling one layer up and
    the next one down has no effect.

    The second pass repeats the first with other weights: PyTorch's generators and those of layers
    (their attribute `generator`) draw the same masks, and buffers, such as the running statistics
    of batch norm, are updated only once.

    Under data parallelism each rank perturbs the weights by the gradient of its own batch; the
    paper calls this m-sharpness and finds it better. The gradients of the second pass are averaged
    as usual.

    Args:
        model: The model; all parameters that require a gradient are perturbed.
        rho: Radius of the neighbourhood, at least 0; 0.05 in the paper, 0.5 for ASAM.
        adaptive: Whether to use ASAM.
        eta: Added to the absolute value of each weight in ASAM, at least 0.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> model, x = nn.Linear(2, 1), torch.randn(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sam = SharpnessAware(model, rho=0.05)
        >>> optimizer.zero_grad()
        >>> sam.climb(lambda: model(x).square().mean()).backward()
        >>> sam.restore()
        >>> optimizer.step()
    """

    def __init__(
        self, model: nn.Module, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01
    ) -> None:
        check_amount("rho", rho)
        check_amount("eta", eta)
        if not isinstance(adaptive, bool):
            raise ValueError(f"adaptive is True or False, not {adaptive!r}")
        self.model = model
        self.rho = rho
        self.adaptive = adaptive
        self.eta = eta
        self._before: list[tuple[Tensor, Tensor]] = []

    @property
    def perturbed(self) -> bool:
        """Whether the weights are perturbed: from within `climb` until `restore`."""
        return bool(self._before)

    def climb(self, loss: Callable[[], Tensor]) -> Tensor:
        """Perturb the weights, and return the loss there; the caller then calls its `backward`.

        Args:
            loss: Computes the loss of a batch; it is called twice. Its first call adds nothing to
                the gradients of the parameters.

        Raises:
            RuntimeError: The weights are already perturbed: `restore` was not called.
        """
        if self.perturbed:
            raise RuntimeError("the weights are already perturbed; call restore() after backward()")
        weights = [p for p in self.model.parameters() if p.requires_grad]
        start = _LayerState(self.model)
        devices = {p.device for p in weights if p.device.type != "cpu"}
        # On exit the RNG state is restored for the second pass.
        with torch.random.fork_rng(devices):
            found = torch.autograd.grad(loss(), weights, allow_unused=True)
        used = [(w, g) for w, g in zip(weights, found, strict=True) if g is not None]
        with torch.no_grad():
            perturbed, gradients = [w for w, _ in used], [g for _, g in used]
            steps = sam_perturbation(perturbed, gradients, self.rho, self.adaptive, self.eta)
            self._before = [(weight, weight.clone()) for weight in perturbed]
            for weight, step in zip(perturbed, steps, strict=True):
                weight.add_(step)
        # The cache holds half-precision copies of the original weights.
        torch.clear_autocast_cache()
        try:
            with start.restored():
                return loss()
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the original weights exactly; call it after `backward`, before the optimizer."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before = []
        torch.clear_autocast_cache()


class _LayerState:
    """The buffers of a model and the generators of its layers at the start of a pass."""

    def __init__(self, model: nn.Module) -> None:
        modules = [*model.modules()]
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
        self.buffers = [
            (module, name, copies[id(buffer)])
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.generators = [
            (module, generator, None if generator is None else generator.get_state())
            for module in modules
            if hasattr(module, "generator")
            for generator in [module.generator]
            if generator is None or isinstance(generator, torch.Generator)
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore this state for a second pass; on exit buffers are those of the first pass."""
        for module, generator, state in self.generators:
            # None too: a layer that made its generator in the first pass makes it again.
            module.generator = generator
            if generator is not None:
                generator.set_state(state)
        now = [(module, name, getattr(module, name)) for module, name, _ in self.buffers]
        for module, name, buffer in self.buffers:
            setattr(module, name, buffer)
        try:
            yield
        finally:
            for module, name, buffer in now:
                setattr(module, name, buffer)
