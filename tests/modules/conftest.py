"""What the tests of the layers share."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def assert_rate() -> Callable[[Tensor, float], None]:
    """Assert that independent events happen at a rate, to within less than 1 % of it."""

    def check(events: Tensor, rate: float) -> None:
        margin = 3 * math.sqrt(rate * (1 - rate) / events.numel())
        # A rate (of events, or of their absence) that is 1 % off must lie as far outside of the
        # interval as the interval is wide, or the test could not see it.
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
