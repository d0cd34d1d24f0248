"""Descriptions, vectors and images of galleries for tests."""

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
    """Return the description of a gallery."""
    fields: dict[str, Any] = {
        "name": name,
        "model": "dual",
        "fingerprint": "f" * 64,
        "level": "balanced",
        "requested": 0.4,
        "plan": (8, 8, 0.5),
        "width": width,
        "created": WHEN,
    }
    return GalleryInfo(**fields | changes)


def unit(vectors: npt.ArrayLike) -> Vectors:
    """Scale vectors (..., width) to length 1."""
    values = np.asarray(vectors, np.float64)
    scaled: Vectors = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Vectors:
    """Return (count, width) unit vectors in random directions."""
    return unit(np.random.default_rng(seed).standard_normal((count, width)))


def image(
    id: str,
    *,
    content: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    vector: Vectors | None = None,
    width: int = WIDTH,
) -> ImageRow:
    """Return an image whose every field is derived from its content, by default its id."""
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


def assert_same(stored: ImageRow | None, expected: ImageRow) -> None:
    """Check that every field of two images is equal."""
    assert stored is not None
    assert stored._replace(vector=expected.vector) == expected
    np.testing.assert_array_equal(stored.vector, expected.vector)
