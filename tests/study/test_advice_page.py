"""The page of an advice: its figures, and how it looks in a browser."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from study.advising import charts, page_tables
from study.advising.expected_best import expected_best
from study.advising.page import PAGE_FILE, contrasts_of, forest_rows, read_confirmed, write_page
from study.advising.records import Advice, ArmTuning, Trial
from study.advising.state import store_confirmed_state
from study.chart_style import colour
from tasks.exporting.model_card import study_text
from tests.browser import FLAWS, opened
from tests.study.advised import LENGTH, plant_advice, validated

LONG = [f"a-rather-long-name-of-an-arm-{index:02}" for index in range(6)]


def page_of(planted: tuple[Advice, Path], under_way: bool = False) -> str:
    advice, folder = planted
    write_page(advice, folder, under_way)
    return (folder / PAGE_FILE).read_text()


def arm_with(values: Sequence[Any], key: str = "model.reg.dropout") -> ArmTuning:
    trials = [
        Trial(number, "sampled", {key: value}, {0: validated(0.5 + number / 100)})
        for number, value in enumerate(values)
    ]
    return ArmTuning("dropout", trials)


def test_the_expected_best_is_that_of_all_samples_with_replacement() -> None:
    values = [0.2, 0.5, 0.5, 0.9]
    for number, (mean, deviation) in enumerate(expected_best(values), 1):
        best = [max(sample) for sample in itertools.product(values, repeat=number)]
        assert mean == pytest.approx(np.mean(best))
        assert deviation == pytest.approx(np.std(best))
    assert expected_best([]) == []


def test_the_shared_trial_counts_for_the_baseline_alone(tmp_path: Path) -> None:
    advice, _ = plant_advice(tmp_path, trials=5)
    none, dropout, *_ = advice.tuning
    assert len(charts.eligible_accuracies(none, 0)) == 5
    assert len(charts.eligible_accuracies(dropout, 1)) == 4
    rows = {row[0]: row for row in page_tables.cost_rows(advice.tuning, [])}
    runs = {arm.arm: sum(len(one.results) for one in arm.trials) for arm in advice.tuning}
    shared = len(dropout.trials[0].results)
    assert int(rows["tuning: none"][1]) == runs["none"]
    assert int(rows["tuning: dropout"][1]) == runs["dropout"] - shared


def test_a_rate_of_zero_stands_left_of_a_logarithmic_axis() -> None:
    figure = charts.response("model.reg.dropout", [arm_with([0.0, 0.02, 0.5])])
    axis = figure.layout.xaxis
    assert axis.type == "log"
    [points] = figure.data
    assert points.x[0] < 0.02
    assert dict(zip(axis.ticktext, axis.tickvals, strict=True))["0"] == points.x[0]
    assert list(points.x[1:]) == [0.02, 0.5]


def test_other_parameters_have_a_linear_axis_or_categories() -> None:
    assert charts.response(LENGTH, [arm_with([200, 300], LENGTH)]).layout.xaxis.type is None
    figure = charts.response("kind", [arm_with(["unit", "channel", None], "kind")])
    assert figure.layout.xaxis.type == "category"
    assert list(figure.data[0].x) == ["unit", "channel", "None"]


def test_a_response_marks_finalists_the_choice_and_trials_at_chance() -> None:
    arm = replace(arm_with([0.1, 0.2, 0.3, 0.4]), finalists=[1, 2], chosen=2)
    arm.trials[3].results[0] = validated(0.1, at_chance=True)
    [points] = charts.response("model.reg.dropout", [arm]).data
    assert list(points.marker.symbol) == ["circle", "diamond", "star", "x"]
    # What never varies has no chart.
    arm = arm_with([0.1, 0.1])
    assert charts.parameters_of([arm]) == []
    # Nor do trials without the key vary it.
    without = Trial(2, "without", {}, {0: validated(0.5)})
    assert charts.parameters_of([replace(arm, trials=[without, *arm.trials])]) == []


def test_the_forest_marks_the_primary_contrast_and_collapsed_pairs(tmp_path: Path) -> None:
    advice, folder = plant_advice(tmp_path, at_chance=["both"])
    confirmed = read_confirmed(advice, folder)
    assert confirmed is not None
    rows = forest_rows(advice, contrasts_of(advice), confirmed.table)
    figure = charts.forest(rows, "gain")
    ticks = list(figure.layout.yaxis.ticktext)
    assert [tick.split("<br>")[0] for tick in ticks] == ["batchnorm", "dropout", "<b>both</b>"]
    pairs = next(t for t in figure.data if t.meta == "both" and len(t.x) == 6)
    assert list(pairs.marker.symbol) == ["circle-open"] * 5 + ["x"]
    assert pairs.x[-1] < -20


def test_an_arm_without_runs_leaves_the_other_arms_their_colours(tmp_path: Path) -> None:
    advice, folder = plant_advice(tmp_path)
    study = folder / "confirm" / "study.yaml"
    study.write_text(study.read_text().replace(f"- {folder}/tuned/dropout.yaml\n", ""))
    page = page_of((advice, folder))
    data = re.search(r'id="reliability-data">(.*?)</script>', page)
    assert data is not None
    lines = {t["meta"]: t["line"]["color"] for t in json.loads(data[1])["data"] if "meta" in t}
    assert lines == {"none": colour(0), "batchnorm": colour(2), "both": colour(3)}


def test_the_answer_comes_first_and_everything_has_a_section(tmp_path: Path) -> None:
    planted = plant_advice(tmp_path)
    page = page_of(planted)
    recommendation = planted[0].recommendation
    assert recommendation is not None
    assert recommendation.sentence in page
    assert "http-equiv" not in page
    order = [
        *("How to use it", "Gain in test accuracy", "How the intervals narrowed"),
        *("Where and how much: the trials of tuning", "What more tuning would bring"),
        *("Regression to the mean", "What each part contributes"),
        *("Generalization gap and calibration", "Cost", "Failures", "How it was done"),
    ]
    assert re.findall(r"<h2>(.*?)</h2>", page) == order
    assert "tuning of both, trial 7: the loss is NaN at step 12" in page
    assert "+5.55 to +10.45" in page
    assert '<a href="recommended.yaml">' in page
    # The finalists' further seeds are planted 1 and 2 points lower.
    assert "changes by -1.50 points" in page


@pytest.mark.parametrize("phase", ["tuning", "confirming"])
def test_a_page_under_way_reloads_and_claims_nothing(tmp_path: Path, phase: Any) -> None:
    page = page_of(plant_advice(tmp_path, phase=phase, pairs=2), under_way=True)
    assert '<meta http-equiv="refresh" content="30">' in page
    assert "32 trials of 4 arms have ended" in page
    assert ("Confirmation: 8 runs have ended; 0 of 3 planned pairs" in page) == (
        phase == "confirming"
    )
    assert "How to use it" not in page
    assert "Gain in test accuracy" not in page


def test_a_stopped_advice_shows_the_command_that_continues_it(tmp_path: Path) -> None:
    page = page_of(plant_advice(tmp_path, phase="tuning"))
    assert "make advise TASK=vision DATA=builtin ARMS=" in page
    assert "http-equiv" not in page


def test_the_card_of_an_export_has_the_gain_of_the_last_look(tmp_path: Path) -> None:
    advice, folder = plant_advice(tmp_path)
    store_confirmed_state(advice, folder)
    text = study_text(folder / "confirm" / "both-s100")
    # The t interval of a study would have no width: the planted pairs agree.
    assert "gain over none +8.00 points, 95 % interval +5.55 to +10.45" in text
    assert "Verdict: Put dropout 0.2 before the head" in text
    assert "gain over" not in study_text(folder / "confirm" / "none-s100")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a complete advice, of one with long names, and of one that has just begun."""
    root = tmp_path_factory.mktemp("advice")
    cases: dict[str, dict[str, Any]] = {
        "complete": {"at_chance": ["dropout"], "trials": 12},
        "long": {"arms": ["none", *LONG]},
        "begun": {"arms": ["none"], "trials": 1, "phase": "tuning"},
    }
    for name, options in cases.items():
        page_of(plant_advice(root / name, **options), under_way=name == "begun")
    return {name: root / name / "vision-builtin" / PAGE_FILE for name in cases}


@pytest.mark.parametrize("name", ["complete", "long", "begun"])
def test_the_page_is_readable_on_a_phone_on_a_wide_screen_and_on_paper(
    pages: dict[str, Path], browser: Browser, name: str
) -> None:
    page, problems = opened(browser, pages[name], viewport={"width": 390, "height": 844})
    assert page.evaluate(FLAWS) == []
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_timeout(100)
    page.wait_for_function(f"({FLAWS})().length === 0")
    # Each chart has its text: its own, or that of the figure.
    for plot in page.locator(".plot").all():
        assert plot.get_attribute("aria-label")
    page.set_viewport_size({"width": 690, "height": 970})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function(f"({FLAWS})().length === 0")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert problems == []
    page.close()


def test_a_button_hides_an_arm_in_all_charts(pages: dict[str, Path], browser: Browser) -> None:
    page, _ = opened(browser, pages["complete"], viewport={"width": 1280, "height": 800})
    count = (
        "() => [...document.querySelectorAll('.plot')].map(p => "
        "p.data.filter(t => t.meta === 'both' && t.visible !== false).length)"
    )
    assert sum(page.evaluate(count)) > 5
    page.get_by_role("button", name="both", exact=True).click()
    assert sum(page.evaluate(count)) == 0
    page.close()
