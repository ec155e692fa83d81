"""Fixtures and cases of the tests of the layers."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from regain import (
    AlphaDropout,
    AttentionDropout,
    ChannelDropout,
    DropBlock,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    LayerDrop,
    LockedDropout,
    WeightDrop,
    WordDropout,
    cpudropout,
    kernels,
)


@pytest.fixture
def assert_rate() -> Callable[[Tensor, float], None]:
    """Assert that independent events happen at a rate, to within less than 1 % of it."""

    def check(events: Tensor, rate: float) -> None:
        margin = 3 * math.sqrt(rate * (1 - rate) / events.numel())
        # A rate that is 1 % off must lie outside the interval by its half-width; otherwise the test
        # could not detect it.
        assert 2 * margin <= 0.01 * min(rate, 1 - rate), "the sample is too small"
        assert abs(events.double().mean().item() - rate) <= margin

    return check


@pytest.fixture
def assert_independent() -> Callable[[Tensor, int], None]:
    """Assert that neighbours along a dimension are not correlated."""

    def check(events: Tensor, dim: int) -> None:
        length = events.shape[dim]
        first = events.narrow(dim, 0, length - 1).double().flatten()
        second = events.narrow(dim, 1, length - 1).double().flatten()
        correlation = torch.corrcoef(torch.stack((first, second)))[0, 1].item()
        assert abs(correlation) <= 4 / math.sqrt(len(first))

    return check


@pytest.fixture(scope="module", params=["kernels", "operations"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with the compiled kernels, for inputs of any size, and with PyTorch operations."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operations":
            patch.setattr(kernels, "compiled_kernels", lambda: None)
        elif kernels.compiled_kernels() is None:
            pytest.skip("there is no C compiler here, and so no kernel to test")
        else:
            patch.setattr(cpudropout, "MIN_SIZE", 1)
        yield request.param


class OfImages(nn.Module):
    """Applies a layer for images to sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.unsqueeze(2)).squeeze(2)
        return y


class OfTable(nn.Module):
    """Dropout of the rows of an embedding whose table is the input."""

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.drop = EmbeddingDropout(nn.Embedding.from_pretrained(torch.ones(1, 1)), p, generator)

    def forward(self, x: Tensor) -> Tensor:
        table = x.flatten(1)
        self.drop.table = nn.Embedding.from_pretrained(torch.ones_like(table))
        ids = torch.arange(len(x))
        return functional_call(self.drop, {"table.weight": table}, (ids,)).view_as(x)


class Weight(nn.Module):
    """Returns its weight times its input."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class OfWeight(nn.Module):
    """Dropout of a weight that is the input."""

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.drop = WeightDrop(Weight(torch.ones(())), ["weight"], p, generator)

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.drop, {"layer.weight": x}, (torch.ones_like(x),))


class OfWords(nn.Module):
    """Word dropout with one word per element of the input: zero where the word is replaced."""

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.drop = WordDropout(p, replacement=0, kept=[], generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(1, x.numel() + 1).view_as(x)
        return x * (self.drop(ids) == ids)


class Double(nn.Module):
    """Twice the input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class OfLayer(nn.Module):
    """The difference of output and input: zero where the layer is skipped."""

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.drop = LayerDrop(Double(), p, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) - x


@dataclass(frozen=True)
class Case:
    """A layer, as a module that returns `x` with some elements dropped.

    Attributes:
        name: Name of the case.
        make: Makes the module from `p` and a generator.
        layer: Class of the layer.
        same: Dimensions of a three-dimensional input along which the draw is the same.
        independent: Dimensions along which the draws are independent.
        dims: Least number of dimensions of the input.
        scaled: Whether kept elements are scaled.
        masks: Whether elements are either zero or scaled.
    """

    name: str
    make: Callable[..., nn.Module]
    layer: type[nn.Module]
    same: tuple[int, ...]
    independent: tuple[int, ...]
    dims: int = 1
    scaled: bool = True
    masks: bool = True

    def single(self, draws: int) -> tuple[int, ...]:
        """Return a shape with at least this number of independent draws, one per element."""
        side = math.ceil(draws ** (1 / len(self.independent)))
        return tuple(side if dim in self.independent else 1 for dim in range(3))

    def dropped(self, y: Tensor) -> Tensor:
        """Return where an input of ones was dropped; for noise, where it is below its mean."""
        return y <= (1 if self.layer is GaussianDropout else 0)


CASES = [
    Case("Dropout", Dropout, Dropout, (), (0, 1, 2)),
    Case("ChannelDropout", ChannelDropout, ChannelDropout, (2,), (0, 1), dims=2),
    Case("LockedDropout", LockedDropout, LockedDropout, (1,), (0, 2), dims=2),
    Case("LockedDropout-1", partial(LockedDropout, dim=-1), LockedDropout, (2,), (0, 1)),
    Case("GaussianDropout", GaussianDropout, GaussianDropout, (), (0, 1, 2), masks=False),
    Case("AlphaDropout", AlphaDropout, AlphaDropout, (), (0, 1, 2), masks=False),
    Case("WordDropout", OfWords, WordDropout, (), (0, 1, 2), scaled=False),
    Case("EmbeddingDropout", OfTable, EmbeddingDropout, (1, 2), (0,), dims=2),
    Case("WeightDrop", OfWeight, WeightDrop, (), (0, 1, 2)),
    Case("DropPath", DropPath, DropPath, (1, 2), (0,)),
    Case("DropHead", lambda p, g=None: DropHead(p, generator=g), DropHead, (2,), (0, 1), dims=2),
    Case("DropHead-2", lambda p, g=None: DropHead(p, 2, g), DropHead, (1,), (0, 2), dims=3),
    Case(
        "AttentionDropout",
        lambda p, g=None: AttentionDropout(p, generator=g),
        AttentionDropout,
        (),
        (0, 1, 2),
    ),
    # A key is dropped for all queries.
    Case(
        "AttentionDropout-columns",
        lambda p, g=None: AttentionDropout(p, columns=True, generator=g),
        AttentionDropout,
        (1,),
        (0, 2),
        dims=2,
    ),
    # Positions of a block are dependent: they have a separate test.
    Case("DropBlock", lambda p, g=None: DropBlock(p, 3, g), DropBlock, (), (0, 1), dims=3),
    # One draw per call: most properties have separate tests.
    Case("LayerDrop", OfLayer, LayerDrop, (0, 1, 2), (), scaled=False),
]


def cases(choose: Callable[[Case], object] = lambda case: True) -> Callable[[Any], Case]:
    """Return a fixture with one parameter per case."""
    chosen = [case for case in CASES if choose(case)]

    @pytest.fixture(scope="session", params=chosen, ids=lambda case: case.name)
    def give(request: pytest.FixtureRequest) -> Case:
        return request.param

    return give


case = cases()
# Layers with more than one draw per call.
drawing = cases(lambda case: case.independent)
# Layers that replace dropped elements by a constant, usually zero.
dropping = cases(lambda case: case.independent and case.layer is not GaussianDropout)
# Layers that set elements to zero and scale the others.
masking = cases(lambda case: case.masks and case.scaled)
# Layers that preserve the mean, with the variance of dropout.
scaling = cases(lambda case: case.scaled and case.layer is not AlphaDropout)
