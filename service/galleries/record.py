"""Data of a gallery: its description, its images, and search hits."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"

_SURROGATE = re.compile("[\ud800-\udfff]")

Name = Annotated[str, Field(pattern=NAME)]


class GalleryInfo(BaseModel):
    """Description of a gallery and of the model that embeds its images. It never changes.

    Attributes:
        name: name of the gallery.
        model: name of the model that embeds the images.
        fingerprint: SHA-256 of that model's weights, in hex.
        level: name of the level of the embeddings, or `custom`.
        requested: requested reduction, 0 to 1.
        plan: plan of that reduction, one number per layer.
        width: dimensions of an embedding.
        created: time of creation, in UTC.
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
    """An image in a gallery.

    Attributes:
        id: unique name within the gallery.
        vector: embedding, (width,) float32 of length 1; empty if not requested.
        sha256: SHA-256 of the image file, in hex.
        metadata: any JSON object.
        width: width of the original, in pixels.
        height: height of the original, in pixels.
        added: time when this content was stored, in UTC.
        thumbnail: thumbnail as a JPEG file.
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
    """An image in a search result or list.

    Attributes:
        id: unique name within the gallery.
        score: cosine similarity to the query, -1 to 1; NaN in lists.
        metadata: any JSON object.
        width: width of the original, in pixels.
        height: height of the original, in pixels.
        added: time when this content was stored, in UTC.
        sha256: SHA-256 of the image file, in hex.
    """

    id: str
    score: float
    metadata: dict[str, Any]
    width: int
    height: int
    added: datetime
    sha256: str


class GalleryStats(NamedTuple):
    """Size of a gallery.

    Attributes:
        images: number of images.
        indexed: number of images in the vector index; 0 without an index, when search is exact.
        bytes: size of the newest version on disk.
        fragments: number of files that hold the rows.
    """

    images: int
    indexed: int
    bytes: int
    fragments: int


def is_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, which half a surrogate pair cannot."""
    return _SURROGATE.search(text) is None
