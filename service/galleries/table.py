"""One gallery: a table of LanceDB."""

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
# Of an IVF index, partitions that are searched, and rows of each ten asked for that are compared in
# full. With all partitions the recall does not hang on how the vectors lie: see `upkeep.py`.
PROBES = 100_000
REFINE = 2

_EXACT_UP_TO = 20_000  # images that pass a filter
_MOST_IDS = 1000  # of one statement
_ATTEMPTS = 20  # against other processes that write, of at most a second each
_MORE = 8  # rows beyond those asked for, to see whether the last of them is one of equals
_MOST_EQUALS = 4096


class Gallery:
    """The images of one gallery. Every read sees what other processes wrote before.

    Attributes:
        info: how its vectors were made.
        table: of LanceDB.
    """

    def __init__(self, info: GalleryInfo, table: AsyncTable) -> None:
        self.info = info
        self.table = table
        # Deleting and adding take turns: LanceDB would have one of them start again.
        self._writing = asyncio.Lock()
        self._commits = Commits(self._commit)

    async def put(self, rows: Sequence[ImageRow]) -> list[Status]:
        """Keep images; return when they are on disk: all of them or, with an error, none.

        Unchanged is what has the same sha256 and the same metadata already. Of rows with one id the
        last one stays.

        Raises:
            InvalidRequest: metadata that cannot be kept.
            StorageFull: no room is left.
            StorageFailed: anything else went wrong.
            UnknownGallery: it was deleted meanwhile.
        """
        if not rows:
            return []
        for row in rows:
            metadata_text(row.metadata)  # before it can fail the images of others
            if row.vector.shape != (self.info.width,):
                raise ValueError(f"{row.id}: {row.vector.shape} is not ({self.info.width},)")
        return await self._commits.put(rows)

    async def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Of `ids`, those that are here, with their sha256."""
        found = await self._of(ids, ("id", "sha256"))
        return {row["id"]: row["sha256"] for row in found}

    async def fetch(self, id: str, vector: bool = False) -> ImageRow | None:
        """One image with its thumbnail, and its vector where asked for."""
        columns = (*SHOWN, "thumbnail", "vector") if vector else (*SHOWN, "thumbnail")
        found = await self._of([id], columns)
        return image_row(found[0]) if found else None

    async def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The JPEGs of those of `ids` that are here."""
        found = await self._of(ids, ("id", "thumbnail"))
        return {row["id"]: row["thumbnail"] for row in found}

    async def page(
        self, after: str | None, limit: int, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """At most `limit` images whose id follows `after`, by id. Their score is NaN.

        Raises:
            InvalidFilter: the filter is none (`filters.py`).
        """
        from lancedb.query import ColumnOrdering

        conditions = [] if after is None else [f"id > {quoted(after)}"]
        if condition := where(filter or {}):
            conditions.append(condition)
        query = self.table.query().select(list(SHOWN)).limit(limit)
        if conditions:
            query = query.where(" AND ".join(conditions))
        async with self._reading():
            found = await query.order_by([ColumnOrdering(column_name="id")]).to_arrow()
        return await asyncio.to_thread(hits, found)

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove images; return how many of `ids` there were."""
        count = 0
        async with self._writing:
            for some in _chunks(ids):
                deleted: Any = await self._retried(
                    f"deleting from gallery {self.info.name}",
                    partial(self.table.delete, _among(some)),
                )
                count += deleted.num_deleted_rows
        return count

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Images that pass the filter.

        Raises:
            InvalidFilter: the filter is none (`filters.py`).
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
        """The nearest images, best first, ties by id.

        Args:
            vector: (width,) float32, of any length but 0.
            top_k: how many, 1 or more.
            offset: how many of the best to leave out.
            filter: on metadata, see `filters.py`.
            exact: compare with every vector, even where there is an index.

        Raises:
            InvalidFilter: the filter is none.
        """
        if vector.shape != (self.info.width,):
            raise ValueError(f"{vector.shape} is no vector of {self.info.width} numbers")
        condition = where(filter or {})
        async with self._reading():
            if condition and not exact:
                # Few that pass may all lie where the index does not look first.
                exact = await self.table.count_rows(condition) <= _EXACT_UP_TO
            wanted = offset + top_k
            asked = wanted + _MORE
            while True:
                found = await self._nearest(vector, asked, condition, exact)
                distances = found["_distance"].to_numpy()
                if (
                    len(found) < asked
                    or distances[-1] > distances[wanted - 1]
                    or asked > wanted + _MOST_EQUALS
                ):
                    break
                asked = wanted + 4 * (asked - wanted)
        # Of metadata there may be many MiB.
        return await asyncio.to_thread(nearest, found, slice(offset, wanted))

    async def stats(self) -> GalleryStats:
        """How large it is."""
        async with self._reading():
            stats: Any = await self.table.stats()  # a dictionary, whatever its type says
            index = await self.table.index_stats(VECTOR_INDEX)
        return GalleryStats(
            images=stats["num_rows"],
            indexed=index.num_indexed_rows if index is not None else 0,
            bytes=stats["total_bytes"],
            fragments=stats["fragment_stats"]["num_fragments"],
        )

    async def alive(self) -> bool:
        """Whether nobody has deleted it."""
        try:
            return description(await self.table.schema()) == self.info
        except LanceError as error:
            if is_missing(error):
                return False
            raise storage_error(error, f"opening gallery {self.info.name}") from error

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nobody in this process writes meanwhile: what is put, or deleted, waits."""
        async with self._writing:
            yield

    async def settled(self) -> None:
        """Wait until what was put is done."""
        await self._commits.settled()

    async def _commit(self, rows: list[ImageRow]) -> list[Status]:
        async with self._writing:
            return await self._retried(
                f"adding to gallery {self.info.name}", partial(self._merge, rows)
            )

    async def _merge(self, rows: Sequence[ImageRow]) -> list[Status]:
        ids = list({row.id for row in rows})
        here = {
            row["id"]: (row["sha256"], metadata_text(json.loads(row["metadata"])))
            for some in _chunks(ids)
            for row in await self._rows(some, ("id", "sha256", "metadata"))
        }
        statuses: list[Status] = []
        changed: dict[str, ImageRow] = {}
        for row in rows:
            content = row.sha256, metadata_text(row.metadata)
            before = here.get(row.id)
            if before == content:
                statuses.append("unchanged")
                continue
            statuses.append("replaced" if before else "added")
            here[row.id] = content
            changed[row.id] = row
        if changed:
            # By its index LanceDB would not notice that another process inserts the same id.
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

    async def _of(self, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        async with self._reading():
            return [row for some in _chunks(ids) for row in await self._rows(some, columns)]

    async def _rows(self, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        query = self.table.query().where(_among(ids)).select(list(columns))
        found: list[dict[str, Any]] = (await query.to_arrow()).to_pylist()
        return found

    async def _retried(self, doing: str, write: Callable[[], Awaitable[T]]) -> T:
        """Do it again for as long as other processes are first."""
        for attempt in range(_ATTEMPTS):
            try:
                return await write()
            except LanceError as error:
                if not await self.alive():
                    raise self._unknown() from error
                if not is_conflict(error) or attempt == _ATTEMPTS - 1:
                    raise storage_error(error, doing) from error
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


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(quoted(each) for each in ids)})"


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[begin : begin + _MOST_IDS] for begin in range(0, len(ids), _MOST_IDS)]
