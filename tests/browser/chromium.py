"""Debian's Chromium, driven by Playwright and cut off from everything but the server under test."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Scheme = Literal["light", "dark"]


@contextlib.contextmanager
def browsing(*flags: str) -> Iterator[Browser]:
    """Start a headless browser with further flags, and close it at the end of the block."""
    if CHROMIUM is None:
        raise RuntimeError("chromium is not installed: apt-get install chromium")
    environment: dict[str, str | float | bool] = {**os.environ, "XDG_CONFIG_HOME": os.devnull}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, *flags], env=environment
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = 1060
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page in a new context.

    Args:
        browser: the browser that `browsing` yields.
        url: the page; requests to other hosts are aborted.
        scheme: the preferred colour scheme.
        width: width of the window in CSS pixels.

    Yields:
        The page, and the console errors, exceptions and failed requests so far.
    """
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, device_scale_factor=1.25
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: _add(errors, message.type == "error", message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url}: {request.failure}"))
    try:
        page.goto(url)
        yield page, errors
    finally:
        context.close()


def _add(errors: list[str], failed: bool, text: str) -> None:
    if failed:
        errors.append(text)


def choose_image(page: Page, path: Path, *, field: str = "#file") -> None:
    """Choose an image in a file field, and wait for both answers."""
    page.set_input_files(field, path)
    page.wait_for_selector("#answers:not([hidden]):not(.waiting) canvas")
