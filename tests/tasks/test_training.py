"""Options of `TrainingRegularization`."""

import dataclasses
import math
from typing import Any

import pytest

from tasks.training import TrainingRegularization

AMOUNTS = "weight_decay l1 l2 max_norm adaptive_clip r_drop sam".split()
COUNTS = "early_stopping norm_recompute".split()
NOT_AMOUNTS = [-0.1, math.nan, math.inf, "0.1", True, None]
NOT_COUNTS = [-1, 1.5, math.nan, "3", True, None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in AMOUNTS for value in NOT_AMOUNTS),
        *((name, value) for name in COUNTS for value in NOT_COUNTS),
        *(("label_smoothing", value) for value in (1.0, -0.1, math.nan, "0.5", None)),
        ("dropout_schedule", "never"),
        ("dropout_schedule", None),
        ("sam_adaptive", 1),
        ("dropout_schedule_fraction", 0),
        ("dropout_schedule_fraction", 1.1),
        ("dropout_schedule_fraction", math.nan),
        ("dropout_schedule_fraction", "0.5"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is ") as refusal:
        TrainingRegularization(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


def test_adaptive_sam_needs_a_distance() -> None:
    with pytest.raises(ValueError, match="sam_adaptive=true needs a distance, and sam is 0"):
        TrainingRegularization(sam_adaptive=True)
    assert TrainingRegularization(sam_adaptive=True, sam=0.5).sam == 0.5


def test_the_default_does_nothing_and_good_values_are_kept() -> None:
    default = TrainingRegularization()
    assert not any(getattr(default, name) for name in (*AMOUNTS, *COUNTS, "label_smoothing"))
    for name in AMOUNTS:
        assert getattr(TrainingRegularization(**{name: 5}), name) == 5
    for name in COUNTS:
        assert getattr(TrainingRegularization(**{name: 3}), name) == 3
    assert TrainingRegularization(dropout_schedule_fraction=1).dropout_schedule_fraction == 1
    again = TrainingRegularization(**dataclasses.asdict(TrainingRegularization(l2=0.5)))
    assert again == TrainingRegularization(l2=0.5)
