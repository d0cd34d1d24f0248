"""A gallery: a table of LanceDB with its images."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tokenfold.service.errors import UnknownGallery
from tokenfold.service.galleries.columns import (
    SHOWN,
    description,
    hits,
    image_row,
    metadata_text,
    nearest,
    table,
)
from tokenfold.service.galleries.commits import Commits
from tokenfold.service.galleries.failures import LanceError, is_conflict, is_missing, storage_error
from tokenfold.service.galleries.filters import quoted, where
from tokenfold.service.galleries.record import GalleryInfo, GalleryStats, Hit, ImageRow

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb import AsyncTable

Status = Literal["added", "replaced", "unchanged"]
T = TypeVar("T")

VECTOR_INDEX = "vector_idx"
ID_INDEX = "id_idx"
# Partitions of the IVF index that are searched, and candidates per requested row whose full vectors
# are compared. With all partitions, recall does not depend on the distribution of the vectors: see
# `upkeep.py`.
PROBES = 100_000
REFINE = 2

_EXACT_UP_TO = 20_000  # images that pass a filter
_MAX_IDS = 1000  # per statement
_MAX_ATTEMPTS = 20  # while other processes write, each at most a second apart
_EXTRA_ROWS = 8  # rows beyond the requested ones, to detect ties with the last of them
_MAX_TIES = 4096


class Gallery:
    """The images of a gallery. Every read includes earlier writes of other processes.

    Attributes:
        info: description of the gallery.
        table: table of LanceDB.
    """

    def __init__(self, info: GalleryInfo, table: AsyncTable) -> None:
        self.info = info
        self.table = table
        # Deletions and additions alternate: LanceDB would restart one of two concurrent writes.
        self._writing = asyncio.Lock()
        self._commits = Commits(self._commit)

    async def put(self, rows: Sequence[ImageRow]) -> list[Status]:
        """Store images; return when all of them are on disk. After an error, none is stored.

        An image is unchanged if its id has the same sha256 and metadata already. Of rows with the
        same id, the last one is kept.

        Raises:
            InvalidRequest: metadata that cannot be stored.
            StorageFull: the storage is full.
            StorageFailed: another error of the storage.
            UnknownGallery: the gallery was deleted meanwhile.
        """
        if not rows:
            return []
        for row in rows:
            metadata_text(row.metadata)  # fails here rather than with the images of other callers
            if row.vector.shape != (self.info.width,):
                raise ValueError(f"{row.id}: {row.vector.shape} is not ({self.info.width},)")
        return await self._commits.put(rows)

    async def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the sha256 of those images among `ids` that exist."""
        rows = await self._select(ids, ("id", "sha256"))
        return {row["id"]: row["sha256"] for row in rows}

    async def fetch(self, id: str, vector: bool = False) -> ImageRow | None:
        """Return an image with its thumbnail, and with its vector if requested."""
        columns = (*SHOWN, "thumbnail", "vector") if vector else (*SHOWN, "thumbnail")
        rows = await self._select([id], columns)
        return image_row(rows[0]) if rows else None

    async def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return the JPEG thumbnails of those images among `ids` that exist."""
        rows = await self._select(ids, ("id", "thumbnail"))
        return {row["id"]: row["thumbnail"] for row in rows}

    async def page(
        self, after: str | None, limit: int, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Return at most `limit` images whose id follows `after`, by id; their score is NaN.

        Raises:
            InvalidFilter: the filter is malformed (`filters.py`).
        """
        from lancedb.query import ColumnOrdering

        conditions = [] if after is None else [f"id > {quoted(after)}"]
        if condition := where(filter or {}):
            conditions.append(condition)
        query = self.table.query().select(list(SHOWN)).limit(limit)
        if conditions:
            query = query.where(" AND ".join(conditions))
        async with self._reading():
            rows = await query.order_by([ColumnOrdering(column_name="id")]).to_arrow()
        return await asyncio.to_thread(hits, rows)

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove images; return the number of removed images."""
        count = 0
        async with self._writing:
            for chunk in _chunks(ids):
                deleted: Any = await self._retry(
                    f"deleting from gallery {self.info.name}",
                    partial(self.table.delete, _id_condition(chunk)),
                )
                count += deleted.num_deleted_rows
        return count

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Count the images that pass a filter.

        Raises:
            InvalidFilter: the filter is malformed (`filters.py`).
        """
        async with self._reading():
            return await self.table.count_rows(where(filter or {}))

    async def search(
        self,
        vector: npt.NDArray[np.float32],
        *,
        top_k: int,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the nearest images, best first; ties are ordered by id.

        Args:
            vector: (width,) float32, of any length except 0.
            top_k: number of images, at least 1.
            offset: number of best images to skip.
            filter: filter on metadata, see `filters.py`.
            exact: compare with every vector, even if there is an index.

        Raises:
            InvalidFilter: the filter is malformed.
        """
        if vector.shape != (self.info.width,):
            raise ValueError(f"the query's shape is {vector.shape}, not ({self.info.width},)")
        condition = where(filter or {})
        async with self._reading():
            if condition and not exact:
                # If few images pass, the index may not look at any of them first.
                exact = await self.table.count_rows(condition) <= _EXACT_UP_TO
            end = offset + top_k
            limit = end + _EXTRA_ROWS
            while True:
                rows = await self._nearest(vector, limit, condition, exact)
                distances = rows["_distance"].to_numpy()
                if (
                    len(rows) < limit
                    or distances[-1] > distances[end - 1]
                    or limit > end + _MAX_TIES
                ):
                    break
                limit = end + 4 * (limit - end)
        # In a thread, because parsing many MiB of metadata takes time.
        return await asyncio.to_thread(nearest, rows, slice(offset, end))

    async def stats(self) -> GalleryStats:
        """Return the size of the gallery."""
        async with self._reading():
            stats: Any = await self.table.stats()  # a dictionary, contrary to its annotation
            index = await self.table.index_stats(VECTOR_INDEX)
        return GalleryStats(
            images=stats["num_rows"],
            indexed=index.num_indexed_rows if index is not None else 0,
            bytes=stats["total_bytes"],
            fragments=stats["fragment_stats"]["num_fragments"],
        )

    async def alive(self) -> bool:
        """Whether the gallery still exists."""
        try:
            return description(await self.table.schema()) == self.info
        except LanceError as error:
            if is_missing(error):
                return False
            raise storage_error(error, f"opening gallery {self.info.name}") from error

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause the writes of this process within the context."""
        async with self._writing:
            yield

    async def settled(self) -> None:
        """Wait until pending writes are done."""
        await self._commits.settled()

    async def _commit(self, rows: list[ImageRow]) -> list[Status]:
        async with self._writing:
            return await self._retry(
                f"adding to gallery {self.info.name}", partial(self._merge, rows)
            )

    async def _merge(self, rows: Sequence[ImageRow]) -> list[Status]:
        ids = list({row.id for row in rows})
        stored = {
            row["id"]: (row["sha256"], metadata_text(json.loads(row["metadata"])))
            for chunk in _chunks(ids)
            for row in await self._rows(chunk, ("id", "sha256", "metadata"))
        }
        statuses: list[Status] = []
        changed: dict[str, ImageRow] = {}
        for row in rows:
            content = row.sha256, metadata_text(row.metadata)
            stored_content = stored.get(row.id)
            if stored_content == content:
                statuses.append("unchanged")
                continue
            statuses.append("replaced" if stored_content else "added")
            stored[row.id] = content
            changed[row.id] = row
        if changed:
            # With the index, LanceDB would not notice another process inserting the same id.
            merge = self.table.merge_insert("id").use_index(False)
            merge = merge.when_matched_update_all().when_not_matched_insert_all()
            await merge.execute(table(changed.values(), self.info))
        return statuses

    async def _nearest(
        self, vector: npt.NDArray[np.float32], limit: int, condition: str | None, exact: bool
    ) -> pa.Table:
        query = self.table.query().nearest_to(vector).distance_type("cosine").limit(limit)
        query = query.select([*SHOWN, "_distance"])
        if condition:
            query = query.where(condition)
        if exact:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(PROBES).refine_factor(REFINE)
        return await query.to_arrow()

    async def _select(self, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        async with self._reading():
            return [row for chunk in _chunks(ids) for row in await self._rows(chunk, columns)]

    async def _rows(self, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        query = self.table.query().where(_id_condition(ids)).select(list(columns))
        rows: list[dict[str, Any]] = (await query.to_arrow()).to_pylist()
        return rows

    async def _retry(self, action: str, write: Callable[[], Awaitable[T]]) -> T:
        """Run a write; retry it while other processes commit first."""
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return await write()
            except LanceError as error:
                if not await self.alive():
                    raise self._unknown() from error
                if not is_conflict(error) or attempt == _MAX_ATTEMPTS - 1:
                    raise storage_error(error, action) from error
            await asyncio.sleep(random.uniform(0.0, min(1.0, 0.02 * 2**attempt)))
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        try:
            yield
        except LanceError as error:
            if not await self.alive():
                raise self._unknown() from error
            raise storage_error(error, f"reading gallery {self.info.name}") from error

    def _unknown(self) -> UnknownGallery:
        return UnknownGallery(f"Gallery '{self.info.name}' has been deleted.")


def _id_condition(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(quoted(image_id) for image_id in ids)})"


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[begin : begin + _MAX_IDS] for begin in range(0, len(ids), _MAX_IDS)]
