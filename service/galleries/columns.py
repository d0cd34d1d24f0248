"""Columns of a gallery's table, and conversion of images to and from rows."""

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
"""Columns of a `Hit`, except for its score."""

_INFO = b"tokenfold"
# With this key, the second of two writers that insert the same id notices the first one and updates
# its row. Without it, both rows stay.
_KEY = {"lance-schema:unenforced-primary-key": "true"}
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1  # integers that LanceDB's JSON keeps exactly


def schema(info: GalleryInfo) -> pa.Schema:
    """Return the columns of a gallery, with its description as metadata."""
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
    """Return the columns of a table that is not yet a gallery, or no longer one.

    None of the columns is a gallery's, so that writes of other processes to the table fail.
    """
    import pyarrow as pa

    return pa.schema([pa.field("nothing", pa.bool_())], metadata={state: str(time.time()).encode()})


def description(table_schema: pa.Schema) -> GalleryInfo | None:
    """Return the gallery's description in a schema; None if it was deleted or is not a gallery."""
    text = (table_schema.metadata or {}).get(_INFO)
    if text is None:
        return None
    try:
        return GalleryInfo.model_validate_json(text)
    except ValidationError:
        return None


def marked(table_schema: pa.Schema, state: State) -> float | None:
    """Return the seconds since the table was marked; None if it is not marked."""
    marked_at = (table_schema.metadata or {}).get(state.encode())
    return None if marked_at is None else time.time() - float(marked_at)


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Convert metadata to JSON text; equal metadata give equal text.

    Raises:
        InvalidRequest: a value is not representable in JSON, or an integer exceeds 64 bits.
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
        raise InvalidRequest(f"metadata: {error or 'nested too deeply'}") from error


def table(rows: Iterable[ImageRow], info: GalleryInfo) -> pa.Table:
    """Convert images to a table for LanceDB.

    Raises:
        InvalidRequest: metadata that cannot be stored.
        ValueError: a vector has another width than the gallery's.
    """
    import pyarrow as pa

    columns = schema(info)
    images = list(rows)
    vectors = np.zeros((len(images), info.width), np.float32)
    for index, row in enumerate(images):
        if row.vector.shape != (info.width,):
            raise ValueError(
                f"{row.id}: the vector's shape is {row.vector.shape}, not ({info.width},)"
            )
        vectors[index] = row.vector
    return pa.table(
        [
            pa.array([row.id for row in images], pa.string()),
            # (rows, width) -> (rows * width), which Arrow splits into lists of `width`.
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), info.width),
            pa.array([row.sha256 for row in images], pa.string()),
            pa.ExtensionArray.from_storage(
                pa.json_(), pa.array([metadata_text(row.metadata) for row in images], pa.string())
            ),
            pa.array([row.width for row in images], pa.int32()),
            pa.array([row.height for row in images], pa.int32()),
            pa.array([row.added for row in images], pa.timestamp("us", tz="UTC")),
            pa.array([row.thumbnail for row in images], pa.binary()),
        ],
        schema=columns,
    )


def hits(rows: pa.Table, scores: Sequence[float] | None = None) -> list[Hit]:
    """Convert rows with the columns `SHOWN` to hits; without scores, the scores are NaN."""
    row_scores = scores if scores is not None else [float("nan")] * len(rows)
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
        for row, score in zip(rows.select(SHOWN).to_pylist(), row_scores, strict=True)
    ]


def nearest(rows: pa.Table, places: slice) -> list[Hit]:
    """Sort rows with the columns `SHOWN` and `_distance`, and convert some of them to hits.

    Args:
        places: positions in the order of distance; ties are ordered by id.
    """
    distances = rows["_distance"].to_numpy()
    order = np.lexsort((np.asarray(rows["id"].to_pylist(), object), distances))[places]
    return hits(rows.take(order), cosines(distances[order]).tolist())


def image_row(row: Mapping[str, Any]) -> ImageRow:
    """Convert a row with all columns to an image; `vector` may be missing."""
    return ImageRow(
        id=row["id"],
        vector=np.asarray(row.get("vector", ()), np.float32),
        sha256=row["sha256"],
        metadata=json.loads(row["metadata"]),
        width=row["width"],
        height=row["height"],
        added=_utc(row["added"]),
        thumbnail=row["thumbnail"],
    )


def cosines(distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert LanceDB's cosine distances, 0 to 2, to cosines."""
    return np.clip(1.0 - np.asarray(distances, np.float64), -1.0, 1.0)


def _utc(timestamp: datetime) -> datetime:
    return timestamp.replace(tzinfo=UTC) if timestamp.tzinfo is None else timestamp.astimezone(UTC)


def _check(value: Any) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int) and not _MIN_INTEGER <= value <= _MAX_INTEGER:
        raise ValueError("an integer exceeds 64 bits")
    if isinstance(value, str) and not is_text(value):
        raise ValueError("a text contains half a surrogate pair")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError("a key is not a text")
            _check(key)
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
