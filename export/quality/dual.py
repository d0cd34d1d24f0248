"""Quality of a dual encoder: how well its vectors find images, with or without descriptions.

With an `items.jsonl` beside the images (see `tokenfold.export.quality.items`), such as

    {"task": "retrieve", "images": ["a.png"], "text": "a red circle left of a square"}

recall is measured: the share of texts that find their image first among all images. Without that
file, agreement is measured: the share of images whose nearest image is the one that the unreduced
network finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.profile import LevelProfile, Metric
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.quality.items import read_items
from tokenfold.export.quality.measuring import encode, quality
from tokenfold.export.quality.photos import DataError, Photos
from tokenfold.export.stages import Workers
from tokenfold.runtime.dual import Embedder, Float, Int

NEIGHBOURS = 10
"""Nearest images that are compared between levels; fewer in a smaller gallery."""

QUERIES = 1000
"""Largest number of images whose neighbours are compared; they are spread evenly over all."""

# Queries that are compared with the gallery in one matrix product.
_ROWS = 512


class Caption(NamedTuple):
    """A text and the number of the image that it describes."""

    image: int
    text: str


class Gallery(NamedTuple):
    """Images to search, and texts to search with.

    Attributes:
        photos: the images, by number.
        captions: in the file's order; empty for images without descriptions.
    """

    photos: Photos
    captions: tuple[Caption, ...]

    @classmethod
    def read(cls, source: Path) -> Gallery:
        """List the images and read their descriptions.

        Raises:
            DataError: there are fewer than two images, a line is not an item, its image is missing,
                or no line describes an image.
        """
        photos = Photos(source, ())
        if len(photos) < 2:
            raise DataError(f"{source} holds one image; measuring a search needs two or more")
        lines = read_items(photos, {"retrieve": 1})
        if lines is None:
            return cls(photos, ())
        if not lines:
            raise DataError(f"{source}: it has no item of the task retrieve")
        return cls(photos, tuple(Caption(line.images[0], line.text) for line in lines))


def measure(
    manifest: Manifest,
    session: Embedder,
    gallery: Gallery,
    text: TextEncoder,
    *,
    unreduced: Embedder,
    workers: Workers,
) -> dict[str, LevelProfile]:
    """Return the recall or agreement of each level, and its neighbours in the other levels.

    Args:
        unreduced: the network in PyTorch, for images without descriptions.

    Raises:
        DataError: an image or a text cannot be read.
    """
    plans = [level.plan for level in manifest.levels.values()]
    exact = manifest.workload.unreduced

    def embed_image(at: int) -> list[Float]:
        """Return a photo's vectors at each level and, without captions, from the reference."""
        pixels = gallery.photos.pixels(at, manifest.preprocess)[None]
        vectors = [session.embed_images(pixels, plan).vectors[0] for plan in plans]
        if not gallery.captions:
            vectors.append(unreduced.embed_images(pixels, exact).vectors[0])
        return vectors

    def embed_caption(caption: Caption) -> Float:
        ids, size = encode(text, caption.text, str(gallery.photos.source))
        vector: Float = session.embed_texts(ids, size)[0]
        return vector

    rows = workers.map(embed_image, range(len(gallery.photos)))
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    # Not strict: without captions the reference has the last column.
    by_level = dict(zip(manifest.levels, columns, strict=False))
    if gallery.captions:
        queries = np.stack(Workers(workers.threads).map(embed_caption, gallery.captions))
        described = np.array([caption.image for caption in gallery.captions])
        hits = {
            name: nearest(queries, vectors, 1)[:, 0] == described
            for name, vectors in by_level.items()
        }
    else:
        themselves = np.arange(len(gallery.photos))
        expected = nearest(columns[-1], columns[-1], 1, exclude=themselves)
        hits = {
            name: (nearest(vectors, vectors, 1, exclude=themselves) == expected)[:, 0]
            for name, vectors in by_level.items()
        }
    metric: Metric = "recall" if gallery.captions else "agreement"
    shared = neighbours(by_level)
    return {
        name: LevelProfile(
            quality={"embed": quality(int(right.sum()), len(right), metric=metric)},
            neighbours=shared[name],
        )
        for name, right in hits.items()
    }


def nearest(queries: Float, gallery: Float, count: int, *, exclude: Int | None = None) -> Int:
    """Return the images nearest to each query by cosine, (Q, count), in no particular order.

    Args:
        queries, gallery: vectors of length 1, (Q, width) and (I, width).
        exclude: (Q), the number of an image that each query leaves out, usually itself.
    """
    chunks = []
    for first in range(0, len(queries), _ROWS):
        scores = queries[first : first + _ROWS] @ gallery.T
        if exclude is not None:
            scores[np.arange(len(scores)), exclude[first : first + _ROWS]] = -np.inf
        chunks.append(
            scores.argmax(1, keepdims=True)
            if count == 1
            else np.argpartition(-scores, count - 1)[:, :count]
        )
    return np.concatenate(chunks)


def neighbours(vectors: Mapping[str, Float]) -> dict[str, dict[str, float]]:
    """Return `LevelProfile.neighbours`, by the query's level and the gallery's level.

    Args:
        vectors: vectors (I, width) of the same images, by level.
    """
    images = len(next(iter(vectors.values())))
    count = min(NEIGHBOURS, images - 1)
    sample = np.unique(np.linspace(0, images - 1, min(images, QUERIES)).astype(np.int64))
    shares: dict[str, dict[str, float]] = {level: {} for level in vectors}
    for gallery_level, gallery in vectors.items():
        expected = nearest(gallery[sample], gallery, count, exclude=sample)
        for level, queries in vectors.items():
            actual = (
                expected
                if level == gallery_level
                else nearest(queries[sample], gallery, count, exclude=sample)
            )
            shared = (expected[:, :, None] == actual[:, None, :]).any(2)
            shares[level][gallery_level] = float(shared.mean())
    return shares
