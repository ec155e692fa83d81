"""Variational dropout: Gaussian noise on units or weights, with learned rates."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_amount, check_flag, check_generator, check_rate
from .dropout import normal
from .dropoutkinds import DropoutSite, register_dropout
from .learned import LearnedDropout
from .tracing import is_proxy, record_function, recordable

# The constants of equation 14 of Molchanov et al. (2017).
K1, K2, K3 = 0.63576, 1.87320, 1.48695
# Noise with a larger variance overflows in half precision, and carries no more information.
LARGEST_LOG_ALPHA = 10.0


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """Return the elementwise KL divergence of N(w, alpha w^2) from a log-uniform prior.

    This is the approximation of Molchanov et al. (2017, equation 14), within 0.01 of the integral
    for every alpha. It falls from infinity at alpha = 0 to 0 at alpha = infinity.

    Args:
        log_alpha: Logarithm of the variance over the squared mean.

    Shape:
        Any shape; the output has the same.

    Example:
        >>> log_uniform_kl(torch.tensor([-4.0, 0.0, 4.0])).double().round(decimals=3).tolist()
        [2.634, 0.431, 0.009]
    """
    # softplus computes log(1 + 1 / alpha) without overflow.
    return K1 * torch.sigmoid(-K2 - K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)


def variational_dropout(
    x: Tensor,
    log_alpha: Tensor,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Multiply each element by N(1, alpha), with a gradient for alpha. See `VariationalDropout`.

    Raises:
        ValueError: `log_alpha` is neither one value nor one for each feature of `x`.
    """
    if is_proxy(x):
        return record_function(variational_dropout, x, log_alpha, training, generator)
    if x.dim() < 2 or log_alpha.numel() not in (1, x.shape[1]):
        raise ValueError(
            f"variational dropout of {log_alpha.numel()} features needs (batch, features, ...), "
            f"not {tuple(x.shape)}"
        )
    if not training:
        return x
    std = (0.5 * log_alpha.clamp(max=LARGEST_LOG_ALPHA)).exp().to(x.dtype)
    noise = normal(x.shape, x.dtype, x.device, generator)
    return x * (1.0 + noise * std.view(-1, *(1,) * (x.dim() - 2)))


class VariationalDropout(LearnedDropout):
    """Gaussian dropout of units that learns its rates (Kingma et al. 2015).

    Each unit is multiplied by noise with mean 1 and variance alpha, drawn for each example and
    position. Dropout with rate p has the variance alpha = p / (1 - p). The paper limits alpha to 1;
    the penalty here is valid for every alpha (Molchanov et al. 2017). The loss alone would drive
    alpha to zero: add the `penalty` of each layer, divided by the number of training examples.

    Args:
        features: Number of features (dimension 1 of the input).
        p: Initial rate, in (0, 1).
        shared: Whether all features share one rate; if False each learns its own.
        generator: Source of randomness; the default one of the device if None.

    Shape:
        (batch, features, ...); the output has the same shape.

    Raises:
        ValueError: `p` is not in (0, 1), or `features` is not a whole number of at least 1.

    Example:
        >>> layer = VariationalDropout(8, p=0.2)
        >>> layer(torch.ones(4, 8)).shape, round(layer.p.item(), 4)
        (torch.Size([4, 8]), 0.2)
    """

    def __init__(
        self,
        features: int,
        p: float = 0.1,
        shared: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if check_rate("p", p) == 0.0:
            raise ValueError(f"p is an initial rate in (0, 1), not {p!r}")
        check_amount("features", features, whole=True)
        if not features:
            raise ValueError(f"features is a whole number of at least 1, not {features!r}")
        check_generator(generator)
        self.features = features
        self.initial = float(p)
        self.shared = check_flag("shared", shared)
        self.generator = generator
        self.log_alpha = nn.Parameter(torch.empty(1 if shared else features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all rates to the initial rate."""
        nn.init.constant_(self.log_alpha, math.log(self.initial / (1.0 - self.initial)))

    @property
    def p(self) -> Tensor:
        """Dropout rate with the variance alpha, averaged over the features; a scalar."""
        return self.whole(self.log_alpha).sigmoid().mean()

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        return variational_dropout(x, self.log_alpha, self.training, self.generator)

    def penalty(self) -> Tensor:
        """Return the KL divergence from the prior, summed over the features; a scalar."""
        kl = log_uniform_kl(self.whole(self.log_alpha)).sum()
        return kl * (self.features if self.shared else 1)

    def extra_repr(self) -> str:
        return f"features={self.features}, initial p={self.initial}, shared={self.shared}"


class _VariationalWeight(LearnedDropout):
    """Base of layers with weights N(weight, exp(log_sigma2)) (Molchanov et al. 2017)."""

    weight: Tensor
    log_sigma2: nn.Parameter
    threshold: float
    initial: float

    def _add_variances(
        self, threshold: float, log_sigma2: float, generator: torch.Generator | None
    ) -> None:
        check_generator(generator)
        self.generator = generator
        for name, value in (("threshold", threshold), ("log_sigma2", log_sigma2)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"{name} is a finite number, not {value!r}")
        self.threshold, self.initial = float(threshold), float(log_sigma2)
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, self.initial))

    def reset_parameters(self) -> None:
        """Initialize the weights like the plain layer, and reset the variances."""
        # `super()` is the plain layer, whose constructor calls this method before there are
        # variances.
        super().reset_parameters()  # type: ignore[misc]
        if hasattr(self, "log_sigma2"):
            nn.init.constant_(self.log_sigma2, self.initial)

    @property
    def log_alpha(self) -> Tensor:
        """Logarithm of each weight's variance over its squared mean, in the shape of the weight."""
        weight, log_sigma2 = self.whole(self.weight), self.whole(self.log_sigma2)
        return log_sigma2 - (weight.square() + 1e-8).log()

    @property
    def p(self) -> Tensor:
        """Dropout rate with the variance alpha, averaged over the weights; a scalar."""
        return self.log_alpha.sigmoid().mean()

    @property
    def kept(self) -> Tensor:
        """Mask of the weights that evaluation keeps."""
        return self.log_alpha < self.threshold

    def sparsity(self) -> float:
        """Return the fraction of the weights that evaluation sets to zero."""
        return 1.0 - self.kept.double().mean().item()

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that look like weights but must not decay."""
        return {"log_sigma2"}

    def penalty(self) -> Tensor:
        """Return the KL divergence from the prior, summed over the weights; a scalar."""
        return log_uniform_kl(self.log_alpha).sum()

    def _sample(self, mean: Tensor, variance: Tensor) -> Tensor:
        # The gradient of the root is infinite at zero, the variance if all inputs are zero.
        std = variance.clamp(min=1e-12).sqrt().to(mean.dtype)
        return mean + std * normal(mean.shape, mean.dtype, mean.device, self.generator)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"


class VariationalLinear(_VariationalWeight, nn.Linear):
    """A linear layer with learned noise on each weight (Molchanov et al. 2017).

    The weights are independent, N(weight, exp(log_sigma2)). The output is drawn instead of the
    weights, for each example separately (local reparametrization, Kingma et al. 2015). Evaluation
    uses the mean weights, and sets those whose log alpha is at least `threshold` to zero: the
    variance of their noise is 20 times their square. Add `penalty` to the loss, divided by the
    number of training examples, with a factor that grows from 0 in the first epochs; otherwise
    weights are dropped before they have learned anything. `log_sigma2` does not decay.

    Args:
        in_features: Number of input features.
        out_features: Number of output features.
        bias: Whether a bias is added; it has no noise.
        threshold: Evaluation drops weights with at least this log alpha; 3 is a rate of 0.95.
        log_sigma2: Logarithm of the initial variance.
        generator: Source of randomness; the default one of the device if None.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (..., in_features) to (..., out_features).

    Raises:
        ValueError: `threshold` or `log_sigma2` is not a finite number.

    Example:
        >>> layer = VariationalLinear(8, 4)
        >>> layer(torch.ones(2, 8)).shape, 0.0 <= layer.sparsity() < 1.0
        (torch.Size([2, 4]), True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold: float = 3.0,
        log_sigma2: float = -10.0,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._add_variances(threshold, log_sigma2, generator)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight * self.kept, self.bias)
        mean = F.linear(x, self.weight, self.bias)
        with _without_autocast(x):
            variance = F.linear(
                _at_least_float32(x).square(), _at_least_float32(self.log_sigma2).exp()
            )
        return self._sample(mean, variance)


class VariationalConv2d(_VariationalWeight, nn.Conv2d):
    """A 2-D convolution with learned noise on each weight (Molchanov et al. 2017).

    Like `VariationalLinear`; the noise of the output is drawn for each position separately.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: As in `torch.nn.Conv2d`.
        stride: As in `torch.nn.Conv2d`.
        padding: As in `torch.nn.Conv2d`; always zero padding.
        dilation: As in `torch.nn.Conv2d`.
        groups: As in `torch.nn.Conv2d`.
        bias: Whether a bias is added; it has no noise.
        threshold: Evaluation drops weights with at least this log alpha; 3 is a rate of 0.95.
        log_sigma2: Logarithm of the initial variance.
        generator: Source of randomness; the default one of the device if None.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (batch, in_channels, height, width) to the output shape of `torch.nn.Conv2d`.

    Raises:
        ValueError: `threshold` or `log_sigma2` is not a finite number.

    Example:
        >>> VariationalConv2d(3, 8, 3, padding=1)(torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        threshold: float = 3.0,
        log_sigma2: float = -10.0,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self._add_variances(threshold, log_sigma2, generator)

    @recordable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, self._conv_forward(x, self.weight * self.kept, self.bias))
        mean = self._conv_forward(x, self.weight, self.bias)
        with _without_autocast(x):
            variance = self._conv_forward(
                _at_least_float32(x).square(), _at_least_float32(self.log_sigma2).exp(), None
            )
        return self._sample(mean, variance)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off, if the device has it: squares overflow in half precision."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@register_dropout("variational")
def _variational(p: float, site: DropoutSite) -> nn.Module:
    return VariationalDropout(site.features, p)
