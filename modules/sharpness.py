"""Sharpness-aware minimization: the gradient at the worst weights nearby."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modules.dropout import check_amount


def sam_perturbation(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.01,
) -> list[Tensor]:
    """Return what to add to the weights to raise the loss most. See `SharpnessAware`.

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
    minima. Each step takes two passes over the batch: the first finds the perturbation
    rho g / |g| along the gradient g, and the second one the gradient at the perturbed weights,
    which the optimizer then applies at the weights themselves. ASAM measures the distance relative
    to each weight, with T = |w| + eta: its perturbation is rho T^2 g / |T g|, and scaling one layer
    up and the next one down changes nothing (if eta is 0).

    The second pass is the first one again but for the weights: PyTorch's generators and those of
    layers (their attribute `generator`) draw the same masks, and buffers, such as the running
    statistics of batch norm, are those of before and do not move twice.

    Under data parallelism each rank perturbs by the gradient of its own batch, which the paper
    calls m-sharpness, and finds to be better; the gradients of the second pass are averaged as
    always.

    Args:
        model: The model; all parameters that require a gradient are perturbed.
        rho: Distance, at least 0; 0.05 in the paper, for ASAM 0.5.
        adaptive: Whether it is ASAM.
        eta: Added to the size of each weight in ASAM, at least 0.

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
        """Whether the weights are perturbed, from within `climb` until `restore`."""
        return bool(self._before)

    def climb(self, loss: Callable[[], Tensor]) -> Tensor:
        """Perturb the weights, and return the loss there, for the caller to go backward from.

        Args:
            loss: Computes the loss of a batch; it is called twice. Its first call adds nothing to
                the gradients of the parameters.

        Raises:
            RuntimeError: The weights are perturbed already: `restore` was not called.
        """
        if self.perturbed:
            raise RuntimeError("the weights are perturbed; call restore() after backward()")
        weights = [p for p in self.model.parameters() if p.requires_grad]
        start = _Start(self.model)
        devices = {p.device for p in weights if p.device.type != "cpu"}
        # Left, it gives the random numbers back, for the second pass.
        with torch.random.fork_rng(devices):
            found = torch.autograd.grad(loss(), weights, allow_unused=True)
        used = [(w, g) for w, g in zip(weights, found, strict=True) if g is not None]
        with torch.no_grad():
            moved, gradients = [w for w, _ in used], [g for _, g in used]
            steps = sam_perturbation(moved, gradients, self.rho, self.adaptive, self.eta)
            self._before = [(weight, weight.clone()) for weight in moved]
            for weight, step in zip(moved, steps, strict=True):
                weight.add_(step)
        # It holds the weights of the first pass in half precision.
        torch.clear_autocast_cache()
        try:
            with start.again():
                return loss()
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit; call it after `backward`, before the optimizer."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before = []
        torch.clear_autocast_cache()


class _Start:
    """The buffers of a model, and the generators of its layers, that a pass begins with."""

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
    def again(self) -> Iterator[None]:
        """Begin so once more; what the first pass has made of the buffers comes back afterwards."""
        for module, generator, state in self.generators:
            # A layer that made its generator in the first pass makes it again.
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
