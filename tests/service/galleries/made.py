"""Galleries and images for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenfold.service.galleries.record import GalleryInfo, ImageRow

WIDTH = 8
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

Vectors = npt.NDArray[np.float32]


def info(name: str = "holiday", width: int = WIDTH, **changes: Any) -> GalleryInfo:
    """A description."""
    given: dict[str, Any] = {
        "name": name,
        "model": "dual",
        "fingerprint": "f" * 64,
        "level": "balanced",
        "requested": 0.4,
        "plan": (8, 8, 0.5),
        "width": width,
        "created": WHEN,
    }
    return GalleryInfo(**given | changes)


def unit(vectors: npt.ArrayLike) -> Vectors:
    """At length 1: (..., width)."""
    found = np.asarray(vectors, np.float64)
    scaled: Vectors = (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Vectors:
    """(count, width) in any direction."""
    return unit(np.random.default_rng(seed).standard_normal((count, width)))


def image(
    id: str,
    *,
    content: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    vector: Vectors | None = None,
    width: int = WIDTH,
) -> ImageRow:
    """An image whose every part follows from its content, by default from its id."""
    digest = hashlib.sha256((content if content is not None else id).encode()).digest()
    seed = int.from_bytes(digest[:8], "big")
    return ImageRow(
        id=id,
        vector=vector if vector is not None else vectors(1, width, seed)[0],
        sha256=digest.hex(),
        metadata=dict(metadata or {}),
        width=digest[0] + 1,
        height=digest[1] + 1,
        added=WHEN,
        thumbnail=digest * 4,
    )


def assert_same(found: ImageRow | None, expected: ImageRow) -> None:
    """Every part of it."""
    assert found is not None
    assert found._replace(vector=expected.vector) == expected
    np.testing.assert_array_equal(found.vector, expected.vector)
