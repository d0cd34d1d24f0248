"""Reading the images to measure on."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export.quality.photos import DataError, Photos

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


def test_ambiguous_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", 10)
    save(tmp_path / "Dog" / "1.png", 20)
    with pytest.raises(DataError, match="Dog"):
        Photos(tmp_path, ["dog", "cat"])
    with pytest.raises(DataError, match="duplicate labels cat"):
        Photos(tmp_path, ["cat", "Dog", "cat"])


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 30]
)
def test_broken_images_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        Photos(tmp_path, []).pixels(0, PREPROCESS)
