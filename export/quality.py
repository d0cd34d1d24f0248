"""Measured accuracy of each level, on labelled images; or agreement, on unlabelled ones."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from export.bundle import Level, Quality
from export.runtime import Session
from models.preprocess import Preprocess, pixels

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class DataError(ValueError):
    """Images that cannot be measured on; the message says why."""


class Sample(NamedTuple):
    """One image: pixels (H, W, 3) uint8, and its label's index, or None where it is not known."""

    pixels: npt.NDArray[np.uint8]
    label: int | None


def read(source: Path, preprocess: Preprocess, labels: Sequence[str]) -> list[Sample]:
    """Every image below a folder, or in a zip file. An image's label is its folder's name.

    Raises:
        DataError: there are no images, or one cannot be read.
    """
    index = {label: at for at, label in enumerate(labels)}
    samples = []
    for name, data in _files(source):
        try:
            with Image.open(BytesIO(data)) as image:
                found = pixels(image, preprocess)
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{source}: {name} is not a readable image: {error}") from error
        folder = Path(name).parent.name
        samples.append(Sample(found, index.get(folder)))
    if not samples:
        raise DataError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
    return samples


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path.relative_to(source).as_posix(), path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix.lower() in SUFFIXES:
                    yield name, archive.read(name)
    else:
        raise DataError(f"{source} is neither a folder nor a zip file")


def measure(
    session: Session,
    levels: Mapping[str, Level],
    samples: Sequence[Sample],
    *,
    threads: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Quality]:
    """The share of right answers of each level.

    `top1` against the labels where every image has one, else `agreement` with what the same graph
    answers unreduced.

    Args:
        threads: that run the session side by side.
        progress: called after each image of each level.
    """

    def answer(sample: Sample, plan: Sequence[int]) -> int:
        found = int(session.run(sample.pixels[None], plan).logits[0].argmax())
        progress()
        return found

    labels = [sample.label for sample in samples]
    labelled = all(label is not None for label in labels)
    with ThreadPoolExecutor(threads) as pool:

        def answers(plan: Sequence[int]) -> list[int]:
            return list(pool.map(lambda sample: answer(sample, plan), samples))

        found = {name: answers(level.plan) for name, level in levels.items()}
        if not labelled:
            depth = len(next(iter(levels.values())).plan)
            unreduced = [name for name, level in levels.items() if not any(level.plan)]
            labels = list(found[unreduced[0]] if unreduced else answers([0] * depth))
    return {
        name: quality(
            sum(a == b for a, b in zip(own, labels, strict=True)), len(samples), labelled=labelled
        )
        for name, own in found.items()
    }


def quality(right: int, samples: int, *, labelled: bool) -> Quality:
    """A share with its 95 % interval (Wilson's score interval)."""
    z = 1.959964
    share = right / samples
    centre = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return Quality(
        metric="top1" if labelled else "agreement",
        value=share,
        low=max(0.0, min(share, (centre - spread) / scale)),
        high=min(1.0, max(share, (centre + spread) / scale)),
        samples=samples,
    )
