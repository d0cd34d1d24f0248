"""The page at /, in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import CHROMIUM, browsing, choose_image, opened
from tests.docs.pages import TOP
from tests.docs.server import sample_server

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
EXAMPLES = TOP / "examples"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with sample_server() as started:
        yield f"http://{started}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


def tokens_out(page: Page, side: str) -> int:
    """Return the number of tokens left that a side of the page shows."""
    facts = page.inner_text(f"#{side} .facts")
    match = re.search(r"(\d+) → (\d+)", facts)
    assert match is not None, facts
    return int(match[2])


@pytest.mark.parametrize("tab", ["classify", "vqa", "entail", "reason", "match", "search"])
def test_every_tab_opens_without_errors(browser: Browser, address: str, tab: str) -> None:
    with opened(browser, f"{address}/#{tab}") as (page, errors):
        page.wait_for_load_state("networkidle")
        expect(page.locator(f"#tasks [data-task={tab}]")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#error")).to_be_hidden()
        assert errors == []


def test_the_slider_changes_the_reduced_answer(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#classify") as (page, errors):
        page.wait_for_load_state("networkidle")
        choose_image(page, EXAMPLES / "photos" / "cat.jpg")
        assert tokens_out(page, "exact") == 65
        before = tokens_out(page, "reduced")
        page.locator("#reduction").fill("0.7")
        expect(page.locator("#levelnames [aria-pressed=true]")).to_have_text("fastest")
        expect(page.locator("#reduced .facts")).to_contain_text("fastest")
        assert tokens_out(page, "reduced") < before
        assert "reduction=0.7" in page.inner_text("#curl")
        assert errors == []


def test_a_question_is_answered(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#vqa") as (page, errors):
        page.fill("#text", "What colour is the star?")
        choose_image(page, EXAMPLES / "scenes" / "star.png")
        expect(page.locator("#reduced .predictions li").first).to_contain_text("red")
        expect(page.locator("#reduced .pieces")).to_contain_text("star")
        assert errors == []


def test_two_images_are_compared(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#reason") as (page, errors):
        page.fill("#text", "There are more triangles on the right.")
        page.set_input_files("#file", EXAMPLES / "scenes" / "left.png")
        choose_image(page, EXAMPLES / "scenes" / "right.png", field="#file2")
        expect(page.locator("#exact canvas")).to_have_count(2)
        expect(page.locator("#exact .predictions li").first).to_contain_text("true")
        assert errors == []


def test_a_gallery_is_searched(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#search") as (page, errors):
        expect(page.locator("#results li")).to_have_count(12)
        page.locator("#results button").first.click()
        expect(page.locator("#queryname")).to_contain_text("More like")
        page.click("#usetext")
        page.check("#rerank")
        expect(page.locator("#searchinfo")).to_contain_text("reranked")
        assert errors == []


def test_a_bad_file_is_reported(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#classify") as (page, _):
        page.wait_for_load_state("networkidle")
        page.set_input_files("#file", EXAMPLES / "README.md")
        expect(page.locator("#error")).to_have_text(
            "The browser cannot show this file as an image."
        )
