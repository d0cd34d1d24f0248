"""Resizing within bounds, as ViLT's images are: the sizes and pixels of `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tokenfold.bundle.preprocess import Preprocess, pixels
from tokenfold.models.checkpoints import processors

VILT = processors.default_vilt((384, 384), 32)
SHAPES = [
    (384, 384),
    (480, 640),
    (640, 480),
    (100, 1000),
    (1000, 100),
    (427, 640),
    (33, 47),
    (6, 6),
]


def picture(height: int, width: int) -> Image.Image:
    """Return a smooth image, so that details of the resize filter matter little."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 / height, columns * 255 / width, np.full_like(rows, 90)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_and_pixels_equal_those_of_transformers(shape: tuple[int, int]) -> None:
    reference: Any = transformers.ViltImageProcessorPil(
        do_normalize=False, do_rescale=False, do_pad=False
    )
    expected = reference(picture(*shape), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    actual = pixels(picture(*shape), VILT)
    assert actual.shape == expected.shape
    assert actual.shape[:2] == VILT.size_of(*shape)
    assert np.abs(actual.astype(float) - expected).max() <= 1


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_within_bounds(height: int, width: int) -> None:
    rows, columns = VILT.size_of(height, width)
    assert rows % 32 == columns % 32 == 0
    assert 32 <= min(rows, columns) <= 384
    assert max(rows, columns) <= 639
    assert VILT.size_of(width, height) == (columns, rows)


def test_a_very_long_image_is_one_patch_high() -> None:
    assert pixels(picture(2, 3000), VILT).shape == (32, 608, 3)


def test_other_resize_modes_have_one_size() -> None:
    assert Preprocess(size=(20, 30)).size_of(500, 3) == (20, 30)


@pytest.mark.parametrize(
    "fields",
    [
        {"resize": "bounded"},
        {"resize": "bounded", "shorter_side": 8, "longest": 16},
        {"resize": "stretch", "multiple": 2},
        {"resize": "shorter", "shorter_side": 8, "longest": 9},
    ],
)
def test_contradictory_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="bounded"):
        Preprocess(size=(8, 8), **fields)
