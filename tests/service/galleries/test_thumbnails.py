"""Thumbnails are small, upright, keep colours, and have no EXIF data."""

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

MAX_PIXELS = 50_000_000


def opened(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    return image


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from(["PNG", "JPEG"]))
def test_the_aspect_ratio_is_kept(width: int, height: int, style: str) -> None:
    small_image = thumbnail(picture("red", (width, height), style), max_pixels=MAX_PIXELS)
    assert (small_image.width, small_image.height) == (width, height)
    small = opened(small_image.jpeg)
    scale = min(1.0, LONGEST / max(width, height))
    assert small.width == pytest.approx(max(1, width * scale), abs=0.51)
    assert small.height == pytest.approx(max(1, height * scale), abs=0.51)


@pytest.mark.parametrize("style", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnails_are_upright(style: str, orientation: int) -> None:
    # In the stored image, the left half is red.
    stored = Image.new("RGB", (600, 400), "blue")
    stored.paste((255, 0, 0), (0, 0, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker of cameras"
    small_image = thumbnail(encoded(stored, style, exif=exif), max_pixels=MAX_PIXELS)
    rotated = orientation >= 5
    assert (small_image.width, small_image.height) == ((400, 600) if rotated else (600, 400))
    small = opened(small_image.jpeg)
    assert small.size == ((256, 384) if rotated else (384, 256))
    assert not small.getexif()
    assert b"a maker of cameras" not in small_image.jpeg
    # Side of the upright image that shows the stored left half.
    side = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom"}
    columns, rows = small.width // 4, small.height // 4
    point = {
        "left": (columns, 2 * rows),
        "right": (3 * columns, 2 * rows),
        "top": (2 * columns, rows),
        "bottom": (2 * columns, 3 * rows),
    }[side.get(orientation, "bottom")]
    red, _, blue = small.getpixel(point)  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_thin_lines_keep_their_colours() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    small_image = thumbnail(encoded(Image.fromarray(stripes)), max_pixels=MAX_PIXELS)
    assert small_image.jpeg[:2] == b"\xff\xd8"
    pixels = np.asarray(opened(small_image.jpeg).convert("RGB")).astype(int)
    # With 4:2:0 subsampling, the image would be uniformly purple.
    assert np.abs(pixels - stripes).mean() < 12


def test_transparent_pixels_become_white() -> None:
    small_image = thumbnail(
        encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), max_pixels=MAX_PIXELS
    )
    assert np.asarray(opened(small_image.jpeg)).min() > 250


def test_invalid_images_are_refused() -> None:
    with pytest.raises(ImageFormat):
        thumbnail(b"no image", max_pixels=MAX_PIXELS)
    with pytest.raises(ImageError):
        thumbnail(b"", max_pixels=MAX_PIXELS)
    with pytest.raises(ImageTooLarge):
        thumbnail(picture("red", (100, 100)), max_pixels=9999)
    with pytest.raises(ImageError):
        thumbnail(picture("red", (100, 100), "JPEG")[:400], max_pixels=MAX_PIXELS)
