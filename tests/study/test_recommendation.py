"""The recommendation and its sentence, for planted effects in both directions."""

from dataclasses import replace

import pytest
import yaml

from study.advising.budget import Plan
from study.advising.recommendation import notes, recommend
from study.advising.records import load_advice
from tasks import train
from tests.study.confirmed import confirmed, few_paths, gaining, planted_work, tuned_advice

__all__ = ["few_paths"]
pytestmark = pytest.mark.usefixtures("few_paths")

TWO = {"none": 0.6, "dropout": 0.62}
FOUR = {"none": 0.6, "dropout": 0.62, "batchnorm": 0.7, "both": 0.71}


def recommended(folder, validation, gains, planted=None, failing=(), **options):
    """Confirm planted gains, and return the recommendation."""
    advice = tuned_advice(folder, validation, **{"budget": 610.0} | options)
    work = planted_work(advice, planted=planted or gaining(**gains), failing=failing)
    advice = recommend(confirmed(advice, folder, work), folder, work.at_a_time)
    advice.save(folder)
    assert load_advice(folder) == advice
    return advice.recommendation


def test_a_gain_is_to_be_used_and_a_loss_is_named(tmp_path):
    made = recommended(tmp_path, FOUR, {"both": 5, "batchnorm": 3, "dropout": -2})
    assert made.arm == "both"
    start, *rest = made.sentence.split("; ")
    assert start.startswith("Use batch norm and dropout 0.3 before the head: +5.0 points (")
    assert start.endswith("over the tuned baseline")
    assert rest == ["batch norm gains 3.0", "dropout 0.3 before the head costs 2.0."]


def test_what_the_baseline_has_is_kept(tmp_path):
    gains = {"batchnorm": 0, "both": 4}
    made = recommended(tmp_path, {"batchnorm": 0.6, "both": 0.7}, gains)
    assert made.sentence.startswith("Add dropout 0.3 before the head and keep batch norm: +4.0")
    assert "over the tuned baseline (batch norm)" in made.sentence
    gains = {"batchnorm": 0, "dropout": 4}
    made = recommended(tmp_path / "other", {"batchnorm": 0.6, "dropout": 0.7}, gains)
    assert made.sentence.startswith("Use dropout 0.3 before the head and leave batch norm out: +4")


def test_an_arm_that_costs_is_left_out(tmp_path):
    made = recommended(tmp_path, TWO, {"dropout": -2.1})
    assert made.arm == "none"
    assert made.sentence.startswith(
        "Leave dropout 0.3 before the head out: it costs 2.1 points (2.0 "
    )
    assert made.sentence.endswith("against the tuned baseline.")
    several = {"dropout": -2, "batchnorm": -3, "both": -6}
    made = recommended(tmp_path / "four", FOUR, several)
    assert made.sentence.startswith(
        "Leave batch norm and dropout 0.3 before the head out: it costs"
    )
    assert "; batch norm costs 3.0; dropout 0.3 before the head costs 2.0." in made.sentence


def test_without_a_shown_gain_the_interval_says_what_is_possible(tmp_path):
    made = recommended(tmp_path, TWO, {})
    assert made.arm == "none"
    assert any(note.startswith("Confirmed with 22 pairs of fresh seeds") for note in made.notes)
    assert made.sentence.startswith("No gain is shown, so stay with the baseline: dropout 0.3 ")
    assert "is within -0." in made.sentence
    # 0.01 points would need very many pairs.
    assert "a larger PRECISION ends earlier" in made.notes[-1]


def test_more_pairs_are_suggested_with_their_budget(tmp_path):
    made = recommended(tmp_path, TWO, {"dropout": 2}, precision=0.15, budget=210.0)
    note = made.notes[-1]
    assert "more pairs narrow all intervals to 0.15 points: make advise TASK=vision" in note
    assert ' ARMS="none dropout" NAME=mine BUDGET=' in note
    assert note.endswith("m PRECISION=0.15")
    # Two runs at a time need about half of the further time.
    advice = load_advice(tmp_path)
    minutes = [
        int(
            recommend(advice, tmp_path, jobs)
            .recommendation.notes[-1]
            .split("BUDGET=")[1]
            .split("m ")[0]
        )
        for jobs in (1, 2)
    ]
    assert minutes[1] < 0.7 * minutes[0]


def test_trainings_shorter_than_those_of_the_preset_are_named(tmp_path):
    """A short budget undertrains the baseline too, and a gain over it may vanish later."""
    advice = tuned_advice(tmp_path, TWO)
    plan = Plan(610.0, 6, 2, [1, 2], 332, 665, 95, start_seconds=2.0, step_seconds=0.02, until=305)
    plan.save(tmp_path)
    # 1 + 9 x 2 runs of 15.3 seconds in the first half.
    assert notes(advice, tmp_path, "none", at_a_time=1)[0] == (
        "The trainings had about 332 optimizer steps, those of the preset have 665. Shorter "
        "trainings favour what learns fast: with BUDGET=11m and another NAME they are as long."
    )
    replace(plan, steps=665).save(tmp_path)
    assert not any("Shorter" in note for note in notes(advice, tmp_path, "none", at_a_time=1))


def test_practically_equal_is_not_unknown(tmp_path):
    made = recommended(tmp_path, TWO, {}, precision=1.0)
    assert made.sentence == (
        "Stay with the tuned baseline: dropout 0.3 before the head is practically equal to it, "
        "within 1 points."
    )
    assert not any("make advise" in note for note in made.notes)


def test_the_simpler_arm_is_recommended_if_it_gains_as_much(tmp_path):
    gains = {"both": 5.0, "batchnorm": 4.9, "dropout": 0}
    made = recommended(tmp_path, FOUR, gains, precision=0.2)
    assert made.arm == "batchnorm"
    # Much less is not as much.
    gains["batchnorm"] = 3.0
    assert recommended(tmp_path / "less", FOUR, gains, precision=0.2).arm == "both"


def test_an_arm_significantly_better_than_that_of_the_primary_contrast_takes_its_place(tmp_path):
    validation = FOUR | {"batchnorm": 0.8}
    made = recommended(tmp_path, validation, {"batchnorm": 3, "both": 6})
    assert made.arm == "both"
    assert "; batch norm gains 3.0" in made.sentence
    folder = tmp_path / "alike"
    made = recommended(folder, validation, {"batchnorm": 3, "both": 3.1})
    assert made.arm == "batchnorm"
    # A gain of the others is no evidence if the primary contrast shows none.
    made = recommended(tmp_path / "gate", validation, {"batchnorm": 0, "both": 6})
    assert made.arm == "none"
    assert any(
        note.startswith("batch norm and dropout 0.3 before the head together get +6.0")
        for note in made.notes
    )


def test_more_data_is_named_if_it_gains_more(tmp_path):
    gains = {"dropout": 2.0, "dropout_half_data": -5.0}
    made = recommended(tmp_path, TWO, gains)
    assert made.sentence.endswith("; more data would help more.")
    assert any("second half of the training examples contributes +7.0" in n for n in made.notes)
    gains["dropout_half_data"] = 1.0
    made = recommended(tmp_path / "less", TWO, gains)
    assert "more data" not in made.sentence


def test_the_parts_are_named_with_what_they_contribute(tmp_path):
    gains = {"both": 5.0, "both_without_head_dropout": 4.0, "both_without_normalization": 1.0}
    made = recommended(tmp_path, FOUR, gains, budget=1010.0)
    note = next(note for note in made.notes if note.startswith("What each part contributes"))
    parts = [part.split(" points")[0] for part in note.partition(": ")[2].split("; ")]
    values = {name: float(gain) for name, _, gain in (part.rpartition(" ") for part in parts)}
    expected = {"batch norm": 4.0, "dropout 0.3 before the head": 1.0, "all 2 together": 5.0}
    assert values == {name: pytest.approx(gain, abs=0.3) for name, gain in expected.items()}
    assert not any("None of these" in note for note in made.notes)


def test_a_gain_without_a_contribution_may_come_from_the_learning_rate(tmp_path):
    gains = {"dropout": 2.0, "dropout_without_head_dropout": 2.0}
    made = recommended(tmp_path, TWO, gains, rates={"dropout": 0.02})
    assert made.arm == "dropout"
    assert (
        "None of these contributions is significant: the gain may come from lr 0.02 instead of "
        "lr 0.01." in made.notes
    )
    made = recommended(tmp_path / "same", TWO, gains)
    assert "None of these contributions is significant." in made.notes
    gains["dropout_without_head_dropout"] = 0.0
    made = recommended(tmp_path / "shown", TWO, gains)
    assert not any("None of these" in note for note in made.notes)


def test_several_parts_have_a_plural_verb(tmp_path):
    three = {"none": 0.6, "batchnorm": 0.8, "both": 0.7}
    made = recommended(tmp_path, three, {"batchnorm": 5, "both": -3})
    assert "; batch norm and dropout 0.3 before the head together cost 3.0" in made.sentence


def test_further_questions_without_time_are_named(tmp_path):
    made = recommended(tmp_path, TWO, {"dropout": 4})
    advice = load_advice(tmp_path)
    assert not any("No time was left" in note for note in made.notes)
    without_half = replace(advice.confirmation, half_data=None)
    for confirmation, missing in (
        (without_half, "half of the data"),
        (
            replace(without_half, parts=[]),
            "the parts of the recommendation, or for half of the data",
        ),
    ):
        advice = replace(advice, confirmation=confirmation)
        assert f"No time was left for {missing}." in notes(advice, tmp_path, "dropout", 1)


def test_failed_further_runs_are_named_and_the_advice_stands(tmp_path):
    failing = [f"dropout-half-data-s{seed}" for seed in range(100, 200)]
    made = recommended(tmp_path, TWO, {"dropout": 4}, failing=failing)
    assert made.sentence.startswith("Use dropout 0.3 before the head: +4.0 points (")
    assert any(n.endswith("half/dropout-half-data-s100/error.txt") for n in made.notes)
    assert not any("No time was left" in note for note in made.notes)


def test_too_few_pairs_are_no_evidence(tmp_path):
    made = recommended(tmp_path, TWO, {"dropout": 9}, budget=70.0)
    assert made.sentence == (
        "Not confirmed: dropout 0.3 before the head is best on validation data (62.0 %, the tuned "
        "baseline 60.0 %), but the budget sufficed for 2 of the 3 pairs that an interval needs."
    )
    assert made.notes[-1].startswith("To continue: 5 pairs give intervals: make advise TASK=vision")


def test_arms_that_never_trained(tmp_path):
    made = recommended(tmp_path / "arm", FOUR, {"batchnorm": 5}, never_trained=["both"])
    assert made.arm == "batchnorm"
    assert made.notes[0].startswith("both: the training never left chance accuracy")
    three = {"none": 0.1, "batchnorm": 0.6, "both": 0.7}
    base = recommended(tmp_path / "base", three, {"both": 5}, never_trained=["none"])
    assert base.sentence.startswith("The baseline none never left chance accuracy in the tuning.")
    assert " over batch norm" in base.sentence
    one = recommended(tmp_path / "one", TWO, {}, never_trained=["none"])
    assert one.sentence == (
        "Use dropout 0.3 before the head: it reaches 62.0 % on validation data, and the training "
        "of none never left chance accuracy in the tuning."
    )
    rest = recommended(tmp_path / "rest", TWO, {}, never_trained=["dropout"])
    assert rest.sentence.startswith("Stay with the tuned baseline: it reaches 60.0 % on validation")
    nothing = recommended(tmp_path / "nothing", TWO, {}, never_trained=["none", "dropout"])
    assert nothing.sentence.startswith("No arm trained: accuracy stayed at chance in all trials")
    alone = recommended(tmp_path / "alone", {"none": 0.6}, {})
    assert alone.sentence.startswith("There is one arm, none, which reaches 60.0 %")


def test_collapsed_runs_are_counted_and_the_gain_without_them_is_given(tmp_path):
    def planted(arm, seed):
        made = gaining(dropout=3)(arm, seed)
        if (arm, seed) == ("dropout", 102):
            made |= {"at_chance": True, "test": {"acc": 0.1, "loss": 2.3, "ece": 0.0}}
        return made

    made = recommended(tmp_path, TWO, {}, planted=planted, budget=210.0)
    # The honest default for a user: such runs happen.
    assert made.arm == "none"
    assert any(note.startswith("1 of ") and "(seeds 102)" in note for note in made.notes)
    assert any("Without the pairs with such runs, dropout differs by +3." in n for n in made.notes)


def test_worse_probabilities_are_named(tmp_path):
    def planted(arm, seed):
        made = gaining(dropout=3)(arm, seed)
        made["test"]["loss_calibrated"] = 0.5 if arm == "none" else 0.52
        return made

    made = recommended(tmp_path, TWO, {}, planted=planted)
    assert any("is 0.020 nats higher" in note for note in made.notes)


def test_the_preset_is_that_of_the_arm_with_its_command_and_runs_as_printed(tmp_path):
    made = recommended(tmp_path, FOUR, {"both": 5})
    lines = (tmp_path / "recommended.yaml").read_text().splitlines()
    assert lines[0] == f"# {made.command}"
    assert lines[1] == f"# {made.sentence}"
    assert made.command == f"make train TASK=vision DATA=builtin REG={tmp_path}/recommended.yaml"
    given = yaml.safe_load("\n".join(lines))["vision"]["model"]
    assert given["reg"] == {"normalization": "batch", "head_dropout": 0.3}
    options, further = train.parse(
        ["--task", "vision", "--data", "builtin", "--reg", made.file, "--trainer.max_epochs=1"]
    )
    assert options.reg == made.file
    assert further == ["--trainer.max_epochs=1"]


def test_the_arguments_of_the_runs_are_in_the_commands(tmp_path):
    advice = tuned_advice(tmp_path, TWO, budget=70.0)
    question = replace(advice.question, arguments=["--data.label_noise=0.4"], data="my data")
    made = recommend(replace(advice, question=question), tmp_path, 1).recommendation
    assert made.command.endswith(
        'DATA="my data" REG=' + made.file + ' ARGS="--data.label_noise=0.4"'
    )
