"""A headless Chromium for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Containers do not allow a sandbox. The other options turn off network access.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

# What is wider than the window, without the boxes that scroll; texts of a chart that overlap or
# that its edges cut off.
FLAWS = """() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push('the page scrolls sideways');
  for (const one of document.querySelectorAll('main *')) {
    const box = one.getBoundingClientRect();
    if (one.closest('.scroll *, .chips *, svg *, bdi') || !box.width) continue;
    if (box.left < -0.5 || box.right > width + 0.5) found.push(`${one.tagName} is too wide`);
  }
  for (const box of document.querySelectorAll('.scroll:has(.stacked)'))
    if (box.scrollWidth > box.clientWidth + 1) found.push('a table is cut off');
  for (const plot of document.querySelectorAll('.plot')) {
    const edge = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll('svg text')].filter(t => t.textContent)
        .map(t => [t.textContent, t.getBoundingClientRect()]).filter(([, b]) => b.width);
    texts.forEach(([text, a], index) => {
      if (a.left < edge.left - 1 || a.right > edge.right + 1 || a.bottom > edge.bottom + 1)
        found.push(`${plot.id}: ${text} is cut off`);
      for (const [other, b] of texts.slice(index + 1)) {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 2) found.push(`${plot.id}: ${text} over ${other}`);
      }
    });
    for (const bar of plot.querySelectorAll('.modebar'))
      if (bar.checkVisibility({opacityProperty: true})) found.push(`${plot.id}: tool bar`);
  }
  return found;
}"""


def executable(of_playwright: str) -> str:
    """Find Playwright's Chromium or the system's; without one, skip, but fail in CI."""
    found = next(filter(None, map(shutil.which, (of_playwright, *BROWSERS))), None)
    if found is not None:
        return found
    reason = "no Chromium is installed: run `playwright install chromium`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser."""
    with sync_playwright() as playwright:
        path = executable(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


def opened(
    browser: Browser, file: Path | str, plots: bool = True, **options: Any
) -> tuple[Page, list[str]]:
    """Open a page; also return its errors, failed requests and requests of other pages."""
    page = browser.new_page(**options)
    address = file.resolve().as_uri() if isinstance(file, Path) else file
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url[:80]))
    page.on(
        "request",
        lambda request: (
            problems.append(request.url[:80])
            if request.url != address and not request.url.startswith("data:")
            else None
        ),
    )
    page.goto(address)
    if plots:
        page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"
        )
    return page, problems


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours of the form `rgb(...)` or `#rrggbb`, as in WCAG 2."""
    found = []
    for colour in (one, other):
        digits = [colour[start : start + 2] for start in (1, 3, 5)]
        values = (
            [int(pair, 16) for pair in digits]
            if colour.startswith("#")
            else [int(part) for part in colour[4:-1].split(",")]
        )
        parts = np.array(values) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        found.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(found) + 0.05) / (min(found) + 0.05)
