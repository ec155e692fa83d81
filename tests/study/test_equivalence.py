"""Verdicts with a smallest effect of interest: their error rates, and the number of seeds."""

import numpy as np
import pytest
from scipy import stats

from study.equivalence import (
    classify,
    equivalence_p_value,
    equivalence_power,
    pairs_needed,
)
from study.statistics import detection_power

EFFECT = 1.0


def studies(mean, deviation, pairs, number):
    return np.random.default_rng(0).normal(mean, deviation, (number, pairs))


def rates(mean, deviation=1.5, pairs=12, number=800):
    found = [classify(one, EFFECT) for one in studies(mean, deviation, pairs, number)]
    return {verdict: found.count(verdict) / number for verdict in set(found)}


@pytest.mark.parametrize("mean", [EFFECT, -EFFECT])
def test_a_difference_of_the_effect_is_called_equal_in_5_percent_of_studies(mean):
    # Three standard errors below and above.
    found = rates(mean, deviation=0.8)
    assert found["practically equal"] == pytest.approx(0.05, abs=0.023)


def test_without_a_difference_5_percent_of_studies_show_one():
    found = rates(0.0, pairs=6)
    assert found["gains"] == pytest.approx(0.025, abs=0.017)
    assert found["loses"] == pytest.approx(0.025, abs=0.017)


def test_the_p_value_is_that_of_two_one_sided_tests():
    differences = [0.3, -0.4, 0.5, 0.1, 0.2]
    tests = [
        stats.ttest_1samp(differences, EFFECT, alternative="less"),
        stats.ttest_1samp(differences, -EFFECT, alternative="greater"),
    ]
    expected = max(test.pvalue for test in tests)
    assert equivalence_p_value(differences, EFFECT) == pytest.approx(expected)
    negated = [-one for one in differences]
    assert equivalence_p_value(negated, EFFECT) == pytest.approx(expected)


def test_seeds_with_splits_of_their_own_count_for_less():
    differences = [0.3, -0.4, 0.5, 0.1, 0.2]
    assert equivalence_p_value(differences, EFFECT, overlap=0.25) > 2 * equivalence_p_value(
        differences, EFFECT
    )
    assert classify([0.5, 0.9, 1.6, 1.0], 0.2) == "gains"
    assert classify([0.5, 0.9, 1.6, 1.0], 0.2, overlap=1.0) == "not known yet"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 2.2, 1.9, 2.4], "gains"),
        ([-2.0, -2.2, -1.9, -2.4], "loses"),
        # Above zero, but less than the effect.
        ([0.20, 0.22, 0.19, 0.24], "practically equal"),
        ([3.0, -2.0, 1.0, 0.5], "not known yet"),
        ([5.0, 5.1], "not known yet"),
        ([5.0, 5.0, 5.0], "not known yet"),
        ([0.0, 0.0, 0.0], "practically equal"),
    ],
)
def test_verdict(differences, verdict):
    assert classify(differences, EFFECT) == verdict


def test_corrected_p_values_decide():
    gains, equal = [2.0, 2.2, 1.9, 2.4], [0.1, -0.1, 0.0, 0.2]
    assert classify(gains, EFFECT, p=0.06) == "not known yet"
    assert classify(equal, EFFECT, p_equal=0.06) == "not known yet"


def test_the_effect_must_be_above_zero():
    with pytest.raises(ValueError, match=r"above 0, not 0\.0"):
        equivalence_p_value([0.1, 0.2, 0.3], 0.0)


@pytest.mark.parametrize(("mean", "pairs"), [(0.0, 12), (0.4, 12), (0.0, 4)])
def test_the_power_is_that_of_simulated_studies(mean, pairs):
    differences = studies(mean, 0.8, pairs, 1000)
    p_values = [equivalence_p_value(one, EFFECT) for one in differences]
    found = equivalence_power(mean, EFFECT, 0.8 / np.sqrt(pairs), pairs)
    assert found == pytest.approx(np.mean(np.array(p_values) < 0.05), abs=0.04)
    tests = stats.ttest_1samp(studies(EFFECT, 0.8, pairs, 1000), 0.0, axis=1)
    found = detection_power(EFFECT, 0.8 / np.sqrt(pairs), pairs)
    assert found == pytest.approx(np.mean(tests.pvalue < 0.05), abs=0.04)


def test_with_the_seeds_that_it_asks_for_a_study_tells_in_80_percent():
    # Differences with a deviation of exactly 1.5.
    seen = np.array([-1.0, 1.0, 0.0, -1.0, 1.0])
    seen *= 1.5 / seen.std(ddof=1)
    pairs = 5 + pairs_needed(seen, EFFECT)
    told = min(rates(EFFECT, pairs=pairs)["gains"], rates(0.0, pairs=pairs)["practically equal"])
    # Four seeds fewer tell in 67 %, four more in 87 %.
    assert told == pytest.approx(0.8, abs=0.04)


def test_more_comparisons_and_more_spread_need_more_seeds():
    seen = [1.0, -1.0, 0.5, 0.2]
    needed = pairs_needed(seen, EFFECT)
    assert pairs_needed(seen, EFFECT, comparisons=3) > needed
    assert pairs_needed([2 * one for one in seen], EFFECT) > needed
    assert pairs_needed([10 * one for one in seen], EFFECT) is None
    # The variance that the seeds share is more than the effect allows.
    assert pairs_needed(seen, EFFECT, overlap=1.0) is None
    assert pairs_needed([1.0, 2.0], EFFECT) is None
    assert pairs_needed([1.0, 1.0, 1.0], EFFECT) is None


def test_a_mean_between_zero_and_the_effect_needs_more_seeds_than_planned():
    # 20 differences suffice for a mean of 0 or 1, but not for one between them.
    seen = 0.55 + 1.35 * np.array([-1.0, 1.0] * 10)
    assert classify(seen, EFFECT) == "not known yet"
    assert pairs_needed(seen, EFFECT) > 10
