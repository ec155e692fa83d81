"""The page of a study in a browser."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from rich.console import Console

from study.gain_table import gain_tables
from study.launch import Job
from study.mistake_cards import embedded_media
from study.mistakes import fixed_mistakes
from study.page import differences, flat_config, write_page
from study.plan import Study
from study.results import Result, collect
from study.run import Progress
from tasks.data import Sound
from tasks.errors import InputError
from tests.browser import executable, opened
from tests.study.conftest import Planted, read_tables, record, right


@pytest.mark.parametrize(("ci", "ended"), [("true", pytest.fail), ("", pytest.skip)])
def test_a_missing_browser_fails_in_ci_and_skips_elsewhere(
    ci: str, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(ended.Exception, match="playwright install chromium"):
        executable("/nowhere/chrome")


def test_the_browser_of_playwright_is_taken_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = tmp_path / "chrome", tmp_path / "chromium"
    for file in (own, system):
        file.touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert executable(str(own)) == str(own)
    assert executable("/nowhere/chrome") == str(system)


@pytest.fixture
def page_of(gaining: Study) -> Path:
    for file in gaining.folder.glob("*/metrics.json"):
        content = json.loads(file.read_text())
        for epoch in content["history"]:
            epoch["reg/variance_shift/3"] = 1.1
            epoch["reg/dead_units/3"] = 0.2
        file.write_text(json.dumps(content))
    file = gaining.folder / "study.html"
    write_page(*read_tables(gaining), file)
    return file


def visible(page: Page, plot: str) -> set[str]:
    """Return the variants that a figure shows."""
    return set(
        page.evaluate(
            f"""document.getElementById('{plot}').data
                .filter(t => t.meta && t.visible !== false).map(t => t.meta)"""
        )
    )


def test_a_browser_shows_the_page_and_hides_a_variant_in_all_pictures(
    browser: Browser, page_of: Path
) -> None:
    page, problems = opened(browser, page_of)
    assert "+12.00" in page.inner_text("table")
    assert page.inner_text(".verdict").startswith("Best is both: +12.00 points")
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.id)")
    assert set(drawn) == {
        *("gains", "curves", "gaps", "reliability", "dead-units", "variance-shift"),
        *("confusion-baseline", "confusion-best"),
    }
    assert visible(page, "curves") == visible(page, "gaps") == {"none", "dropout", "both"}
    page.click("button.chip:has-text('dropout')")
    for plot in ("gains", "curves", "gaps", "reliability", "dead-units"):
        assert visible(page, plot) == visible(page, plot) - {"dropout"} != set()
    page.click("button.chip:has-text('dropout')")
    assert visible(page, "curves") == {"none", "dropout", "both"}
    # The tooltip is that of the point.
    page.hover("#curves .nsewdrag", position={"x": 5, "y": 5})
    assert problems == []


def test_names_from_outside_run_no_script(browser: Browser, planted: Planted) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    arms = {
        name: [record(s, right(40 + 9 * s, 100), name, classes=["a", evil, "c"]) for s in range(3)]
        for name in ("none", "both")
    }
    study = planted(arms)
    write_page(*read_tables(study), study.folder / "study.html")
    page, problems = opened(browser, study.folder / "study.html")
    assert page.title() == "study vision-builtin"
    assert problems == []


def test_the_page_lists_missing_runs(gaining: Study) -> None:
    shutil.rmtree(gaining.folder / "both-s2")
    (gaining.folder / "both-s1" / "metrics.json").unlink()
    (gaining.folder / "both-s1" / "error.txt").write_text("exit code 1\nno memory\n")
    collection = collect(gaining)
    assert collection.errors == {"both-s1": "no memory"}
    write_page(collection, gain_tables(collection), Path("study.html"))
    assert "Missing: 2 of 9 runs, 1 of them failed." in Path("study.html").read_text()


def test_a_study_under_way_has_a_page_that_reloads_and_links_to_its_runs(gaining: Study) -> None:
    for run in gaining.folder.glob("none-*"):
        (run / "metrics.json").unlink()
    shutil.rmtree(gaining.folder / "both-s2")
    progress = Progress(gaining, 9, 1, Console(file=io.StringIO()))
    file = gaining.folder / "study.html"
    content = file.read_text()
    assert "Missing: 4 of 9 runs." in content
    assert '<meta http-equiv="refresh"' in content
    assert '<a href="dropout-s1/metrics.json">50.00</a>' in content
    assert "both-s2" not in content
    # With a result of the baseline, there are charts; no test examples, which take long to load.
    folder = gaining.folder / "none-s0"
    (folder / "metrics.json").write_text(json.dumps(record(0, right(50, 100))))
    progress.update(Job(folder.name, folder, []))
    content = file.read_text()
    assert "Missing: 3 of 9 runs." in content
    assert 'id="gains"' in content
    assert '<a href="none-s0/metrics.json">50.00</a>' in content
    assert "Mistakes that" not in content
    write_page(*read_tables(gaining), file)
    assert '<meta http-equiv="refresh"' not in file.read_text()


def test_a_page_that_cannot_be_written_does_not_stop_the_study(
    gaining: Study, caplog: pytest.LogCaptureFixture
) -> None:
    (gaining.folder / "study.html").mkdir()
    Progress(gaining, 9, 1, Console(file=io.StringIO()))
    assert "the study's page could not be written" in caplog.text


def test_the_page_names_and_counts_the_runs_that_never_left_chance(gaining: Study) -> None:
    file = gaining.folder / "dropout-s1" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at_chance": True}))
    write_page(*read_tables(gaining), Path("study.html"))
    content = Path("study.html").read_text()
    assert "Training stayed at chance accuracy in 1 of 3 runs of dropout (seed 1)" in content
    assert ">3, 1 at chance</td>" in content
    assert "differ significantly" not in content


def test_a_study_without_runs_has_no_page() -> None:
    study = Study("vision", "builtin", ["none"], [0])
    with pytest.raises(InputError, match="no run of vision-builtin is complete yet"):
        write_page(*read_tables(study), Path("study.html"))


def test_results_of_another_version_are_named(gaining: Study) -> None:
    file = gaining.folder / "none-s0" / "metrics.json"
    file.write_text('{"test": {}}')
    with pytest.raises(InputError, match=f"{file} is not a valid result"):
        collect(gaining)


def test_only_what_differs_between_variants_is_listed(gaining: Study) -> None:
    assert differences(gain_tables(collect(gaining))[0]) == [
        ["model.reg.dropout", "0.0", "0.2", "0.2"]
    ]
    assert flat_config({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}


def test_fixed_mistakes_are_sorted_by_seeds_and_confidence() -> None:
    # Examples 0 to 3: fixed in 3 seeds, in 3 seeds, in 1 seed, broken in 3 seeds.
    before = [[False, False, False, True], [False, False, True, True], [False, False, True, True]]
    after = [[True, True, True, False]] * 3
    baseline, variant = (
        {seed: Result(record(seed, hits)) for seed, hits in enumerate(rows)}
        for rows in (before, after)
    )
    found = fixed_mistakes(baseline, variant)
    assert found is not None
    # Of 0 and 1, the baseline was more confident of 1: `record` has 0.5 and 0.6.
    assert [one.index for one in found.examples] == [1, 0, 2]
    assert (found.total, found.reverse) == (3, 1)
    assert found.examples[0].label == 1
    assert found.examples[0].before == {2: 3}
    assert found.examples[0].after == {1: 3}
    assert fixed_mistakes(variant, variant) is None


def test_mistakes_of_seeds_with_their_own_test_examples_are_not_mixed() -> None:
    baseline, variant = (
        {s: Result(record(s, [hit] * 4, test_set=str(s))) for s in range(3)}
        for hit in (False, True)
    )
    found = fixed_mistakes(baseline, variant)
    assert found is not None
    assert {sum(one.before.values()) for one in found.examples} == {1}


def test_media_are_shown_by_type() -> None:
    assert embedded_media("a text") == {"text": "a text"}
    assert embedded_media(Image.new("L", (2, 2)))["image"].startswith("data:image/png;base64,iVBOR")
    sound = Sound(np.zeros(100, dtype=np.int16), 8000)
    assert embedded_media(sound)["audio"].startswith("data:audio/flac;base64,ZkxhQ")
