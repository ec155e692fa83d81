"""The page of a study, as a browser shows it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from study.mistakes import fixed_mistakes
from study.page import differences, flat, shown, write_page
from study.plan import Study
from study.results import Result, collect
from study.tables import tables
from tasks.data import Sound
from tasks.errors import InputError
from tests.study.conftest import Planted, record, right

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# No sandbox, as containers do not let it have one; nothing that reaches for the network.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield opened
        opened.close()


def opened(browser: Browser, file: Path, **options: Any) -> tuple[Page, list[str]]:
    """Open a page from disk; also return what goes wrong in it."""
    page = browser.new_page(**options)
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url[:80]))
    page.goto(file.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
    return page, problems


@pytest.fixture
def page_of(gaining: Study) -> Path:
    for file in gaining.folder.glob("*/metrics.json"):
        content = json.loads(file.read_text())
        for epoch in content["history"]:
            epoch["reg/variance_shift/3"] = 1.1
            epoch["reg/dead_units/3"] = 0.2
        file.write_text(json.dumps(content))
    file = gaining.folder / "study.html"
    write_page(collect(gaining), file)
    return file


def visible(page: Page, plot: str) -> set[str]:
    """Name the variants that a picture shows."""
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
        *("gains", "curves", "gaps", "reliability", "layers"),
        *("confusion-baseline", "confusion-best"),
    }
    assert visible(page, "curves") == visible(page, "gaps") == {"none", "dropout", "both"}
    page.click("button.chip:has-text('dropout')")
    for plot in ("gains", "curves", "gaps", "reliability", "layers"):
        assert visible(page, plot) == visible(page, plot) - {"dropout"} != set()
    page.click("button.chip:has-text('dropout')")
    assert visible(page, "curves") == {"none", "dropout", "both"}
    # What hovers over a point is that point's.
    page.hover("#curves .nsewdrag", position={"x": 5, "y": 5})
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_on_a_phone_and_its_text_stands_out(
    browser: Browser, page_of: Path, scheme: Any
) -> None:
    page, problems = opened(
        browser, page_of, viewport={"width": 360, "height": 740}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, paper = page.evaluate(
        """[getComputedStyle(document.querySelector('.plot text')).fill,
            getComputedStyle(document.body).backgroundColor]"""
    )
    assert contrast(ink, paper) > 7
    assert problems == []


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG 2 defines it: 7 is enough for small text."""
    found = []
    for colour in (one, other):
        parts = np.array([int(p) for p in colour[4:-1].split(",")]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        found.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(found) + 0.05) / (min(found) + 0.05)


def test_the_page_prints(browser: Browser, page_of: Path) -> None:
    page, problems = opened(browser, page_of, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.is_hidden(".chips")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000
    assert problems == []


def test_names_from_outside_run_no_script(browser: Browser, planted: Planted) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    arms = {
        name: [record(s, right(40 + 9 * s, 100), name, classes=["a", evil, "c"]) for s in range(3)]
        for name in ("none", "both")
    }
    study = planted(arms)
    write_page(collect(study), study.folder / "study.html")
    page, problems = opened(browser, study.folder / "study.html")
    assert page.title() == "study vision-builtin"
    assert problems == []


def test_the_page_tells_what_is_missing(gaining: Study) -> None:
    shutil.rmtree(gaining.folder / "both-s2")
    (gaining.folder / "both-s1" / "metrics.json").unlink()
    (gaining.folder / "both-s1" / "error.txt").write_text("exit code 1\nno memory\n")
    collection = collect(gaining)
    assert collection.errors == {"both-s1": "no memory"}
    write_page(collection, Path("study.html"))
    assert "2 of 9 runs are missing, 1 of them failed." in Path("study.html").read_text()


def test_the_page_names_and_counts_the_runs_that_never_left_chance(gaining: Study) -> None:
    file = gaining.folder / "dropout-s1" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at_chance": True}))
    write_page(collect(gaining), Path("study.html"))
    content = Path("study.html").read_text()
    assert "Training never left chance in 1 of 3 runs of dropout (seed 1)" in content
    assert "<td>3, 1 at chance</td>" in content
    assert "no effect" not in content


def test_a_study_without_runs_has_no_page() -> None:
    study = Study("vision", "builtin", ["none"], [0])
    with pytest.raises(InputError, match="no run of vision-builtin is complete yet"):
        write_page(collect(study), Path("study.html"))


def test_results_of_another_version_are_named(gaining: Study) -> None:
    file = gaining.folder / "none-s0" / "metrics.json"
    file.write_text('{"test": {}}')
    with pytest.raises(InputError, match=f"{file} is no result of this version"):
        collect(gaining)


def test_only_what_differs_between_variants_is_listed(gaining: Study) -> None:
    assert differences(tables(collect(gaining))[0]) == [["model.reg.dropout", "0.0", "0.2", "0.2"]]
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}


def test_the_fixed_mistakes_are_those_of_most_seeds_and_surest() -> None:
    # Examples 0 to 3: fixed in 3 seeds, in 3 seeds, in 1 seed, broken in 3 seeds.
    before = [[False, False, False, True], [False, False, True, True], [False, False, True, True]]
    after = [[True, True, True, False]] * 3
    baseline, variant = (
        {seed: Result(record(seed, hits)) for seed, hits in enumerate(rows)}
        for rows in (before, after)
    )
    found = fixed_mistakes(baseline, variant)
    assert found is not None
    # Of 0 and 1 the baseline was surer of 1: `record` says 0.5 and 0.6.
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


def test_media_are_shown_as_what_they_are() -> None:
    assert shown("a text") == {"text": "a text"}
    assert shown(Image.new("L", (2, 2)))["image"].startswith("data:image/png;base64,iVBOR")
    sound = Sound(np.zeros(100, dtype=np.int16), 8000)
    assert shown(sound)["audio"].startswith("data:audio/flac;base64,ZkxhQ")
