"""The pages as they are seen: on a wide screen, on a phone, in the dark and on paper."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from playwright.sync_api import Browser, Page

from study import dashboard
from study.chart_style import COLOURS
from study.page import write_page
from study.plan import Study
from study.response import fit_response
from study.search_space import Space
from study.sweep_page import write_page as write_sweep_page
from tests.browser import FLAWS, contrast, opened
from tests.study.conftest import read_tables, record, right

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LAYERS = [f"features.{index}.norm" for index in range(6)]


def real(seed: int, gain: int, variant: str, classes: list[str]) -> dict[str, Any]:
    """Create a result with layers and a learning curve that starts near zero."""
    rng = np.random.default_rng(seed + 10 * gain)
    history = [(10 * step, float(rng.uniform(0, 0.02 + 0.09 * step))) for step in range(1, 10)]
    made = record(seed, right(50 + gain + seed, 100), variant, history=history)
    for epoch in made["history"]:
        for layer in LAYERS:
            epoch[f"reg/variance_shift/{layer}"] = float(rng.uniform(0.9, 1.2))
            epoch[f"reg/dead_units/{layer}"] = float(rng.uniform(0, 0.2) * (gain % 2))
    confusion = np.eye(len(classes), dtype=int).tolist()
    return made | {"classes": classes, "confusion": confusion}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def written(study: Study, missing: int = 0, classes: list[str] | None = None) -> Path:
    """Write the results of a study, all but the last ones, and its page."""
    study.save()
    runs = [(arm, seed) for seed in study.seeds for arm in study.arms()]
    for arm, seed in runs[: len(runs) - missing]:
        gain = 4 * study.variants.index(arm.variant)
        made = real(seed, gain, arm.title, classes or ["red", "green", "blue"])
        run = study.run_folder(arm, seed)
        run.mkdir()
        (run / "metrics.json").write_text(json.dumps(made))
    file = study.folder / "study.html"
    write_page(*read_tables(study), file)
    return file


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, Path]:
    """Pages of studies: common, with many long names, with an axis, factorial; and of a search."""
    names = [f"a-rather-long-name-of-a-variant-{index:02}" for index in range(11)]
    for name in names:
        (folder / f"{name}.yaml").write_text("vision: {}\n")
    common = ["none", "dropout", "batchnorm", "both"]
    factors = [
        str(folder / f"{name}.yaml") for name in ("none", "dropout", "normalization", "both")
    ]
    for file in factors:
        Path(file).write_text("vision: {}\n")
    many = ["none", *(str(folder / f"{name}.yaml") for name in names)]
    classes = [f"a long name of class number {index}" for index in range(40)]
    studies = folder / "runs" / "studies"
    axes = {"data.train_fraction": ["0.1", "0.3", "1.0"]}
    data = str(folder / "birds")
    with pytest.MonkeyPatch.context() as patch:
        # The data of the mistakes are decoded into a folder of the current one.
        patch.chdir(folder)
        return {
            "common": written(
                Study("vision", data, common, [0, 1, 2], name="common", root=studies)
            ),
            "many": written(
                Study("vision", data, many, [0, 1, 2], name="many", root=studies), 1, classes
            ),
            "axis": written(
                Study("vision", data, common, [0, 1, 2], axes, name="axis", root=studies)
            ),
            "factorial": written(
                Study(
                    "vision",
                    data,
                    factors,
                    [0, 1, 2],
                    name="factorial",
                    root=studies,
                    design="factorial",
                    recipe="both",
                )
            ),
            "search": search(folder / "sweep.html"),
        }


def search(file: Path) -> Path:
    """Write the page of a search."""
    distributions: dict[str, Any] = {
        "model.reg.head_dropout": FloatDistribution(0.002, 0.5, log=True),
        "model.reg.input_dropout": FloatDistribution(0.0, 0.5),
    }
    study = optuna.create_study(direction="maximize")
    for index in range(8):
        values = dict(zip(distributions, (0.002 * 2**index, 0.06 * index), strict=True))
        accuracy = 0.96 - 0.02 * index
        study.add_trial(create_trial(params=values, distributions=distributions, value=accuracy))
    space = Space(distributions, {})
    write_sweep_page(file, "rates", study, space, fit_response(study, space))
    return file


Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def shown(browser: Browser, pages: dict[str, Path]) -> Any:
    """Open a page without an error, each in the same way once."""
    open_pages: dict[tuple[str, str, int], tuple[Page, list[str]]] = {}

    def show(name: str, scheme: Any, size: Any) -> Page:
        key = (name, scheme, size["width"])
        if key not in open_pages:
            open_pages[key] = opened(browser, pages[name], viewport=size, color_scheme=scheme)
        page, problems = open_pages[key]
        assert problems == []
        return page

    yield show
    for page, problems in open_pages.values():
        page.close()
        assert problems == []


@pytest.mark.parametrize(
    ("name", "scheme", "size"),
    [
        *(("common", "light", WIDE), ("common", "dark", PHONE)),
        *(("many", "dark", WIDE), ("many", "light", PHONE)),
        *(("factorial", "light", WIDE), ("factorial", "dark", PHONE)),
        *(("axis", "light", PHONE), ("search", "light", WIDE), ("search", "dark", PHONE)),
    ],
)
def test_nothing_overlaps_or_is_cut_off(shown: Opened, name: str, scheme: str, size: Any) -> None:
    page = shown(name, scheme, size)
    assert page.evaluate(FLAWS) == []
    ranges = page.evaluate(
        """[...document.querySelectorAll('.plot')].flatMap(plot => ['xaxis', 'yaxis']
            .map(name => plot._fullLayout[name])
            .filter(axis => axis.title.text.endsWith('%')).map(axis => axis.range))"""
    )
    assert len(ranges) >= 3
    assert min(map(min, ranges)) >= 0
    if name == "axis":
        # Accuracies from 50 to 64 %, with intervals of at most 3 points.
        low, high = page.evaluate(
            "document.getElementById('axis-accuracy')._fullLayout.yaxis.range"
        )
        assert 40 < low < high < 75
    assert max(map(max, ranges)) <= 100


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_the_first_screen_has_the_verdict_and_the_chart_of_gains(
    shown: Opened, scheme: str, size: dict[str, int]
) -> None:
    page = shown("common", scheme, size)
    for selector in (".verdict", "#gains .main-svg"):
        box = page.locator(selector).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= size["height"]
    table = page.locator("table").first.bounding_box()
    steps = page.locator(".next").bounding_box()
    assert table is not None
    assert steps is not None
    assert steps["y"] + steps["height"] <= table["y"]


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
@pytest.mark.parametrize("name", ["common", "search"])
def test_texts_and_lines_stand_out(shown: Opened, name: str, scheme: str, size: Any) -> None:
    page = shown(name, scheme, size)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (contrast(paper, "#000000") < 1.3) == (scheme == "dark")
    pairs = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(one =>
            [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
            && !['SCRIPT', 'STYLE'].includes(one.tagName)).map(one => {
          let box = one;
          const style = getComputedStyle(one);
          while (getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)' && box.parentElement)
            box = box.parentElement;
          const ink = one.closest('svg') ? style.fill : style.color;
          return [ink, getComputedStyle(box).backgroundColor, one.tagName];
        })"""
    )
    assert len(pairs) > 50
    assert min(contrast(ink, behind) for ink, behind, _ in pairs) >= 4.5
    colours = page.evaluate(
        """[...document.querySelectorAll('.plot')].flatMap(plot => plot._fullData
            .filter(t => t.type === 'scatter' && t.line?.width !== 0)
            .map(t => t.mode === 'markers' ? t.marker.color : t.line.color))"""
    )
    assert len(set(colours)) >= (5 if name == "common" else 2)
    assert min(contrast(colour, paper) for colour in colours) >= 3
    assert (set(colours) & set(COLOURS) == set()) == (scheme == "dark")


def test_on_paper_charts_are_whole_light_and_explained(shown: Opened) -> None:
    page = shown("common", "dark", PHONE)
    # As in a browser: the event comes before the layout for paper.
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 690, "height": 1000})
    assert page.is_hidden(".chips")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    charts = page.evaluate(
        """[...document.querySelectorAll('.plot')].map(plot => ({
            id: plot.id, width: plot.querySelector('.main-svg').clientWidth,
            whole: getComputedStyle(plot.closest('.figure')).breakInside,
            colour: plot._fullData.at(-1).line?.color,
            title: plot.closest('.figure').querySelector('h2')?.innerText,
            legend: plot.parentElement.querySelector('.legend')?.innerText}))"""
    )
    assert len(charts) == 8
    for chart in charts:
        # A4 without its margins has 690 pixels.
        assert chart["width"] == (310 if chart["id"].startswith("confusion") else 640)
        assert chart["whole"] == "avoid"
    curves = next(chart for chart in charts if chart["id"] == "curves")
    assert curves["title"] == "Learning curves"
    assert curves["legend"].split() == ["none", "dropout", "batchnorm", "both"]
    assert contrast(curves["colour"], "#ffffff") >= 3
    assert page.evaluate(FLAWS) == []
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen", color_scheme="dark")
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    after = page.evaluate("document.getElementById('curves')._fullData.at(-1).line.color")
    assert contrast(after, "#14181c") > contrast(curves["colour"], "#14181c")


def test_a_keyboard_hides_a_variant_and_scrolls_tables(shown: Opened) -> None:
    page = shown("common", "dark", PHONE)
    page.focus(".chip[value=dropout]")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    visible = page.evaluate(
        """document.getElementById('curves').data.filter(t => t.visible !== false)
            .map(t => t.meta)"""
    )
    assert set(visible) == {"none", "batchnorm", "both"}
    page.keyboard.press("Enter")
    # Boxes that scroll can be focused.
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(b => b.tabIndex === 0)")


def test_no_path_of_this_machine_is_on_the_page(pages: dict[str, Path], folder: Path) -> None:
    for name in ("common", "many"):
        content = pages[name].read_text()
        assert str(folder) not in content
        assert "vision on birds, 3 seeds; 90 train, 30 validation, 100 test examples" in content
        assert "DATA=path/to/birds" in content


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_the_index_fits(
    browser: Browser, pages: dict[str, Path], folder: Path, scheme: Any, size: Any
) -> None:
    file = folder / "index.html"
    # One page reads a part of the results only.
    dashboard.index(folder / "runs")
    file.write_text(dashboard.index(folder / "runs"))
    page, problems = opened(browser, file, plots=False, viewport=size, color_scheme=scheme)
    assert page.evaluate(FLAWS) == []
    # One run of the study with many variants is missing.
    assert page.locator("progress").count() == 1
    assert problems == []
    page.close()
