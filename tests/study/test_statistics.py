"""The statistics, compared with independent computations from `metrics.json` files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from study.gain_table import COLUMNS, gain_tables, rows
from study.results import Result, collect
from study.statistics import (
    Estimate,
    compare,
    holm,
    over_seeds_and_examples,
    p_value,
    paired_estimate,
    tied_for_best,
)
from study.verdict import verdict
from tasks.errors import InputError
from tests.study.conftest import record, right

# Two-sided 95 % and 97.5 % quantiles of Student's t, from a printed table.
T_TWO, T_FOUR = 4.302653, 2.776445


def results(*counts, total=100, **options):
    return {
        seed: Result(record(seed, right(count, total), **options))
        for seed, count in enumerate(counts)
    }


def test_gain_and_interval_are_those_computed_by_hand_from_the_files(gaining):
    accuracy = {}
    for file in Path("runs/studies").glob("*/*/metrics.json"):
        content = json.loads(file.read_text())
        accuracy[content["reg"], content["seed"]] = content["test"]["acc"]
    gains = [accuracy["both", seed] - accuracy["none", seed] for seed in range(3)]
    mean = sum(gains) / 3
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 2 / 3)
    _, dropout, both = gain_tables(collect(gaining))[0].comparisons
    assert both.gain.mean == pytest.approx(mean) == pytest.approx(0.12)
    assert both.gain.low == pytest.approx(mean - T_TWO * error, abs=1e-6)
    assert both.gain.high == pytest.approx(mean + T_TWO * error, abs=1e-6)
    p = 2 * stats.t.sf(mean / error, df=2)
    assert both.p == pytest.approx(p)
    # Holm multiplies the smaller of two p-values by 2.
    assert both.p_holm == pytest.approx(2 * p)
    assert dropout.gain.mean == pytest.approx(0.0)
    assert dropout.p_holm == pytest.approx(1.0)
    assert both.mean == pytest.approx(0.63)
    assert both.deviation == pytest.approx(0.03)


def test_the_pairing_removes_the_effect_of_the_seed():
    # Seeds differ by 20 points, and the variant is always 1 or 2 points better.
    baseline, variant = results(40, 60, 50, 70, 45), results(41, 62, 51, 72, 46)
    gain = compare([baseline, variant])[1].gain
    assert gain.low > 0
    unpaired = stats.ttest_ind([0.41, 0.62, 0.51, 0.72, 0.46], [0.4, 0.6, 0.5, 0.7, 0.45])
    assert unpaired.pvalue > 0.5


def test_only_seeds_that_both_have_are_compared():
    baseline, variant = results(50, 50, 50, 50), results(60, 61, 62, 90)
    del baseline[3]
    one = compare([baseline, variant])[1]
    assert one.seeds == [0, 1, 2]
    assert one.gain.mean == pytest.approx(0.11)
    assert sorted(one.accuracies) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_give_no_interval(count):
    one = compare([results(*[50] * count), results(*[60] * count)])[1]
    assert one.gain == Estimate(pytest.approx(0.1))
    assert one.gain_examples == Estimate(pytest.approx(0.1))
    assert one.p is one.p_holm is None
    assert not one.significant
    assert tied_for_best([results(*[50] * count), results(*[60] * count)]) == []


@pytest.mark.parametrize("gains", [[-0.01] * 3, [0.886 - 0.876, 0.9 - 0.89, 0.01]])
def test_equal_gains_have_no_interval(gains):
    assert paired_estimate(gains) == Estimate(pytest.approx(np.mean(gains)))
    assert p_value(gains) is None


def test_without_changes_the_interval_is_zero():
    assert paired_estimate([0.0, 0.0, 0.0]) == Estimate(0.0, 0.0, 0.0)
    assert p_value([0.0, 1e-17, 0.0]) == 1.0


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([]) == []


def test_ratios_and_changes_are_against_the_baseline_of_the_same_seed():
    baseline = {
        s: Result(
            record(s, right(50, 100), history=[(10, 0.5), (20, 0.6), (30, 0.7)], steps=30 * (s + 1))
        )
        for s in range(3)
    }
    faster = {
        s: Result(
            record(
                s,
                right(50, 100),
                history=[(10, 0.7), (20, 0.6), (30, 0.6)],
                seconds={"train": 4.0, "all": 5.0},
                steps=30 * (s + 1),
                peak_memory_bytes=1_500_000,
                test={"acc": 0.5, "loss": 1, "ece": 0.01 * (s + 1)},
            )
        )
        for s in range(3)
    }
    one = compare([baseline, faster])[1]
    assert one.seconds.mean == pytest.approx(2.0)
    assert one.memory.mean == pytest.approx(1.5)
    assert one.steps.mean == pytest.approx(1 / 3)
    assert one.reached == 3
    assert one.calibration.mean == pytest.approx(0.02 - 0.05)


def test_a_variant_that_never_reaches_the_target_has_no_number_of_steps():
    baseline = {s: Result(record(s, right(50, 100))) for s in range(3)}
    slow = {
        s: Result(record(s, right(50, 100), history=[(10, 0.1), (20, 0.6 if s else 0.2)]))
        for s in range(3)
    }
    one = compare([baseline, slow])[1]
    assert one.steps is None
    assert one.reached == 2


# Standard deviations of the effects of seeds, test examples and both together.
COMPONENTS = [(0.04, 0.3, 0.3), (0.05, 0.2, 0.3), (0.03, 0.3, 0.2), (0.1, 0.1, 0.3)]


def drawn(rng, seeds, examples, components):
    """Draw a table of differences with a true mean of 0."""
    of_seeds, of_examples, of_both = components
    return (
        rng.normal(0, of_seeds, (seeds, 1))
        + rng.normal(0, of_examples, (1, examples))
        + rng.normal(0, of_both, (seeds, examples))
    )


@pytest.mark.parametrize("components", COMPONENTS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_and_examples_has_nominal_coverage(seeds, components):
    rng = np.random.default_rng(5)
    studies = 3000
    covered = 0
    for _ in range(studies):
        found = over_seeds_and_examples(drawn(rng, seeds, 150, components))
        covered += found.low <= 0 <= found.high
    # 94 to 96 %, plus or minus two standard errors of the simulation.
    assert 0.94 - 0.008 < covered / studies < 0.96 + 0.008


@pytest.mark.parametrize("components", [(0.0, 0.1, 0.3), (0.0, 0.0, 0.3), (0.01, 0.05, 0.3)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_is_conservative_if_seeds_hardly_differ(seeds, components):
    # Even if few seeds are similar by chance, the interval includes the noise of the examples.
    rng = np.random.default_rng(5)
    missed, widths = 0, []
    for _ in range(1000):
        found = over_seeds_and_examples(drawn(rng, seeds, 150, components))
        missed += not found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    assert missed / 1000 < 0.06
    least = 2 * 1.96 * components[2] / math.sqrt(seeds * 150)
    assert min(widths) > 0.8 * least
    # With three seeds, intervals vary much in width, but all are finite.
    assert max(widths) < 8 * least


@pytest.mark.parametrize("components", [*COMPONENTS, (0.05, 0.0, 0.3), (0.0, 0.0, 0.3)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_is_never_narrower_than_that_over_seeds(seeds, components):
    rng = np.random.default_rng(6)
    for _ in range(300):
        table = drawn(rng, seeds, 60, components)
        over_seeds = paired_estimate(table.mean(axis=1))
        found = over_seeds_and_examples(table)
        assert found.mean == pytest.approx(over_seeds.mean)
        assert found.high - found.low >= (over_seeds.high - over_seeds.low) * (1 - 1e-9)


def test_the_interval_over_seeds_and_examples_is_that_computed_by_hand():
    # Sums of the rows are 1, 0 and 3, of the columns 3, 2, -2 and 1.
    table = np.array([[1, 1, -1, 0], [1, 0, -1, 0], [1, 1, 0, 1]], dtype=float)
    # Sums of squares: total about the mean, rows, columns, and the residual.
    correction = 4**2 / 12
    of_rows = (1 + 0 + 9) / 4 - correction
    of_columns = (9 + 4 + 4 + 1) / 3 - correction
    left = 8 - correction - of_rows - of_columns
    squares = of_rows / 2, of_columns / 3, left / 6
    variance = (squares[0] + squares[1] - squares[2]) / 12
    freedom = (12 * variance) ** 2 / (
        squares[0] ** 2 / 2 + squares[1] ** 2 / 3 + squares[2] ** 2 / 6
    )
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert half > stats.t.ppf(0.975, 2) * math.sqrt(squares[0] / 12)
    assert over_seeds_and_examples(table) == Estimate(
        pytest.approx(1 / 3), pytest.approx(1 / 3 - half), pytest.approx(1 / 3 + half)
    )


def test_examples_that_all_seeds_share_count_once_and_not_once_a_seed():
    # All seeds gain the same half of the examples, except for a few examples of one seed. The
    # choice of test examples affects all seeds alike: more seeds do not lower this uncertainty.
    gained = [right(50 + (seed == 0), 100) for seed in range(8)]
    arms = [
        {s: Result(record(s, rows[s])) for s in range(8)} for rows in ([[False] * 100] * 8, gained)
    ]
    found = compare(arms)[1].gain_examples
    assert found.high - found.low == pytest.approx(2 * 1.984 * math.sqrt(0.25 / 100), rel=0.02)


def test_seeds_that_differ_in_no_gain_but_in_examples_have_no_interval():
    table = np.zeros((3, 4))
    assert over_seeds_and_examples(table) == Estimate(0.0, 0.0, 0.0)
    table[0, :2] = 1, -1
    assert over_seeds_and_examples(table) == Estimate(0.0)


def test_arms_that_were_tested_on_other_examples_have_no_interval_over_examples():
    baseline, variant = results(50, 51, 52), results(27, 29, 28, total=50, test_set="half")
    one = compare([baseline, variant])[1]
    assert one.gain.low is not None
    assert one.gain_examples is None


def splits(*counts, train=800):
    """Results whose seeds have different test splits, of 100 examples each."""
    sizes = {"train": train, "validation": 100, "test": 100}
    return {
        seed: Result(record(seed, right(count, 100), test_set=str(seed), examples=sizes))
        for seed, count in enumerate(counts)
    }


def test_seeds_with_splits_of_their_own_have_the_corrected_interval():
    # Nadeau & Bengio (2003): 1/n + n_test / n_train instead of 1/n.
    baseline, variant = splits(50, 50, 50, 50, 50), splits(52, 54, 51, 56, 53)
    one = compare([baseline, variant])[1]
    error = math.sqrt(0.00037 * (1 / 5 + 100 / 800))
    assert one.gain.low == pytest.approx(0.032 - T_FOUR * error, abs=1e-6)
    assert one.gain.high == pytest.approx(0.032 + T_FOUR * error, abs=1e-6)
    assert one.p == pytest.approx(2 * stats.t.sf(0.032 / error, df=4))
    # The test examples already differ between seeds.
    assert one.gain_examples == one.gain
    # With the same test examples in all seeds, no correction is needed.
    shared = compare([results(50, 50, 50, 50, 50), results(52, 54, 51, 56, 53)])[1]
    assert shared.gain.low == pytest.approx(0.032 - T_FOUR * math.sqrt(0.00037 / 5), abs=1e-6)
    assert shared.p < one.p


def test_a_part_of_the_training_examples_leaves_the_overlap_as_it_is():
    # The overlap of the test splits of two seeds does not change.
    part = {"config": {"data": {"train_fraction": 0.1}}}
    result = Result(splits(50, train=80)[0].record | part)
    assert result.test_to_train == splits(50)[0].test_to_train == pytest.approx(1 / 8)


def test_the_best_of_splits_is_chosen_with_the_corrected_p():
    baseline, variant = splits(50, 50, 50, 50, 50), splits(53, 55, 50, 56, 52)
    gains = [0.03, 0.05, 0.0, 0.06, 0.02]
    assert p_value(gains) < 0.05 < p_value(gains, 1 / 8)
    assert tied_for_best([baseline, variant]) == [1, 0]


def test_the_corrected_interval_covers_a_gain_over_overlapping_splits():
    # Each seed tests another tenth of a pool: seeds have common examples, and correlated errors.
    rng = np.random.default_rng(9)
    corrected = plain = 0
    for _ in range(2000):
        pool = rng.normal(0, 0.5, 500)
        gains = [rng.choice(pool, 50, replace=False).mean() for _ in range(5)]
        for overlap in (0.0, 50 / 450):
            found = paired_estimate(gains, overlap)
            held = found.low <= 0 <= found.high
            corrected, plain = corrected + held * bool(overlap), plain + held * (not overlap)
    assert 0.94 < corrected / 2000 < 0.96
    assert plain / 2000 < 0.92


def simulated(rng, gains, seeds=5, total=200):
    """Arms with noise from seeds, variants and test examples."""
    base = rng.normal(0.7, 0.02, seeds)
    arms = []
    for gain in gains:
        accuracy = (base + gain + rng.normal(0, 0.01, seeds)).clip(0.01, 0.99)
        arms.append({s: Result(record(s, rng.random(total) < accuracy[s])) for s in range(seeds)})
    return arms


def test_false_positives_occur_in_at_most_five_percent_of_studies():
    rng = np.random.default_rng(7)
    studies = [compare(simulated(rng, [0.0] * 4)) for _ in range(200)]
    found = sum(any(one.significant for one in study[1:]) for study in studies)
    assert found <= 10
    # Without the correction for three variants, false positives would be too frequent.
    raw = sum(any(one.p < 0.05 for one in study[1:]) for study in studies)
    assert raw > 10
    # The intervals of single variants have their nominal coverage.
    held = sum(not one.gain.excludes_zero for study in studies for one in study[1:])
    assert stats.binomtest(held, 600, 0.95).pvalue > 0.01


def test_a_planted_gain_is_found_and_its_interval_covers_it():
    rng = np.random.default_rng(8)
    found = covered = 0
    for _ in range(200):
        one = compare(simulated(rng, [0.0, 0.15]))[1]
        found += one.significant and one.gain.mean > 0
        covered += one.gain.low <= 0.15 <= one.gain.high
    assert found > 190
    assert stats.binomtest(covered, 200, 0.95).pvalue > 0.01


def test_the_best_is_named_only_where_all_others_are_below(planted):
    rng = np.random.default_rng(3)

    def arm(name, rate):
        return [record(s, list(rng.random(400) < rate), name) for s in range(6)]

    study = planted(
        {"none": arm("none", 0.5), "dropout": arm("dropout", 0.7), "both": arm("both", 0.9)}
    )
    said = verdict(gain_tables(collect(study))[0])
    assert said.startswith("Best is both: +")
    assert "6 paired seeds" in said


def test_two_variants_that_are_tied_for_best_are_both_named(planted):
    rng = np.random.default_rng(4)

    def arm(name, rate):
        return [record(s, list(rng.random(400) < rate), name) for s in range(6)]

    study = planted(
        {"none": arm("none", 0.5), "dropout": arm("dropout", 0.8), "both": arm("both", 0.8)}
    )
    said = verdict(gain_tables(collect(study))[0])
    assert "Best is" not in said
    assert "statistically tied for best" in said


def test_a_baseline_that_is_shown_to_be_below_is_not_among_the_best(planted):
    # Dropout gains a little with each seed; batch norm gains more, but not with each seed.
    arms = {
        "none": [record(s, right(50, 100)) for s in range(4)],
        "dropout": [record(s, right(52 + s % 2, 100), "dropout") for s in range(4)],
        "batchnorm": [record(s, right([51, 90, 48, 80][s], 100), "batchnorm") for s in range(4)],
    }
    said = verdict(gain_tables(collect(planted(arms)))[0])
    assert said.startswith("dropout gains +2.50 points")
    assert "batchnorm and dropout are statistically tied for best" in said


def test_no_gain_is_claimed_without_evidence(planted):
    arms = {
        "none": [record(s, right(50 + s, 100)) for s in range(4)],
        "dropout": [record(s, right(50 + (2 * s) % 3, 100), "dropout") for s in range(4)],
    }
    assert verdict(gain_tables(collect(planted(arms)))[0]).startswith(
        "No variant is significantly better than none"
    )


def test_a_loss_is_called_a_loss(planted):
    arms = {
        "none": [record(s, right(80 + s, 100)) for s in range(4)],
        "dropout": [record(s, right(50 + s + s % 2, 100), "dropout") for s in range(4)],
    }
    said = verdict(gain_tables(collect(planted(arms)))[0])
    assert "No variant is significantly better than none" in said
    assert "; dropout is significantly worse (" in said


@pytest.mark.parametrize("count", [1, 2])
def test_with_few_seeds_the_verdict_claims_nothing(planted, count):
    arms = {
        name: [record(s, right(hits, 100), name) for s in range(count)]
        for name, hits in (("none", 50), ("both", 90))
    }
    said = verdict(gain_tables(collect(planted(arms)))[0])
    assert "a confidence interval needs at least 3" in said
    assert "both" not in said


def test_the_last_epoch_and_the_likelihood_are_reported_with_the_best_epoch(planted):
    def arm(name, hits, last, loss):
        return [
            record(
                s,
                right(hits + s, 100),
                name,
                test={
                    "acc": (hits + s) / 100,
                    "loss": loss + 0.01 * s,
                    "loss_calibrated": loss / 2,
                    "ece": 0.1,
                },
                test_last={"acc": (last + 2 * s) / 100, "loss": 1.0, "ece": 0.1},
            )
            for s in range(3)
        ]

    arms = {"none": arm("none", 70, 50, 0.9), "dropout": arm("dropout", 70, 64, 0.7)}
    table = gain_tables(collect(planted(arms)))[0]
    one = table.comparisons[1]
    assert one.gain.mean == pytest.approx(0.0)
    assert one.gain_last == Estimate(pytest.approx(0.14))
    assert one.loss == Estimate(pytest.approx(-0.2))
    assert one.loss_calibrated == Estimate(pytest.approx(-0.1))
    cells = dict(zip(COLUMNS, rows(table)[1], strict=True))
    assert (cells["last epoch"], cells["NLL"]) == ("+14.00", "-0.200")
    arms["dropout"][0]["test_last"]["acc"] = 0.65
    changed = gain_tables(collect(planted(arms, name="with-spread")))[0]
    cells = dict(zip(COLUMNS, rows(changed)[1], strict=True))
    # Gains of 15, 14 and 14 points.
    half = 100 * T_TWO * math.sqrt(1 / 3) / 100 / math.sqrt(3)
    assert cells["last epoch"] == f"+14.33 ({14.333 - half:+.2f} to {14.333 + half:+.2f})"
    assert dict(zip(COLUMNS, rows(changed, short=True)[1], strict=True))["last epoch"] == "+14.33"


def test_older_results_have_a_dash_for_the_last_epoch(gaining):
    table = gain_tables(collect(gaining))[0]
    baseline, dropout, _ = (dict(zip(COLUMNS, cells, strict=True)) for cells in rows(table))
    assert (baseline["last epoch"], dropout["last epoch"]) == ("", "-")
    assert table.comparisons[1].gain_last is None
    assert table.comparisons[1].loss_calibrated is None


def test_training_at_chance_level_is_not_a_missing_effect(planted):
    def arm(name, counts, stuck=()):
        return [
            record(s, right(count, 100), name, at_chance=s in stuck)
            for s, count in enumerate(counts)
        ]

    none, fine = [50, 51, 52], [50, 52, 51]
    study = planted({"none": arm("none", none), "augment": arm("augment", [33, 52, 33], (0, 2))})
    table = gain_tables(collect(study))[0]
    said = verdict(table)
    assert "differ significantly" not in said
    assert "No variant is" not in said
    assert "Training stayed at chance accuracy in 2 of 3 runs of augment (seeds 0 and 2)" in said
    assert [cells[1] for cells in rows(table)] == ["3", "3, 2 at chance"]
    # The verdict on the other variants does not change.
    arms = {
        "none": arm("none", none),
        "dropout": arm("dropout", fine),
        "augment": arm("augment", [33, 52, 33], (0, 2)),
        "both": arm("both", [70, 71, 73]),
    }
    said = verdict(gain_tables(collect(planted(arms, name="four")))[0])
    assert said.startswith("Best is both")
    assert "dropout does not differ significantly from none" in said
    arms.pop("both")
    said = verdict(gain_tables(collect(planted(arms, name="three")))[0])
    assert said.startswith("dropout is not significantly better than none")
    # If the baseline did not learn, "no effect" cannot be concluded.
    arms = {"none": arm("none", [33, 33, 52], (0, 1)), "dropout": arm("dropout", fine)}
    said = verdict(gain_tables(collect(planted(arms, name="baseline")))[0])
    assert said.startswith("No gain can be measured")
    assert "2 of 3 runs of none (seeds 0 and 1)" in said


def test_a_pair_with_different_test_examples_is_refused(planted):
    arms = {
        name: [record(s, right(50 + s, 100), name, test_set=f"{name if s else 0}") for s in (0, 1)]
        for name in ("none", "both")
    }
    study = planted(arms)
    with pytest.raises(InputError, match=r"none-s1 and .*both-s1 have different test examples"):
        gain_tables(collect(study))
