"""What a gallery holds: its description, its images, and what a search finds of them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
LONGEST_ID = 512  # characters

_HALF = re.compile("[\ud800-\udfff]")

Name = Annotated[str, Field(pattern=NAME)]
ImageId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]


class GalleryInfo(BaseModel):
    """How the vectors of a gallery were made. It never changes.

    Attributes:
        name: of the gallery.
        model: that made its vectors.
        fingerprint: of that model's weights, as sha256 in hex.
        level: of the manifest, or of the grid, that they were made at.
        requested: the reduction asked for, 0 to 1.
        plan: of that reduction, one number per layer.
        width: numbers of a vector.
        created: when, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    model: str
    fingerprint: str
    level: str
    requested: float = Field(ge=0, le=1)
    plan: tuple[float, ...]
    width: int = Field(ge=1)
    created: AwareDatetime


class ImageRow(NamedTuple):
    """An image as it is kept.

    Attributes:
        id: its name, one of a kind in its gallery.
        vector: (width,) float32 of length 1. Empty where it was not asked for.
        sha256: of the image's bytes, in hex.
        metadata: any JSON object.
        width: of the original, in pixels.
        height: of the original, in pixels.
        added: when this content was put, in UTC.
        thumbnail: a JPEG.
    """

    id: str
    vector: npt.NDArray[np.float32]
    sha256: str
    metadata: dict[str, Any]
    width: int
    height: int
    added: datetime
    thumbnail: bytes


class Hit(NamedTuple):
    """An image as a search or a list shows it.

    Attributes:
        id: its name.
        score: cosine to the query, -1 to 1. NaN where nothing was searched for.
        metadata: any JSON object.
        width: of the original, in pixels.
        height: of the original, in pixels.
        added: when this content was put, in UTC.
        sha256: of the image's bytes, in hex.
    """

    id: str
    score: float
    metadata: dict[str, Any]
    width: int
    height: int
    added: datetime
    sha256: str


class GalleryStats(NamedTuple):
    """How large a gallery is.

    Attributes:
        images: that it holds.
        indexed: of these, the ones that its vector index covers. 0 without an index: search is
            exact then.
        bytes: of the newest version, on disk.
        fragments: files of rows that it lies in.
    """

    images: int
    indexed: int
    bytes: int
    fragments: int


def is_text(found: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    return _HALF.search(found) is None
