"""The galleries of a data directory."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import os
import random
import re
import secrets
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokenfold.service.errors import GalleryExists, StorageFailed, StorageFull, UnknownGallery
from tokenfold.service.galleries.columns import DELETED, PENDING, description, mark, marked, schema
from tokenfold.service.galleries.failures import LanceError, is_missing, storage_error
from tokenfold.service.galleries.record import GalleryInfo
from tokenfold.service.galleries.table import Gallery

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb import AsyncConnection, AsyncTable, Session

_TABLE = re.compile(r"[0-9a-f]{16}-(.+)")
_PAGE = 1000  # tables
_ATTEMPTS = 10
# A gallery whose creation takes longer is considered abandoned.
CREATION_TIMEOUT = 60.0  # seconds
# After this time, no process writes to a deleted gallery any more.
DELETION_DELAY = 600.0  # seconds
# LanceDB's cache of table metadata: by default a GiB, which thousands of small commits fill.
METADATA_CACHE_BYTES = 128 * 1024 * 1024
# Not zero: LanceDB warns that readers will fail, which is intended for deleted galleries.
_IMMEDIATELY = timedelta(milliseconds=1)


class Galleries:
    """All galleries under a path or object-store URI, which other processes may share.

    A gallery is a table whose name contains a random number. Deleting a gallery commits a version
    of the table without the gallery's columns: deletion is atomic, and writes of other processes
    fail. Creating a gallery first makes a table that is marked as pending. The table becomes a
    gallery if no other table of the name is seen then: of two concurrent creators, at least one
    sees the other and yields. (LanceDB lets both of two processes create the same table.)
    """

    def __init__(self, connection: AsyncConnection, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._open: dict[str, Gallery] = {}

    @classmethod
    async def open(cls, uri: str) -> Self:
        """Open the galleries in `uri`/galleries: a path, or an object store (s3://bucket/path).

        Raises:
            StorageFailed: the storage cannot be used.
        """
        # LanceDB's own log lines have another format than the server's; errors are logged here.
        os.environ.setdefault("LANCEDB_LOG", "error")
        # Importing LanceDB takes a second, which must not block the event loop.
        lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
        # LanceDB would expand ~, but would also create a folder of that name here.
        path = str(Path(uri).expanduser()) if uri.startswith("~") else uri
        folder = f"{path.rstrip('/')}/galleries"
        try:
            session = lancedb.Session(metadata_cache_size_bytes=METADATA_CACHE_BYTES)
            # Every read checks for writes of other processes.
            connection = await lancedb.connect_async(
                folder, read_consistency_interval=timedelta(0), session=session
            )
            galleries = cls(connection, session)
            await galleries._names()
        except LanceError as error:
            raise storage_error(error, f"opening the galleries in {uri}") from error
        return galleries

    async def create(self, info: GalleryInfo) -> Gallery:
        """Create a gallery.

        Raises:
            GalleryExists: a gallery of that name exists.
            StorageFull: the storage has no room for it.
        """
        own_table = ""
        try:
            for attempt in range(_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(random.uniform(0.0, min(1.0, 0.02 * 2**attempt)))
                if await self._rivals(info.name):
                    continue
                own_table = f"{secrets.token_hex(8)}-{info.name}"
                await self._connection.create_table(own_table, schema=mark(PENDING))
                try:
                    must_yield = await self._rivals(info.name, own_table)
                except GalleryExists:
                    await self._connection.drop_table(own_table)
                    raise
                if must_yield:
                    await self._connection.drop_table(own_table)
                    continue
                table = await self._connection.create_table(
                    own_table, schema=schema(info), mode="overwrite"
                )
                gallery = self._open[info.name] = Gallery(info, table)
                return gallery
        except LanceError as error:
            # Without this, the next creator of the gallery would wait for the pending table.
            with contextlib.suppress(*LanceError):
                if own_table:
                    await self._connection.drop_table(own_table)
            raise storage_error(error, f"creating gallery {info.name}") from error
        raise GalleryExists(f"Another request is creating the gallery '{info.name}'.")

    async def list(self) -> list[Gallery]:
        """Return every readable gallery, by name.

        Raises:
            StorageFailed: the galleries cannot be listed.
        """
        try:
            names = sorted(await self._names())
        except LanceError as error:
            raise storage_error(error, "listing the galleries") from error
        galleries = []
        for name in names:
            # An unreadable gallery is logged and does not hide the others.
            with contextlib.suppress(UnknownGallery, StorageFailed):
                galleries.append(await self.get(name))
        return galleries

    async def get(self, name: str) -> Gallery:
        """Return the gallery of a name.

        Raises:
            UnknownGallery: there is no such gallery.
            StorageFailed: the gallery cannot be read.
        """
        gallery = self._open.get(name)
        if gallery is not None:
            if await gallery.alive():
                return gallery
            if self._open.get(name) is gallery:
                del self._open[name]
        try:
            candidates = []
            for table, columns in await self._tables(name):
                info = description(columns)
                if info is not None:
                    candidates.append(Gallery(info, table))
            if candidates:
                # Another request may have been first; a single object must order all writes.
                first = min(
                    candidates, key=lambda candidate: (candidate.info.created, candidate.table.name)
                )
                return self._open.setdefault(name, first)
        except LanceError as error:
            raise storage_error(error, f"opening gallery {name}") from error
        raise UnknownGallery(f"There is no gallery '{name}'.")

    async def delete(self, name: str) -> None:
        """Delete a gallery.

        Raises:
            UnknownGallery: there is no such gallery.
            StorageFailed: the gallery cannot be deleted.
        """
        gallery = await self.get(name)
        table = gallery.table
        action = f"deleting gallery {name}"
        try:
            try:
                deleted_table = await self._connection.create_table(
                    table.name, schema=mark(DELETED), mode="overwrite"
                )
            except LanceError as error:
                failure = storage_error(error, action)
                if not isinstance(failure, StorageFull):
                    raise failure from error
                # Without room to commit the deletion, removing the files makes room.
                await self._connection.drop_table(table.name)
            else:
                await deleted_table.optimize(cleanup_older_than=_IMMEDIATELY)
        except LanceError as error:
            raise storage_error(error, action) from error
        finally:
            if self._open.get(name) is gallery:
                del self._open[name]

    async def close(self) -> None:
        """Finish pending writes and close the files."""
        for gallery in self._open.values():
            await gallery.settled()
        self._open.clear()
        self._connection.close()  # type: ignore[no-untyped-call]

    async def sweep(self) -> None:
        """Remove tables of deleted galleries, and of galleries whose creation was interrupted.

        Raises:
            RuntimeError, ValueError, OSError: errors of LanceDB.
        """
        for name in await self._names():
            for table, columns in await self._tables(name):
                deleted, pending = marked(columns, DELETED), marked(columns, PENDING)
                if (deleted or 0.0) > DELETION_DELAY or (pending or 0.0) > DELETION_DELAY:
                    await self._connection.drop_table(table.name)

    async def _rivals(self, name: str, own_table: str | None = None) -> bool:
        """Whether another process is creating a gallery of that name.

        Raises:
            GalleryExists: a gallery of that name exists.
        """
        pending = False
        for table, columns in await self._tables(name):
            if table.name == own_table:
                continue
            if description(columns) is not None:
                raise GalleryExists(f"There is a gallery '{name}' already.")
            age = marked(columns, PENDING)
            pending |= age is not None and age < CREATION_TIMEOUT
        return pending

    async def _names(self) -> dict[str, builtins.list[str]]:
        """Return the table names by gallery name, in any state."""
        table_names: dict[str, builtins.list[str]] = {}
        token: str | None = None
        while True:
            page = await self._connection.list_tables(page_token=token, limit=_PAGE)
            for table in page.tables:
                if (parts := _TABLE.fullmatch(table)) is not None:
                    table_names.setdefault(parts[1], []).append(table)
            token = page.page_token
            if not token:
                return table_names

    async def _tables(self, name: str) -> builtins.list[tuple[AsyncTable, pa.Schema]]:
        """Return the complete tables of a gallery name, with their columns."""
        tables = []
        for table_name in (await self._names()).get(name, []):
            try:
                table = await self._connection.open_table(table_name)
                tables.append((table, await table.schema()))
            except LanceError as error:
                if not is_missing(error):
                    raise
        return tables
