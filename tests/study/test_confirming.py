"""Confirmation with planted results: what runs, when it looks, and what a restart keeps."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from study.advising.confirming import confirm
from study.advising.pace import Pace, Run, run_groups
from study.advising.records import load_advice
from study.launch import Job
from study.plan import load_study
from study.sequential import next_boundary
from tasks.errors import InputError
from tests.study.confirmed import (
    PlantedWork,
    confirmed,
    few_paths,
    gaining,
    planted_work,
    tuned_advice,
)

__all__ = ["few_paths"]
pytestmark = pytest.mark.usefixtures("few_paths")

TWO = {"none": 0.6, "dropout": 0.62}
FOUR = {"none": 0.6, "dropout": 0.62, "batchnorm": 0.7, "both": 0.69}


def test_the_primary_contrast_is_fixed_before_the_first_run(tmp_path):
    """It is the arm with the best validation accuracy, whatever the test says."""
    advice = tuned_advice(tmp_path, FOUR, budget=510)
    work = planted_work(advice, planted=gaining(dropout=9))
    states = confirm(advice, tmp_path, work)
    first = next(states)
    assert not work.done
    assert (first.confirmation.primary, first.confirmation.baseline) == ("batchnorm", "none")
    last = list(states)[-1]
    assert last.confirmation.primary == "batchnorm"
    contrasts = last.confirmation.looks[-1].contrasts
    assert [one.arm for one in contrasts] == ["batchnorm", "dropout", "both"]
    assert {one.against for one in contrasts} == {"none"}
    # The gate: without a gain of the primary contrast, there is none of the others.
    assert contrasts[1].p < 0.001
    assert not contrasts[1].significant


def test_the_best_other_arm_is_compared_if_the_baseline_is_best(tmp_path):
    advice = tuned_advice(tmp_path, {"none": 0.8, "dropout": 0.6, "batchnorm": 0.7}, budget=300)
    assert confirmed(advice, tmp_path, planted_work(advice)).confirmation.primary == "batchnorm"


def test_looks_are_planned_by_the_budget_and_have_repeated_intervals(tmp_path):
    """20 pairs of runs of 10 s fit besides the quarter for further questions."""
    advice = tuned_advice(tmp_path, TWO, budget=20 * 20 / 0.75 + 20)
    made = confirmed(advice, tmp_path, planted_work(advice, planted=gaining(dropout=1)))
    looks = made.confirmation.looks
    assert [one.seeds for one in looks][:3] == [5, 8, 12]
    assert made.confirmation.planned == [one.seeds for one in looks]
    assert made.confirmation.stopped == "budget"
    assert looks[-1].seeds >= 16
    assert looks[0].critical > 2.78  # the t quantile of a single look
    assert all(one.alpha_spent < two.alpha_spent for one, two in pairwise(looks))
    assert looks[-1].alpha_spent < 0.05
    contrast = looks[-1].contrasts[0]
    assert contrast.low < 0.01 < contrast.high
    assert contrast.significant


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
def test_the_budget_is_kept(tmp_path, at_a_time):
    for budget in (45.0, 110.0, 343.0):
        folder = tmp_path / f"{budget:g}"
        advice = tuned_advice(folder, FOUR, budget=budget)
        work = planted_work(advice, at_a_time=at_a_time)
        confirmed(advice, folder, work)
        assert work.seconds <= budget
        assert max(Counter(work.done).values(), default=1) == 1


def test_a_group_that_would_end_too_late_beside_running_ones_is_not_started(tmp_path):
    """Three runs of 10 s on two processors: one still runs when the next group could start."""
    groups = [
        [Run("dropout", Job(f"dropout-s{seed}", tmp_path / f"{seed}", [])) for seed in seeds]
        for seeds in ((0, 1, 2), (3, 4, 5))
    ]
    work = PlantedWork(30.0, at_a_time=2, threads=1)
    ended = list(run_groups(groups, work, Pace({"dropout": 10.0}, 2), keep=0.0))
    assert work.seconds <= 30
    assert [job.name for job in ended] == ["dropout-s0", "dropout-s1", "dropout-s2"]


def test_runs_slower_than_in_the_tuning_end_the_round_early(tmp_path):
    """The look at the pairs so far is the last one; it may spend what is left of the 5 %."""
    advice = tuned_advice(tmp_path, TWO, budget=310.0)
    work = planted_work(advice, each=25.0)
    made = confirmed(advice, tmp_path, work).confirmation
    assert work.seconds <= 310
    assert made.stopped == "budget"
    assert made.planned == [one.seeds for one in made.looks]
    seeds = made.looks[0].seeds
    assert seeds == 4
    assert made.looks[0].alpha_spent == pytest.approx(next_boundary(seeds, seeds).alpha_spent)


def test_it_stops_at_the_precision(tmp_path):
    """Pairs of constant spread have intervals below 1 point at the first look."""
    advice = tuned_advice(tmp_path, TWO, precision=1.0)
    made = confirmed(advice, tmp_path, planted_work(advice)).confirmation
    assert (made.stopped, [one.seeds for one in made.looks]) == ("precision", [5])
    # A smaller precision goes on from there.
    advice = load_advice(tmp_path)
    asked = replace(advice, question=replace(advice.question, precision=0.2))
    again = confirmed(asked, tmp_path, planted_work(asked)).confirmation
    assert again.looks[0] == made.looks[0]
    assert len(again.looks) > 1
    assert again.stopped == "precision"


def test_killed_at_each_run_it_ends_with_each_run_done_once_and_looks_kept(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=430.0)
    done, looks = [], []
    for _ in range(100):
        work = planted_work(advice, die_after=1, before=10.0 * len(done), planted=gaining(both=2))
        try:
            final = confirmed(advice, tmp_path, work)
        except KeyboardInterrupt:
            done += work.done
            advice = load_advice(tmp_path)
            now = advice.confirmation.looks
            assert now[: len(looks)] == looks
            looks = now
        else:
            done += work.done
            break
    assert Counter(done).most_common(1)[0][1] == 1
    assert final.confirmation.stopped == "budget"
    # Complete: the same command runs nothing more, and changes nothing.
    work = planted_work(final, before=10.0 * len(done))
    assert confirmed(final, tmp_path, work) == final
    assert not work.done


def test_a_look_is_not_remade_when_results_change(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=310.0)
    before = confirmed(advice, tmp_path, planted_work(advice)).confirmation.looks
    asked = replace(advice, question=replace(advice.question, budget=910.0))
    known = replace(asked, confirmation=load_advice(tmp_path).confirmation)
    work = planted_work(known, planted=gaining(dropout=20), before=310.0)
    after = confirmed(known, tmp_path, work).confirmation.looks
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert after[-1].contrasts[0].gain > before[-1].contrasts[0].gain + 0.01


@pytest.mark.parametrize(("budget", "pairs"), [(45.0, 1), (70.0, 2)])
def test_two_pairs_have_no_interval_and_more_budget_continues_them(tmp_path, budget, pairs):
    advice = tuned_advice(tmp_path, TWO, budget=budget)
    made = confirmed(advice, tmp_path, planted_work(advice, planted=gaining(dropout=5)))
    look = made.confirmation.looks[-1]
    assert look.seeds == pairs
    assert (look.contrasts[0].low, look.contrasts[0].p, look.alpha_spent) == (None, None, 0)
    assert look.contrasts[0].gain == pytest.approx(0.05, abs=0.01)
    more = replace(made, question=replace(made.question, budget=410.0))
    again = confirmed(more, tmp_path, planted_work(more, before=budget)).confirmation
    assert again.looks[0] == look
    assert again.looks[-1].contrasts[0].low is not None


def test_only_the_primary_contrast_runs_if_three_pairs_of_all_arms_take_too_long(tmp_path):
    advice = tuned_advice(tmp_path, FOUR, budget=100.0)
    made = confirmed(advice, tmp_path, planted_work(advice)).confirmation
    assert [one.arm for one in made.looks[-1].contrasts] == ["batchnorm"]
    assert made.looks[-1].seeds >= 3


def test_arms_that_never_trained_do_not_run(tmp_path):
    advice = tuned_advice(tmp_path, FOUR, budget=310.0, never_trained=["none", "both"])
    work = planted_work(advice)
    made = confirmed(advice, tmp_path, work).confirmation
    assert (made.primary, made.baseline) == ("batchnorm", "dropout")
    arms = {name.rpartition("-s")[0] for name in work.done}
    assert {name for name in arms if "half" not in name and "without" not in name} <= {
        *("batchnorm", "dropout")
    }
    one_arm = tuned_advice(tmp_path / "one", {"none": 0.6}, budget=310.0)
    assert list(confirm(one_arm, tmp_path / "one", planted_work(one_arm))) == []


def test_collapsed_runs_count_in_the_gain_and_are_counted(tmp_path):
    def planted(arm, seed):
        made = gaining()(arm, seed)
        if (arm, seed) == ("dropout", 101):
            made |= {"at_chance": True, "test": {"acc": 0.1, "loss": 2.3, "ece": 0.0}}
        return made

    advice = tuned_advice(tmp_path, TWO, budget=160.0)
    made = confirmed(advice, tmp_path, planted_work(advice, planted=planted)).confirmation
    contrast = made.looks[-1].contrasts[0]
    assert contrast.at_chance == 1
    assert contrast.gain < -0.05


def test_a_pair_with_a_failed_run_does_not_count(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=210.0)
    made = confirmed(advice, tmp_path, planted_work(advice, failing=["dropout-s101"])).confirmation
    assert made.looks[-1].seeds == made.planned[-1] - 1
    folder = tmp_path / "all"
    advice = tuned_advice(folder, TWO, budget=210.0)
    failing = [f"dropout-s{seed}" for seed in range(100, 200)]
    with pytest.raises(InputError, match=r"dropout-s100: the loss is NaN"):
        confirmed(advice, folder, planted_work(advice, failing=failing))


def test_a_failed_run_is_tried_once_per_start(tmp_path):
    """Later rounds leave it out; the next start tries it again."""
    advice = tuned_advice(tmp_path, TWO, budget=1000.0)
    work = planted_work(advice, failing=["dropout-s101"])
    made = confirmed(advice, tmp_path, work)
    assert len(made.confirmation.looks) > 2
    assert work.done.count("dropout-s101") == 1
    more = replace(made, question=replace(made.question, budget=2000.0))
    work = planted_work(more, before=1000.0)
    confirmed(more, tmp_path, work)
    assert work.done.count("dropout-s101") == 1


def test_without_time_for_three_seeds_nothing_is_written_for_further_questions(tmp_path):
    advice = tuned_advice(tmp_path, FOUR | {"both": 0.8}, budget=160.0)
    made = confirmed(advice, tmp_path, planted_work(advice, planted=gaining(both=5)))
    assert made.confirmation.looks[-1].seeds >= 3
    assert not (tmp_path / "parts").exists()
    assert not (tmp_path / "half").exists()


def test_the_parts_of_the_recommendation_and_half_of_the_data_have_their_own_runs(tmp_path):
    gains = {"dropout": 1.0, "both": 5.0, "both_without_head_dropout": 4.0, "both_half_data": 2.0}
    advice = tuned_advice(tmp_path, FOUR | {"both": 0.8}, budget=1010.0)
    work = planted_work(advice, planted=gaining(**gains))
    made = confirmed(advice, tmp_path, work).confirmation
    assert [one.against for one in made.parts] == [
        *("both without normalization", "both without head_dropout", "both without all parts")
    ]
    # Panels of the confirmation show its runs alone.
    kinds = {
        name.rpartition("-s")[0]: "--trainer.logger.init_args.job_type=contribution" in command
        for name, command in zip(work.done, work.commands, strict=True)
    }
    assert {name for name, apart in kinds.items() if not apart} == {*FOUR}
    assert len(kinds) == len(FOUR) + 4
    norm, head, together = made.parts
    assert norm.gain == pytest.approx(0.05, abs=0.003)
    assert head.gain == pytest.approx(0.01, abs=0.003)
    assert head.seeds >= 3
    assert norm.significant
    assert made.half_data.gain == pytest.approx(0.03, abs=0.003)
    assert work.seconds <= 1010
    # The presets of the parts hold what remains.
    text = (tmp_path / "parts" / "both-without-head_dropout.yaml").read_text()
    assert "normalization: batch" in text
    assert "head_dropout:" not in text
    assert "lr: 0.01" in text
    assert together.gain == pytest.approx(0.05, abs=0.003)
    text = (tmp_path / "parts" / "both-without-all-parts.yaml").read_text()
    assert "normalization" not in text
    assert "lr: 0.01" in text


def test_half_of_the_data_is_half_of_the_given_fraction(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=1010.0)
    given = replace(advice.question, arguments=["--data.train_fraction=0.2"])
    work = planted_work(advice)
    confirmed(replace(advice, question=given), tmp_path, work)
    fractions = Counter(
        [one for one in command if "train_fraction" in one][-1] for command in work.commands
    )
    assert fractions.keys() == {"--data.train_fraction=0.2", "--data.train_fraction=0.1"}
    assert fractions["--data.train_fraction=0.1"] >= 3


def test_all_runs_share_the_wandb_group_of_the_advice(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=160.0)
    confirmed(advice, tmp_path, planted_work(advice))
    study = load_study(tmp_path / "confirm")
    assert study.seeds[0] == 100
    assert "--trainer.logger.init_args.group=mine" in study.jobs(threads=1)[0].command
