"""Tests of image decoding, with unusual, damaged and malicious files."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.service.standin import encoded, picture
from tokenfold.bundle.preprocess import Pixels, Preprocess
from tokenfold.inference import images
from tokenfold.inference.errors import ImageError, ImageFormat, ImageTooLarge, RequestError
from tokenfold.service.api.problems import status_of

SMALL = Preprocess(size=(8, 8))
PLENTY = 1_000_000


def decode(data: bytes, preprocess: Preprocess = SMALL, max_pixels: int = PLENTY) -> Pixels:
    pixels = images.decode(data, preprocess, max_pixels=max_pixels)
    assert pixels.shape == (*preprocess.size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def colour(pixels: Pixels) -> tuple[int, ...]:
    return tuple(int(value) for value in pixels.reshape(-1, 3).mean(axis=0).round())


def arrow(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Return an image that is red at the upper left, green at the upper right and blue below."""
    image = Image.new("RGB", size, "blue")
    w, h = size
    image.paste("red", (0, 0, w // 2, h // 2))
    image.paste("lime", (w // 2, 0, w, h // 2))
    return image


@pytest.mark.parametrize("style", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_supported_formats_are_decoded(style: str) -> None:
    red, green, blue = colour(decode(picture("red", style=style)))
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize("style", ["PPM", "ICO", "TGA", "PCX"])
def test_unsupported_formats_are_refused(style: str) -> None:
    with pytest.raises(ImageFormat, match="JPEG, PNG"):
        decode(picture("red", style=style))


@pytest.mark.parametrize("data", [b"no image at all", b"\xff\xd8", b"GIF8", b"\x00" * 1000])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageFormat):
        decode(data)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match="0 bytes"):
        decode(b"")


@pytest.mark.parametrize("style", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_images_are_refused(style: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), style)
    with pytest.raises(RequestError) as caught:
        decode(data[: len(data) // 2])
    assert status_of(type(caught.value)) in (415, 422)


@given(st.data())
def test_corrupt_images_raise_only_image_errors(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    whole = bytearray(encoded(arrow(), style))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        decode(bytes(whole))


def test_an_image_of_one_pixel_is_decoded() -> None:
    assert colour(decode(picture("lime", (1, 1)))) == (0, 255, 0)


def test_cmyk_is_converted_to_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = colour(decode(encoded(image, "JPEG")))
    assert red > 200
    assert max(green, blue) < 60


def test_grey_images_are_converted_to_rgb() -> None:
    assert colour(decode(encoded(Image.new("L", (9, 9), 77)))) == (77, 77, 77)
    assert colour(decode(encoded(Image.new("1", (9, 9), 1)))) == (255, 255, 255)


def test_transparent_grey_becomes_white() -> None:
    assert colour(decode(encoded(Image.new("LA", (9, 9), (0, 0))))) == (255, 255, 255)
    assert colour(decode(encoded(Image.new("LA", (9, 9), (9, 255))))) == (9, 9, 9)


def test_palette_images_are_converted_to_rgb() -> None:
    image = arrow((8, 8)).quantize(8)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(arrow((8, 8))))


def test_transparent_palette_entries_become_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 8, 4))
    for transparency in (0, bytes([0, 255])):
        pixels = decode(encoded(image, transparency=transparency))
        assert colour(pixels[:4]) == (255, 255, 255)
        assert colour(pixels[4:]) == (0, 0, 255)


def test_transparent_pixels_are_white_and_do_not_bleed_into_their_neighbours() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    pixels = decode(encoded(image))
    # The transparent half is black underneath; black must not show at the seam.
    assert pixels[..., 0].min() > 250
    assert colour(pixels[:, 5:]) == (255, 255, 255)


def test_grey_of_16_bits_is_scaled_to_8() -> None:
    for value, expected in ((0, 0), (257 * 100, 100), (65535, 255), (300, 1)):
        image = Image.fromarray(np.full((8, 8), value, dtype=np.uint16))
        assert image.mode == "I;16"
        for style in ("PNG", "TIFF"):
            assert colour(decode(encoded(image, style))) == (expected,) * 3


def test_colours_of_16_bits_are_scaled_to_8() -> None:
    assert colour(decode(png((65535, 32768, 0), bits=16))) == (255, 128, 0)


def test_images_of_32_bits_are_refused() -> None:
    for dtype in (np.int32, np.float32):
        image = Image.fromarray(np.ones((8, 8), dtype=dtype))
        with pytest.raises(ImageError, match="32 bits"):
            decode(encoded(image, "TIFF"))


@pytest.mark.parametrize("style", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(style: str) -> None:
    frames = [Image.new("RGB", (16, 16), name) for name in ("red", "blue", "lime")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    if style == "WEBP":
        options["lossless"] = True
    assert colour(decode(encoded(frames[0], style, **options))) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("style", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_the_exif_orientation_is_applied(orientation: int, style: str) -> None:
    # A camera stores the upright image with the inverse of its orientation applied.
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = arrow((64, 32))
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif}
    if style == "WEBP":
        options["lossless"] = True
    if style == "JPEG":
        options |= {"quality": 100, "subsampling": 0}
    preprocess = Preprocess(size=(32, 64), interpolation="nearest")
    pixels = decode(encoded(stored, style, **options), preprocess).astype(int)
    assert np.abs(pixels - np.asarray(upright)).mean() < 3


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), exif=b"Exif\x00\x00garbage")
    assert colour(decode(data)) == (255, 0, 0)


def png(colour: tuple[int, int, int], bits: int = 8, size: tuple[int, int] = (4, 4)) -> bytes:
    """Return a PNG that Pillow cannot write: of 16 bits per colour, or with a false size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    width, height = size
    pixel = struct.pack(">3H", *colour) if bits == 16 else bytes(colour)
    rows = (b"\x00" + pixel * min(width, 64)) * min(height, 64)
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_images_with_too_many_pixels_are_refused_by_their_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", never)
    with pytest.raises(ImageTooLarge, match="10000 x 10000"):
        decode(png((1, 2, 3), size=(10_000, 10_000)), max_pixels=50_000_000)
    # Far above the size at which Pillow itself warns and raises.
    with pytest.raises(ImageTooLarge):
        decode(png((1, 2, 3), size=(60_000, 60_000)), max_pixels=50_000_000)


def test_the_pixel_limit_is_inclusive() -> None:
    assert colour(decode(picture("red", (10, 10)), max_pixels=100)) == (255, 0, 0)
    with pytest.raises(ImageTooLarge):
        decode(picture("red", (10, 10)), max_pixels=99)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (3, 5), (500, 7)])
def test_extreme_aspect_ratios_are_decoded(size: tuple[int, int]) -> None:
    for preprocess in (SMALL, Preprocess(size=(8, 8), resize="shorter", shorter_side=10)):
        assert colour(decode(picture("red", size), preprocess)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (97, 411)])
@pytest.mark.parametrize("shorter", [224, 256, 248])
def test_resizing_the_shorter_side_equals_resizing_and_cropping_with_pillow(
    size: tuple[int, int], shorter: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    w, h = size
    scaled = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
    whole = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - 224) // 2, (scaled[1] - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    preprocess = Preprocess(
        size=(224, 224), resize="shorter", shorter_side=shorter, interpolation="bicubic"
    )
    np.testing.assert_array_equal(decode(encoded(image), preprocess), expected)


def test_a_crop_beyond_the_image_is_black() -> None:
    preprocess = Preprocess(size=(8, 8), resize="shorter", shorter_side=4)
    pixels = decode(picture("red", (20, 20)), preprocess)
    assert colour(pixels[2:6, 2:6]) == (255, 0, 0)
    assert pixels[:2].max() == pixels[6:].max() == 0


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_stretching_equals_pillows_resize(interpolation: Any) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    method = Image.Resampling[interpolation.upper()]
    preprocess = Preprocess(size=(20, 30), interpolation=interpolation)
    expected = np.asarray(image.resize((30, 20), method))
    np.testing.assert_array_equal(decode(encoded(image), preprocess), expected)


def test_an_image_of_the_models_size_is_not_resized() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(decode(data, Preprocess(size=(32, 32))), expected)


def test_decoding_a_large_jpeg_at_reduced_scale_changes_pixels_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    waves = [np.sin(x / a + y / b) * 100 + 128 for a, b in ((9, 31), (23, 17), (57, 5))]
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    data = encoded(image, "JPEG", quality=90)
    preprocess = Preprocess(size=(224, 224))
    reduced = decode(data, preprocess, max_pixels=2_000_000).astype(int)
    monkeypatch.setattr("tokenfold.bundle.preprocess._DRAFT_FACTOR", 1000)
    whole = decode(data, preprocess, max_pixels=2_000_000).astype(int)
    difference = np.abs(reduced - whole)
    assert difference.max() > 0  # otherwise nothing was reduced
    assert difference.mean() < 1.5
    assert difference.max() < 16
