"""The statistics, against computations of their own from `metrics.json` files."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from study.results import Result, collect
from study.statistics import (
    Estimate,
    bootstrap,
    compare,
    holm,
    indistinguishable,
    p_value,
    paired,
)
from study.tables import tables, verdict
from tests.study.conftest import record, right

# Two-sided 95 % and 97.5 % points of Student's t, from any printed table.
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
    _, dropout, both = tables(collect(gaining))[0].comparisons
    assert both.gain.mean == pytest.approx(mean) == pytest.approx(0.12)
    assert both.gain.low == pytest.approx(mean - T_TWO * error, abs=1e-6)
    assert both.gain.high == pytest.approx(mean + T_TWO * error, abs=1e-6)
    p = 2 * stats.t.sf(mean / error, df=2)
    assert both.p == pytest.approx(p)
    # The smaller of two p-values counts twice.
    assert both.p_holm == pytest.approx(2 * p)
    assert dropout.gain.mean == pytest.approx(0.0)
    assert dropout.p_holm == pytest.approx(1.0)
    assert both.mean == pytest.approx(0.63)
    assert both.deviation == pytest.approx(0.03)


def test_the_pairing_takes_out_what_the_seeds_have_in_common():
    # Seeds differ by 20 points, and the variant is always one or two points above.
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
    assert one.gain_bootstrap == Estimate(pytest.approx(0.1))
    assert one.p is one.p_holm is None
    assert not one.shown
    assert indistinguishable([results(*[50] * count), results(*[60] * count)]) == []


@pytest.mark.parametrize("gains", [[-0.01] * 3, [0.886 - 0.876, 0.9 - 0.89, 0.01]])
def test_equal_gains_have_no_spread_to_make_an_interval_of(gains):
    assert paired(gains) == Estimate(pytest.approx(np.mean(gains)))
    assert p_value(gains) is None


def test_where_nothing_changed_the_interval_is_zero():
    assert paired([0.0, 0.0, 0.0]) == Estimate(0.0, 0.0, 0.0)
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


def test_a_variant_that_never_gets_there_has_no_number_of_steps():
    baseline = {s: Result(record(s, right(50, 100))) for s in range(3)}
    slow = {
        s: Result(record(s, right(50, 100), history=[(10, 0.1), (20, 0.6 if s else 0.2)]))
        for s in range(3)
    }
    one = compare([baseline, slow])[1]
    assert one.steps is None
    assert one.reached == 2


def test_the_bootstrap_agrees_with_every_possible_draw():
    # Five examples and three seeds: all draws can be gone through.
    rng = np.random.default_rng(1)
    hits = rng.random((2, 3, 5)) < np.array([0.3, 0.7])[:, None, None]
    arms = [{s: Result(record(s, list(row))) for s, row in enumerate(rows)} for rows in hits]
    difference = hits[1].astype(float) - hits[0]
    drawn = [
        difference[np.ix_(seeds, examples)].mean()
        for seeds in itertools.product(range(3), repeat=3)
        for examples in itertools.product(range(5), repeat=5)
    ]
    found = bootstrap(*arms, draws=20_000)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_examples_that_all_seeds_share_are_drawn_for_all_of_them_at_once():
    # One half of the examples is gained by every seed and the other lost by none: which examples
    # are drawn matters for all seeds alike, and more seeds do not make it less.
    gained = right(50, 100)
    arms = [{s: Result(record(s, hits)) for s in range(8)} for hits in ([False] * 100, gained)]
    together = bootstrap(*arms)
    apart = bootstrap(
        *({s: Result(r.record | {"test_set": str(s)}) for s, r in arm.items()} for arm in arms)
    )
    error = math.sqrt(0.25 / 100)
    assert together.high - together.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * error / math.sqrt(8), rel=0.1)


def simulated(rng, gains, seeds=5, total=200):
    """Arms of which each seed and each variant has its own noise, and the test examples too."""
    base = rng.normal(0.7, 0.02, seeds)
    arms = []
    for gain in gains:
        accuracy = (base + gain + rng.normal(0, 0.01, seeds)).clip(0.01, 0.99)
        arms.append({s: Result(record(s, rng.random(total) < accuracy[s])) for s in range(seeds)})
    return arms


def test_a_null_is_found_in_no_more_than_five_of_a_hundred_studies():
    rng = np.random.default_rng(7)
    studies = [compare(simulated(rng, [0.0] * 4)) for _ in range(200)]
    found = sum(any(one.shown for one in study[1:]) for study in studies)
    assert found <= 10
    # Without the correction for three variants it would be found too often.
    raw = sum(any(one.p < 0.05 for one in study[1:]) for study in studies)
    assert raw > 10
    # The intervals of single variants keep what they promise.
    held = sum(not one.gain.excludes_zero for study in studies for one in study[1:])
    assert stats.binomtest(held, 600, 0.95).pvalue > 0.01


def test_a_planted_gain_is_found_and_its_interval_covers_it():
    rng = np.random.default_rng(8)
    found = covered = 0
    for _ in range(200):
        one = compare(simulated(rng, [0.0, 0.15]))[1]
        found += one.shown and one.gain.mean > 0
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
    said = verdict(tables(collect(study))[0])
    assert said.startswith("Best is both: +")
    assert "6 paired seeds" in said


def test_two_variants_that_cannot_be_told_apart_are_both_named(planted):
    rng = np.random.default_rng(4)

    def arm(name, rate):
        return [record(s, list(rng.random(400) < rate), name) for s in range(6)]

    study = planted(
        {"none": arm("none", 0.5), "dropout": arm("dropout", 0.8), "both": arm("both", 0.8)}
    )
    said = verdict(tables(collect(study))[0])
    assert "Best is" not in said
    assert "cannot be told apart" in said


def test_a_baseline_that_is_shown_to_be_below_is_not_among_the_best(planted):
    # Dropout gains a little each time, and batch norm more, but not each time.
    arms = {
        "none": [record(s, right(50, 100)) for s in range(4)],
        "dropout": [record(s, right(52 + s % 2, 100), "dropout") for s in range(4)],
        "batchnorm": [record(s, right([51, 90, 48, 80][s], 100), "batchnorm") for s in range(4)],
    }
    said = verdict(tables(collect(planted(arms)))[0])
    assert said.startswith("dropout gains +2.50 points")
    assert "batchnorm and dropout cannot be told apart as the best" in said


def test_no_gain_is_said_to_be_shown_where_none_is(planted):
    arms = {
        "none": [record(s, right(50 + s, 100)) for s in range(4)],
        "dropout": [record(s, right(50 + (2 * s) % 3, 100), "dropout") for s in range(4)],
    }
    assert verdict(tables(collect(planted(arms)))[0]).startswith(
        "No variant is shown to gain over none"
    )


def test_a_loss_is_called_a_loss(planted):
    arms = {
        "none": [record(s, right(80 + s, 100)) for s in range(4)],
        "dropout": [record(s, right(50 + s + s % 2, 100), "dropout") for s in range(4)],
    }
    said = verdict(tables(collect(planted(arms)))[0])
    assert "No variant is shown to gain over none" in said
    assert "dropout loses" in said


@pytest.mark.parametrize("count", [1, 2])
def test_with_few_seeds_the_verdict_claims_nothing(planted, count):
    arms = {
        name: [record(s, right(hits, 100), name) for s in range(count)]
        for name, hits in (("none", 50), ("both", 90))
    }
    said = verdict(tables(collect(planted(arms)))[0])
    assert "no interval can be given" in said
    assert "both" not in said
