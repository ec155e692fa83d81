"""Repeated looks: error and coverage over simulated studies, and the critical values."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize, stats

from study.sequential import LEVELS, Boundary, adjust, next_boundary
from study.statistics import Estimate, p_value, paired_estimate

STUDIES = 1000
# Looks, and the numbers of pairs at which the time of a study can run out.
LOOKS = [5, 8, 12, 20]
ENDS = [5, 8, 10, 15, 20]


def naive(pairs, most, earlier):
    """A boundary that ignores the looks before: the t interval at each look."""
    return SimpleNamespace(looks=(), estimate=paired_estimate, p_value=p_value)


def one_study(arms, end, precision, boundary_of):
    """Return estimates and corrected p-values of a study at the look at which it stops."""
    earlier, looks = (), [n for n in LOOKS if n < end] + [end]
    for look in looks:
        most = end if look == end else LOOKS[-1]
        boundary = boundary_of(look, most, earlier)
        earlier = boundary.looks
        differences = arms[1:, :look] - arms[0, :look]
        estimates = [boundary.estimate(one) for one in differences]
        first, *others = (boundary.p_value(one) for one in differences)
        p_values = adjust(first, others)
        narrow = all(one.high - one.low < 2 * precision for one in estimates)
        # The naive study also stops as soon as it has something to claim.
        if narrow or (boundary_of is naive and min(p_values) < 0.05):
            break
    return estimates, p_values


def claims_and_coverage(boundary_of):
    """Count the studies without an effect that claim one, and the intervals with the mean."""
    rng = np.random.default_rng(0)
    claims = covering = 0
    for _ in range(STUDIES):
        arms = rng.standard_normal((4, LOOKS[-1]))
        estimates, p_values = one_study(arms, rng.choice(ENDS), 1.2, boundary_of)
        claims += min(p_values) < 0.05
        covering += sum(one.low <= 0 <= one.high for one in estimates)
    return claims, covering / (3 * STUDIES)


def test_of_1000_studies_without_an_effect_at_most_5_percent_claim_one():
    claims, coverage = claims_and_coverage(next_boundary)
    assert claims <= 0.05 * STUDIES
    assert coverage >= 0.95


def test_a_plain_t_interval_at_every_look_fails_both():
    claims, coverage = claims_and_coverage(naive)
    assert claims > 0.05 * STUDIES
    assert coverage < 0.95


@pytest.mark.parametrize("looks", [(3, 4, 5, 6), (5, 8, 12, 20), (4, 40)], ids=str)
def test_the_error_of_all_looks_is_what_they_spend(looks):
    earlier = ()
    for look in looks:
        boundary = next_boundary(look, looks[-1], earlier)
        earlier = boundary.looks
    criticals = [Boundary(earlier[: k + 1]).critical for k in range(len(looks))]
    studies = 50_000
    differences = np.random.default_rng(1).standard_normal((studies, looks[-1]))
    beyond = np.zeros(studies, bool)
    for (pairs, spent), critical in zip(earlier, criticals, strict=True):
        statistic = stats.ttest_1samp(differences[:, :pairs], 0.0, axis=1).statistic
        beyond |= abs(statistic) >= critical
        # Four standard errors.
        assert beyond.mean() == pytest.approx(spent, abs=4 * np.sqrt(spent / studies))


def test_with_many_pairs_the_second_critical_value_is_that_of_two_normal_statistics():
    looks = ((1000, 0.02), (2000, 0.05))
    first = stats.norm.isf(0.01)
    law = stats.multivariate_normal(cov=[[1, np.sqrt(0.5)], [np.sqrt(0.5), 1]])

    def within(second):
        return law.cdf([first, second], lower_limit=[-first, -second])

    second = optimize.brentq(lambda c: within(c) - 0.95, 1.5, 4)
    assert Boundary(looks[:1]).critical == pytest.approx(first, rel=0.01)
    assert Boundary(looks).critical == pytest.approx(second, rel=0.01)


def test_one_look_is_a_t_test_at_the_level_that_it_spends():
    boundary = next_boundary(6, most=6)
    assert boundary.alpha_spent == pytest.approx(0.04)
    differences = [0.2, 0.5, -0.1, 0.4, 0.3, 0.6]
    plain = stats.ttest_1samp(differences, 0.0)
    interval = plain.confidence_interval(0.96)
    found = boundary.estimate(differences)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.003)
    assert boundary.p_value(differences) == pytest.approx(plain.pvalue / 0.8, rel=0.02)


def test_p_is_below_5_percent_exactly_if_the_interval_excludes_zero():
    boundary = next_boundary(12, 20, next_boundary(5, 20).looks)
    critical = boundary.critical
    assert boundary.p_values(critical * np.array([1.001, 0.999])) == pytest.approx(0.05, rel=0.02)
    assert boundary.p_values(critical * 1.001) < 0.05 < boundary.p_values(critical * 0.999)
    assert np.all(np.diff(boundary.criticals) <= 0)
    # So far in the tail that no simulated study reaches it.
    assert boundary.p_values(1000.0) == pytest.approx(LEVELS[0])


def test_a_look_before_its_time_spends_less_and_the_rest_can_still_be_spent():
    planned = next_boundary(8, 20)
    last = next_boundary(8, 8)
    assert planned.alpha_spent == pytest.approx(0.05 * 0.8 * 8 / 20)
    assert planned.critical > last.critical
    continued = next_boundary(30, 30, last.looks)
    assert last.alpha_spent < continued.alpha_spent < 0.05


@pytest.mark.parametrize(
    ("differences", "estimate", "p"),
    [([0.5] * 4, Estimate(0.5), None), ([0.0] * 4, Estimate(0.0, 0.0, 0.0), 1.0)],
)
def test_equal_differences(differences, estimate, p):
    boundary = next_boundary(4, 4)
    assert boundary.estimate(differences) == estimate
    assert boundary.p_value(differences) == p


@pytest.mark.parametrize("numbers", [(2, 8), (9, 8), (5, 8, ((5, 0.01),))])
def test_impossible_looks_are_refused(numbers):
    with pytest.raises(ValueError, match=str(numbers[0])):
        next_boundary(*numbers)


def test_differences_of_another_look_are_refused():
    with pytest.raises(ValueError, match="after 4 pairs, not 5"):
        next_boundary(4, 4).estimate([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_other_contrasts_count_only_if_the_primary_one_is_significant():
    assert adjust(0.01, [0.04, 0.02]) == pytest.approx([0.01, 0.04, 0.04])
    assert adjust(0.06, [0.001, 0.5]) == pytest.approx([0.06, 0.06, 0.5])
    assert adjust(None, [0.001, None]) == [None, 1.0, None]
    assert adjust(0.03, []) == [0.03]
