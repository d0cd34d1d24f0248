"""Measured accuracy of each level, on labelled images; or agreement, on unlabelled ones."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from tokenfold.bundle.manifest import Level
from tokenfold.bundle.preprocess import Pixels, Preprocess, pixels
from tokenfold.bundle.profile import LevelProfile, Metric, Profile, Quality
from tokenfold.runtime.machine import machine, software
from tokenfold.runtime.session import Session

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

Answer = Callable[[Pixels], int]
"""The class that a network sees in an image (H, W, 3) uint8."""


class DataError(ValueError):
    """Images that cannot be measured on; the message says why."""


class Photos:
    """Every image below a folder, or in a zip file, decoded when asked for.

    Attributes:
        names: paths in the folder or archive, in order.
        labels: each image's label, by its folder's name; None where no folder is named as a label.
    """

    def __init__(self, source: Path, labels: Sequence[str]) -> None:
        """List the images.

        Raises:
            DataError: there are none, or only some lie in folders named as labels.
        """
        self.source = source
        self._archive: zipfile.ZipFile | None = None
        if source.is_dir():
            found = [path.relative_to(source).as_posix() for path in source.rglob("*")]
        else:
            try:
                self._archive = zipfile.ZipFile(source)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{source} is neither a folder nor a zip file") from error
            found = self._archive.namelist()
        self._files = sorted(set(found))
        self.names = sorted(
            name for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES
        )
        if not self.names:
            raise DataError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.labels = self._labels(labels)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, at: int, preprocess: Preprocess) -> Pixels:
        """Image number `at` as the network's input.

        Raises:
            DataError: it cannot be read.
        """
        name = self.names[at]
        try:
            with Image.open(BytesIO(self._bytes(name))) as image:
                return pixels(image, preprocess)
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise DataError(f"{self.source}: {name} is not a readable image: {error}") from error

    def text(self, name: str) -> tuple[str, str] | None:
        """The path and content of the one text file of this name, at the top or in a folder.

        Raises:
            DataError: it cannot be read, or there are two.
        """
        found = [path for path in self._files if PurePosixPath(path).name == name]
        if len(found) > 1:
            raise DataError(f"{self.source} has two files {name}: {found[0]} and {found[1]}")
        if not found:
            return None
        try:
            return found[0], self._bytes(found[0]).decode()
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.source}: {found[0]} is not readable: {error}") from error

    def _bytes(self, name: str) -> bytes:
        return self._archive.read(name) if self._archive else (self.source / name).read_bytes()

    def _labels(self, labels: Sequence[str]) -> list[int] | None:
        folders = [PurePosixPath(name).parent.name for name in self.names]
        unknown = sorted(set(folders) - set(labels))
        if len(unknown) == len(set(folders)):
            return None
        if unknown:
            raise DataError(
                f"{self.source}: some folders are named as labels, but not {', '.join(unknown[:5])}"
            )
        twice = sorted(folder for folder in set(folders) if list(labels).count(folder) > 1)
        if twice:
            raise DataError(f"{self.source}: the model has two labels {', '.join(twice[:5])}")
        return [list(labels).index(folder) for folder in folders]


def measure(
    session: Session,
    levels: Mapping[str, Level],
    photos: Photos,
    preprocess: Preprocess,
    *,
    unreduced: Answer,
    threads: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Quality]:
    """The share of right answers of each level.

    `top1` where the photos have labels, else `agreement` with the unreduced network.

    Args:
        unreduced: that network, for photos without labels.
        threads: that decode and run side by side.
        progress: called after each image.
    """

    def right(at: int) -> list[bool]:
        seen = photos.pixels(at, preprocess)
        wanted = unreduced(seen) if photos.labels is None else photos.labels[at]
        answers = [
            int(session.run(seen[None], level.plan).logits[0].argmax()) for level in levels.values()
        ]
        progress()
        return [answer == wanted for answer in answers]

    metric: Metric = "agreement" if photos.labels is None else "top1"
    with ThreadPoolExecutor(threads) as pool:
        hits = list(pool.map(right, range(len(photos))))
    return {
        name: quality(sum(column), len(photos), metric=metric)
        for name, column in zip(levels, zip(*hits, strict=True), strict=True)
    }


def quality(right: int, samples: int, *, metric: Metric) -> Quality:
    """A share with its 95 % interval (Wilson's score interval)."""
    z = 1.959964
    share = right / samples
    centre = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return Quality(
        metric=metric,
        value=share,
        low=max(0.0, min(share, (centre - spread) / scale)),
        high=min(1.0, max(share, (centre + spread) / scale)),
        samples=samples,
    )


def profile(levels: Mapping[str, LevelProfile], *, native: bool) -> Profile:
    """What was measured here today.

    Args:
        levels: by name.
        native: whether the compiled ops ran.
    """
    return Profile(
        measured=date.today(),
        machine=machine(),
        runtime=software(native=native),
        levels=dict(levels),
    )
