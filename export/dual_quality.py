"""What a dual encoder's levels find, measured on images, with texts that describe them or without.

With an `items.jsonl` (see `tokenfold.export.items`), one object a line beside the images,

    {"task": "retrieve", "images": ["a.png"], "text": "a red circle left of a square"}

recall is measured: how often a text finds its own image first, among all that are there. Without
that file it is agreement: how often the image that is nearest to an image is the one that the
unreduced network finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.profile import LevelProfile, Metric
from tokenfold.bundle.text import EmptyTextError, TextEncoder
from tokenfold.export.items import read_items
from tokenfold.export.quality import DataError, Photos, quality
from tokenfold.runtime.dual import Embedder, Float, Int

NEIGHBOURS = 10
"""How many of the nearest images are looked at, where there are as many."""

QUERIES = 1000
"""Images whose neighbours are looked for, at most: they spread evenly over all."""

_ROWS = 512


class Caption(NamedTuple):
    """A text, and the number of the image that it describes."""

    image: int
    text: str


class Scene(NamedTuple):
    """What to measure on.

    Attributes:
        photos: the images of the gallery, by number.
        captions: in the file's order; empty where nothing describes the images.
    """

    photos: Photos
    captions: tuple[Caption, ...]

    @classmethod
    def read(cls, source: Path) -> Scene:
        """List the images, and read what they are described by.

        Raises:
            DataError: there are fewer than two images, a line is no item, its image is not there,
                or no line describes one.
        """
        photos = Photos(source, ())
        if len(photos) < 2:
            raise DataError(f"{source} holds one image; to look for one takes two")
        lines = read_items(photos, {"retrieve": 1})
        if lines is None:
            return cls(photos, ())
        if not lines:
            raise DataError(f"{source}: nothing in it is for retrieve")
        return cls(photos, tuple(Caption(line.images[0], line.text) for line in lines))


def measure(
    manifest: Manifest,
    session: Embedder,
    scene: Scene,
    text: TextEncoder,
    *,
    unreduced: Embedder,
    threads: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, LevelProfile]:
    """Each level's recall or agreement, and what its queries find in the galleries of the others.

    Args:
        unreduced: the network in PyTorch, for images that nothing describes.
        threads: that decode and run side by side.
        progress: called after each image.

    Raises:
        DataError: an image or a text cannot be read.
    """
    nothing = manifest.workload.unreduced

    def embedded(at: int) -> list[Float]:
        pixels = scene.photos.pixels(at, manifest.preprocess)[None]
        found = [
            session.embed_images(pixels, level.plan).vectors[0]
            for level in manifest.levels.values()
        ]
        if not scene.captions:
            found.append(unreduced.embed_images(pixels, nothing).vectors[0])
        progress()
        return found

    with ThreadPoolExecutor(threads) as pool:
        rows = list(pool.map(embedded, range(len(scene.photos))))
        queries = list(pool.map(lambda caption: _query(session, text, caption), scene.captions))
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    galleries = dict(zip(manifest.levels, stacked, strict=False))
    if scene.captions:
        own = np.array([caption.image for caption in scene.captions])
        texts = np.stack(queries)
        hits = {
            name: nearest(texts, gallery, 1)[:, 0] == own for name, gallery in galleries.items()
        }
    else:
        everyone = np.arange(len(scene.photos))
        wanted = nearest(stacked[-1], stacked[-1], 1, but=everyone)
        hits = {
            name: (nearest(gallery, gallery, 1, but=everyone) == wanted)[:, 0]
            for name, gallery in galleries.items()
        }
    metric: Metric = "recall" if scene.captions else "agreement"
    shared = neighbours(galleries)
    return {
        name: LevelProfile(
            quality={"embed": quality(int(right.sum()), len(right), metric=metric)},
            neighbours=shared[name],
        )
        for name, right in hits.items()
    }


def _query(session: Embedder, text: TextEncoder, caption: Caption) -> Float:
    try:
        ids = text.encode(caption.text).ids[None]
    except EmptyTextError as error:
        raise DataError(f"{caption.text!r}: {error}") from error
    found: Float = session.embed_texts(ids, np.ones(ids.shape, dtype=np.float32))[0]
    return found


def nearest(queries: Float, gallery: Float, count: int, *, but: Int | None = None) -> Int:
    """The images nearest to each query, by cosine, in no order: (Q, count).

    Args:
        queries, gallery: vectors of length 1, (Q, width) and (I, width).
        but: (Q), the image that each query does not look at: itself.
    """
    found = []
    for first in range(0, len(queries), _ROWS):
        scores = queries[first : first + _ROWS] @ gallery.T
        if but is not None:
            scores[np.arange(len(scores)), but[first : first + _ROWS]] = -np.inf
        found.append(
            scores.argmax(1, keepdims=True)
            if count == 1
            else np.argpartition(-scores, count - 1)[:, :count]
        )
    return np.concatenate(found)


def neighbours(galleries: Mapping[str, Float]) -> dict[str, dict[str, float]]:
    """See `LevelProfile.neighbours`: by the query's level, then the gallery's.

    Args:
        galleries: by level, vectors (I, width) of the same images.
    """
    images = len(next(iter(galleries.values())))
    count = min(NEIGHBOURS, images - 1)
    asked = np.unique(np.linspace(0, images - 1, min(images, QUERIES)).astype(np.int64))
    found: dict[str, dict[str, float]] = {level: {} for level in galleries}
    for there, gallery in galleries.items():
        own = nearest(gallery[asked], gallery, count, but=asked)
        for level, vectors in galleries.items():
            same = own if level == there else nearest(vectors[asked], gallery, count, but=asked)
            shared = (own[:, :, None] == same[:, None, :]).any(2)
            found[level][there] = float(shared.mean())
    return found
