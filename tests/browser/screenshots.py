"""Take the screenshots of README.md and docs/: `make screenshots`.

A server is started on a free port with the built-in models and the sample gallery. Each picture is
taken in the light and in the dark colour scheme, and is reduced to a palette to stay small.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.browser.chromium import Scheme, browsing, choose_image, opened
from tests.docs.server import sample_server

TOP = Path(__file__).parents[2]
OUT = TOP / "docs" / "images"
EXAMPLES = TOP / "examples"
ADDRESS = "localhost:8000"
MAX_BYTES = 300_000
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def classify(page: Page) -> None:
    """Show the exact answer beside a reduced one, for a photo."""
    page.select_option("#model", "cifar10-int8")
    page.click("text=balanced")
    choose_image(page, EXAMPLES / "photos" / "cat.jpg")
    repeat(page)


def vqa(page: Page) -> None:
    """Ask a question about a scene."""
    page.fill("#text", "What colour is the star?")
    page.locator("#text").blur()
    choose_image(page, EXAMPLES / "scenes" / "star.png")
    repeat(page)


def repeat(page: Page) -> None:
    """Send the requests again, because the first ones of a model take longer."""
    for _ in range(3):
        with page.expect_response("**/v1/**"):
            page.click("text=balanced")
        page.wait_for_load_state("networkidle")
    page.wait_for_selector("#answers:not(.waiting)")


def search(page: Page) -> None:
    """Search the sample gallery with a text."""
    page.fill("#query", "a red star and a blue circle")
    page.fill("#topk", "10")
    page.locator("#topk").blur()
    page.wait_for_selector("#results:not(.waiting) li:nth-child(10)")
    page.wait_for_function("[...document.querySelectorAll('#results img')].every(i => i.complete)")


# The task whose two answers are also saved as a separate picture.
BESIDE = "vqa"
PICTURES: dict[str, Callable[[Page], None]] = {"classify": classify, "vqa": vqa, "search": search}


def main() -> int:
    """Write every picture; return 1 if a page reports an error or a picture is too large."""
    OUT.mkdir(exist_ok=True)
    with (
        sample_server() as address,
        # The pictures show the default address.
        browsing(f"--host-resolver-rules=MAP {ADDRESS} {address}") as browser,
    ):
        for name, act in PICTURES.items():
            for scheme in SCHEMES:
                with opened(browser, f"http://{ADDRESS}/#{name}", scheme=scheme) as (page, errors):
                    page.wait_for_load_state("networkidle")
                    act(page)
                    page.wait_for_load_state("networkidle")
                    pictures = {name: page.screenshot(full_page=True)}
                    if name == BESIDE:
                        pictures["beside"] = page.locator("#answers").screenshot()
                for picture, png in pictures.items():
                    path = OUT / f"{picture}-{scheme}.png"
                    size = save(png, path)
                    print(f"{path.name}: {size:,} bytes")
                    if size > MAX_BYTES:
                        errors.append(f"{path.name}: {size:,} bytes; at most {MAX_BYTES:,}")
                if errors:
                    print("\n".join(errors), file=sys.stderr)
                    return 1
    return 0


def save(png: bytes, path: Path) -> int:
    """Write a screenshot with a palette of 256 colours; return its size in bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
