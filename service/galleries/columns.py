"""How images lie in a table: its columns, and the way there and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tokenfold.inference.errors import InvalidRequest
from tokenfold.service.galleries.record import GalleryInfo, Hit, ImageRow, is_text

# pyarrow takes a while to import, and a server without galleries does not need it.
if TYPE_CHECKING:
    import pyarrow as pa

State = Literal["tokenfold-pending", "tokenfold-deleted"]
PENDING: State = "tokenfold-pending"
DELETED: State = "tokenfold-deleted"

SHOWN = ("id", "sha256", "metadata", "width", "height", "added")
"""Columns of a `Hit`, but for its score."""

_INFO = b"tokenfold"
# Two writers that insert one id at the same time: with this on the field the second one notices,
# and updates. Without it both rows stay.
_KEY = {"lance-schema:unenforced-primary-key": "true"}
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1  # whole numbers that stay whole in LanceDB's JSON


def schema(info: GalleryInfo) -> pa.Schema:
    """The columns of a gallery, which carry its description."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),
            pa.field("vector", pa.list_(pa.float32(), info.width), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("metadata", pa.json_(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("added", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
        ],
        metadata={_INFO: info.model_dump_json().encode()},
    )


def mark(state: State) -> pa.Schema:
    """The columns of a table that is not a gallery yet, or no longer.

    None of them is a gallery's, so that what another process still adds to it fails.
    """
    import pyarrow as pa

    return pa.schema([pa.field("nothing", pa.bool_())], metadata={state: str(time.time()).encode()})


def description(found: pa.Schema) -> GalleryInfo | None:
    """What the columns say of their gallery; None where it was deleted, or is none of ours."""
    text = (found.metadata or {}).get(_INFO)
    if text is None:
        return None
    try:
        return GalleryInfo.model_validate_json(text)
    except ValidationError:
        return None


def marked(found: pa.Schema, state: State) -> float | None:
    """Seconds since the table was given a mark; None where it has none."""
    since = (found.metadata or {}).get(state.encode())
    return None if since is None else time.time() - float(since)


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON, the same for equal metadata.

    Raises:
        InvalidRequest: it holds what JSON does not, or a whole number of more than 64 bits.
    """
    try:
        _check(metadata)
        return json.dumps(
            metadata,
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"metadata: {error or 'is too deep'}") from error


def table(rows: Iterable[ImageRow], info: GalleryInfo) -> pa.Table:
    """Images as LanceDB takes them.

    Raises:
        InvalidRequest: metadata that cannot be kept.
        ValueError: a vector of another width.
    """
    import pyarrow as pa

    columns = schema(info)
    kept = list(rows)
    vectors = np.zeros((len(kept), info.width), np.float32)
    for place, row in enumerate(kept):
        if row.vector.shape != (info.width,):
            raise ValueError(f"{row.id}: {row.vector.shape} is no vector of {info.width} numbers")
        vectors[place] = row.vector
    return pa.table(
        [
            pa.array([row.id for row in kept], pa.string()),
            # (rows, width) -> (rows * width), which Arrow cuts into lists of `width`.
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), info.width),
            pa.array([row.sha256 for row in kept], pa.string()),
            pa.ExtensionArray.from_storage(
                pa.json_(), pa.array([metadata_text(row.metadata) for row in kept], pa.string())
            ),
            pa.array([row.width for row in kept], pa.int32()),
            pa.array([row.height for row in kept], pa.int32()),
            pa.array([row.added for row in kept], pa.timestamp("us", tz="UTC")),
            pa.array([row.thumbnail for row in kept], pa.binary()),
        ],
        schema=columns,
    )


def hits(found: pa.Table, scores: Sequence[float] | None = None) -> list[Hit]:
    """Rows of the columns `SHOWN`, with their scores or NaN."""
    given = scores if scores is not None else [float("nan")] * len(found)
    return [
        Hit(
            id=row["id"],
            score=score,
            metadata=json.loads(row["metadata"]),
            width=row["width"],
            height=row["height"],
            added=_utc(row["added"]),
            sha256=row["sha256"],
        )
        for row, score in zip(found.select(SHOWN).to_pylist(), given, strict=True)
    ]


def nearest(found: pa.Table, places: slice) -> list[Hit]:
    """Of rows of the columns `SHOWN` and `_distance` those of some places.

    Args:
        places: in the order of their distance; ties are ordered by id.
    """
    distances = found["_distance"].to_numpy()
    order = np.lexsort((np.asarray(found["id"].to_pylist(), object), distances))[places]
    return hits(found.take(order), cosines(distances[order]).tolist())


def image_row(found: Mapping[str, Any]) -> ImageRow:
    """A row of all columns, `vector` perhaps missing."""
    return ImageRow(
        id=found["id"],
        vector=np.asarray(found.get("vector", ()), np.float32),
        sha256=found["sha256"],
        metadata=json.loads(found["metadata"]),
        width=found["width"],
        height=found["height"],
        added=_utc(found["added"]),
        thumbnail=found["thumbnail"],
    )


def cosines(distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """LanceDB's cosine distances, 0 to 2, as cosines."""
    return np.clip(1.0 - np.asarray(distances, np.float64), -1.0, 1.0)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _check(value: Any) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int) and not _LOWEST <= value <= _HIGHEST:
        raise ValueError("a whole number has more than 64 bits")
    if isinstance(value, str) and not is_text(value):
        raise ValueError("half a surrogate pair is no text")
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError("a name is no text")
            _check(key)
            _check(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check(each)
