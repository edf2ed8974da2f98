"""The report in headless Chromium, as a reader has it: phone, laptop, dark, paper.

make test-browser runs these; LEERY_CHROMIUM names a browser that lies elsewhere.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from leery.arena._page import write_page

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"

VIEWS = {
    "phone": {"viewport": {"width": 360, "height": 780}, "color_scheme": "light"},
    "laptop": {"viewport": {"width": 1366, "height": 768}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1366, "height": 768}, "color_scheme": "dark"},
    "paper": {"viewport": {"width": 794, "height": 1123}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = os.environ.get("LEERY_CHROMIUM") or shutil.which("chromium")
    assert path, "expected Chromium, got none; make test-browser installs it, or set LEERY_CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@contextmanager
def visited(chromium: Any, view: str, path: Path) -> Iterator[Any]:
    """A page in a view, which prints nothing, asks for nothing else and is not too wide."""
    context = chromium.new_context(**VIEWS[view])
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    if view == "paper":
        page.emulate_media(media="print")
    address = path.resolve().as_uri()
    page.goto(address)
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    options = {"resultTypes": ["violations", "passes"]}
    found = Axe().run(page, options=options).response
    assert [(entry["id"], entry["nodes"][0]["html"]) for entry in found["violations"]] == []
    # The contrast rule must have looked at something, or its silence would say nothing.
    looked = {entry["id"]: len(entry["nodes"]) for entry in found["passes"]}
    assert looked["color-contrast"] > 50
    context.close()


@pytest.mark.parametrize(
    ("place", "view"), [*((".", view) for view in VIEWS), ("mnist", "phone"), ("mnist", "paper")]
)
def test_the_report_is_whole_readable_and_fits(
    reports: Path, chromium: Any, place: str, view: str
) -> None:
    with visited(chromium, view, reports / place / "report.html") as page:
        if view == "paper":
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            folded = "[...document.querySelectorAll('main details:not([open])')]"
            assert page.evaluate(f"{folded}.map(d => d.innerText)") == ["Every comparison"]
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert page.evaluate(broken) == 0
        sizes = "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())"
        heights = page.evaluate(f"{sizes}.map(size => size.height)")
        assert len(heights) >= 12
        assert min(heights) > 90


@pytest.fixture(scope="module")
def arena_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the committed arena of MNIST."""
    folder = tmp_path_factory.mktemp("arena")
    results = RESULTS / "arena" / "mnist"
    names = ("leaderboard", "cells", "false-alarms", "attacks", "times")
    empty = {"error": "", "trained_on": ""}
    tables = {
        name: pd.read_csv(results / f"{name}.csv", dtype=dict.fromkeys(empty, str)).fillna(empty)
        for name in names
    }
    manifest = json.loads((results / "manifest.json").read_text())
    return write_page(folder, tables, manifest)


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_of_an_arena_is_whole_and_fits(arena_page: Path, chromium: Any, view: str) -> None:
    with visited(chromium, view, arena_page) as page:
        assert page.locator("figure svg").count() == 4
        names = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(names) == len(set(names))
        assert page.locator("#leaderboard tbody tr").first.inner_text().startswith("leery")


def test_headings_sort_and_the_filter_hides(reports: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto((reports / "mnist" / "report.html").resolve().as_uri())
    rows = "[...document.querySelectorAll('#all-six-mnist tbody tr')]"
    cells = f"{rows}.map(row => row.cells[3].textContent)"
    heading = page.locator("#all-six-mnist th button", has_text="ROC-AUC").first
    before = page.evaluate(cells)
    heading.click()
    assert page.evaluate(cells) == sorted(before)
    heading.click()
    assert page.evaluate(cells) == sorted(before, reverse=True)
    names = f"{rows}.map(row => row.cells[0].textContent)"
    page.locator("#all-six-mnist th button", has_text="attack").click()
    assert page.evaluate(names) == ["BIM", "BIM", "FGSM", "FGSM", "PGD", "PGD"]
    page.locator("input[data-table=detection-mnist]").fill("bim 0.12 held out all six")
    shown = page.locator("#detection-mnist tbody tr:visible")
    # All six with either reading of the KL divergence.
    assert shown.count() == 2
    assert "0.951" in shown.first.inner_text()
    page.locator("input[data-table=detection-mnist]").fill("")
    assert shown.count() == 6 * 12 * 2


def test_the_contents_stay_in_view(reports: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": 360, "height": 780})
    page.goto((reports / "mnist" / "report.html").resolve().as_uri())
    page.locator("nav summary").click()
    page.locator("nav a", has_text="Errata").click()
    page.wait_for_timeout(1500)
    assert page.locator("nav summary").is_visible()
    top = page.evaluate("document.querySelector('nav').getBoundingClientRect().top")
    assert top == 0
    heading = page.evaluate("document.querySelector('#errata').getBoundingClientRect().top")
    assert 0 <= heading < 780
