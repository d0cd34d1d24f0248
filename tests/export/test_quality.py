"""Shares, their intervals, and the images that they are measured on."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export.quality import DataError, Photos, quality

PREPROCESS = Preprocess(size=(8, 8))


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, value, value)).save(path)


def test_folder_names_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "1.png", 10)
    save(tmp_path / "train" / "dog" / "1.png", 20)
    (tmp_path / "notes.txt").write_text("not an image")
    photos = Photos(tmp_path, ["dog", "cat"])
    assert photos.labels == [1, 0]
    assert [photos.pixels(at, PREPROCESS)[0, 0, 0] for at in range(len(photos))] == [10, 20]
    assert photos.pixels(0, PREPROCESS).shape == (8, 8, 3)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "train" / "cat" / "1.png", "cat/1.png")
    assert Photos(tmp_path / "all.zip", ["dog", "cat"]).labels == [1]
    assert Photos(tmp_path, ["ant", "bee"]).labels is None


def test_labels_in_doubt_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", 10)
    save(tmp_path / "Dog" / "1.png", 20)
    with pytest.raises(DataError, match="Dog"):
        Photos(tmp_path, ["dog", "cat"])
    with pytest.raises(DataError, match="two labels cat"):
        Photos(tmp_path, ["cat", "Dog", "cat"])


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 30]
)
def test_broken_images_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        Photos(tmp_path, []).pixels(0, PREPROCESS)


def test_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 is 0.3080, from 0.2553 to 0.3662.
    found = quality(81, 263, metric="top1")
    assert (found.metric, found.samples) == ("top1", 263)
    np.testing.assert_allclose(
        (found.value, found.low, found.high), (0.3080, 0.2553, 0.3662), atol=1e-4
    )


@given(samples=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_interval_holds_the_share(samples: int, share: float) -> None:
    found = quality(round(share * samples), samples, metric="agreement")
    assert found.metric == "agreement"
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_right_is_not_surely_nothing() -> None:
    assert quality(0, 10, metric="top1").high > 0.2
    assert quality(10, 10, metric="top1").low < 0.8
