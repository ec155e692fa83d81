"""What a study advises: what to use, what is open, and how many seeds would settle it."""

from typing import Any

import numpy as np
import pytest

from study.gain_table import GainTable
from study.next_steps import NOT_AFTER_HOLM, note, steps_after
from study.statistics import p_value, seeds_to_settle
from study.verdict import verdict
from tests.study.conftest import Planted, read_tables, record, right


def table_of(planted: Planted, gains: dict[str, list[int]], **options: Any) -> GainTable:
    """Return the table of variants with given gains over `none`, in points, by seed."""
    seeds = range(len(next(iter(gains.values()))))
    arms = {"none": [record(s, right(500 + s, 1000)) for s in seeds]}
    for name, each in gains.items():
        arms[name] = [
            record(s, right(500 + s + 10 * gain, 1000), name, **options)
            for s, gain in zip(seeds, each, strict=True)
        ]
    return read_tables(planted(arms))[1][0]


def test_tied_variants_are_to_be_used_and_the_faster_one_is_named(planted: Planted) -> None:
    table = table_of(
        planted,
        {"dropout": [10, 11, 12, 10], "both": [11, 10, 12, 11]},
        seconds={"train": 1.0, "all": 2.0},
    )
    first = steps_after(table).steps[0]
    assert first.startswith("Use both or dropout: they are statistically tied.")
    assert first.endswith("has the shortest training step, x0.50 that of none.")
    assert steps_after(table).seeds is None


def test_equal_gains_with_all_seeds_are_open_and_not_called_small(planted: Planted) -> None:
    steps = steps_after(table_of(planted, {"dropout": [4, 4, 4], "both": [0, 0, 0]}))
    assert steps.steps == [
        "Keep none: no gain over it is shown.",
        "Open: dropout, +4.00 points with each of 3 seeds. Equal gains give no interval: run more "
        "seeds.",
        "both: a gain too small to be shown with 100 seeds, if any.",
    ]
    assert steps.seeds == 5


def test_an_interval_without_zero_is_told_from_a_significant_gain(planted: Planted) -> None:
    # p is 0.03 for dropout, 0.09 after the correction for three variants.
    table = table_of(
        planted,
        {
            "dropout": [1, 5, 2, 6, 1],
            "batchnorm": [0, -1, 2, 1, -2],
            "both": [1, 0, 2, -3, 1],
        },
    )
    dropout = table.comparisons[1]
    assert dropout.p is not None
    assert dropout.p_holm is not None
    assert dropout.p < 0.05 < dropout.p_holm
    assert [note(one) for one in table.comparisons] == ["", NOT_AFTER_HOLM, "", ""]
    assert verdict(table).endswith(
        "The interval of dropout excludes 0, but the gain is not significant after Holm's "
        "correction."
    )
    advice = steps_after(table)
    assert advice.steps[0] == "Keep none: no gain over it is shown."
    assert advice.steps[1].startswith("Open: dropout, +3.00 points (+0.")
    assert f"{dropout.seeds_needed} seeds show it with a probability of 80 %" in advice.steps[1]
    assert advice.seeds == dropout.seeds_needed
    assert advice.steps[-1] == (
        "batchnorm and both: a gain too small to be shown with 100 seeds, if any."
    )


def test_two_seeds_are_too_few_and_three_are_advised(planted: Planted) -> None:
    advice = steps_after(table_of(planted, {"dropout": [9, 10]}))
    assert advice.seeds == 3
    assert "at least 3 seeds" in advice.steps[0]


def test_the_advised_seeds_show_the_gain_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(0)
    # Three differences with mean 1 and deviation 1, two comparisons.
    number = seeds_to_settle([0.0, 1.0, 2.0], comparisons=2)
    assert number is not None

    def power(seeds: int) -> float:
        studies = rng.normal(1.0, 1.0, (4000, seeds))
        return float(np.mean([(p_value(study) or 1.0) < 0.05 / 2 for study in studies.tolist()]))

    assert power(number) == pytest.approx(0.82, abs=0.03)
    assert power(number - 2) < 0.78
    # Splits of their own share examples: more seeds, or none are enough.
    more = seeds_to_settle([0.0, 1.0, 2.0], comparisons=2, overlap=0.02)
    assert more is not None
    assert more > number
    assert seeds_to_settle([0.0, 1.0, 2.0], comparisons=2, overlap=1.0) is None
