"""Thumbnails: small, upright, true to the colours, and without the original's EXIF."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.service.standin import encoded, picture
from tokenfold.inference.errors import ImageError, ImageFormat, ImageTooLarge
from tokenfold.service.galleries.thumbnails import LONGEST, thumbnail

MOST = 50_000_000


def opened(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    return image


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from(["PNG", "JPEG"]))
def test_it_keeps_its_shape(width: int, height: int, style: str) -> None:
    found = thumbnail(picture("red", (width, height), style), max_pixels=MOST)
    assert (found.width, found.height) == (width, height)
    small = opened(found.jpeg)
    scale = min(1.0, LONGEST / max(width, height))
    assert small.width == pytest.approx(max(1, width * scale), abs=0.51)
    assert small.height == pytest.approx(max(1, height * scale), abs=0.51)


@pytest.mark.parametrize("style", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(style: str, orientation: int) -> None:
    # The left half is red, as it is stored.
    stored = Image.new("RGB", (600, 400), "blue")
    stored.paste((255, 0, 0), (0, 0, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker of cameras"
    found = thumbnail(encoded(stored, style, exif=exif), max_pixels=MOST)
    lying = orientation >= 5
    assert (found.width, found.height) == ((400, 600) if lying else (600, 400))
    small = opened(found.jpeg)
    assert small.size == ((256, 384) if lying else (384, 256))
    assert not small.getexif()
    assert b"a maker of cameras" not in found.jpeg
    # Where the stored left side is seen.
    side = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom"}
    columns, rows = small.width // 4, small.height // 4
    at = {
        "left": (columns, 2 * rows),
        "right": (3 * columns, 2 * rows),
        "top": (2 * columns, rows),
        "bottom": (2 * columns, 3 * rows),
    }[side.get(orientation, "bottom")]
    red, _, blue = small.getpixel(at)  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_thin_lines_keep_their_colour() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    found = thumbnail(encoded(Image.fromarray(stripes)), max_pixels=MOST)
    assert found.jpeg[:2] == b"\xff\xd8"
    seen = np.asarray(opened(found.jpeg).convert("RGB")).astype(int)
    # With 4:2:0 all of it would be one purple.
    assert np.abs(seen - stripes).mean() < 12


def test_what_is_seen_through_is_white() -> None:
    found = thumbnail(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), max_pixels=MOST)
    assert np.asarray(opened(found.jpeg)).min() > 250


def test_what_cannot_be_used() -> None:
    with pytest.raises(ImageFormat):
        thumbnail(b"no image", max_pixels=MOST)
    with pytest.raises(ImageError):
        thumbnail(b"", max_pixels=MOST)
    with pytest.raises(ImageTooLarge):
        thumbnail(picture("red", (100, 100)), max_pixels=9999)
    with pytest.raises(ImageError):
        thumbnail(picture("red", (100, 100), "JPEG")[:400], max_pixels=MOST)
