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
# Who has not finished creating a gallery after so long never will.
PATIENCE = 60.0  # seconds
# After so long nobody writes to a deleted gallery any more.
FORGET = 600.0  # seconds
# Of what LanceDB remembers of tables: by default a GiB, which thousands of small commits fill.
MOST_REMEMBERED = 128 * 1024 * 1024  # bytes
# Not zero: LanceDB warns that readers will fail then, which is the point here.
_AT_ONCE = timedelta(milliseconds=1)


class Galleries:
    """Every gallery under one path or object-store URI. Other processes may use the same.

    A gallery is a table with a number of its own in its name. To delete it is to commit a version
    of the table without any of its columns, so that it is either there or not, and whoever still
    writes to it fails. To create it is to make a table that is marked as pending, and a gallery if
    no other of the name is seen then: of two creators at least one sees the other, and yields.
    (LanceDB does not tell which of two came first that create one table: both succeed.)
    """

    def __init__(self, connection: AsyncConnection, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._open: dict[str, Gallery] = {}

    @classmethod
    async def open(cls, uri: str) -> Self:
        """The galleries in `uri`/galleries: a path, or an object store such as s3://bucket/path.

        Raises:
            StorageFailed: it cannot be used.
        """
        # Its own lines on stderr are in no format of ours, and what fails is logged here.
        os.environ.setdefault("LANCEDB_LOG", "error")
        # It takes a second, in which the loop has other things to do.
        lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
        # LanceDB would look for it at home, but make a folder of that name here too.
        found = str(Path(uri).expanduser()) if uri.startswith("~") else uri
        place = f"{found.rstrip('/')}/galleries"
        try:
            session = lancedb.Session(metadata_cache_size_bytes=MOST_REMEMBERED)
            # Every read looks for what other processes have written.
            connection = await lancedb.connect_async(
                place, read_consistency_interval=timedelta(0), session=session
            )
            galleries = cls(connection, session)
            await galleries._names()
        except LanceError as error:
            raise storage_error(error, f"opening the galleries in {uri}") from error
        return galleries

    async def create(self, info: GalleryInfo) -> Gallery:
        """A new gallery.

        Raises:
            GalleryExists: one has that name.
            StorageFull: there is no room for it.
        """
        own = ""
        try:
            for attempt in range(_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(random.uniform(0.0, min(1.0, 0.02 * 2**attempt)))
                if await self._rivals(info.name):
                    continue
                own = f"{secrets.token_hex(8)}-{info.name}"
                await self._connection.create_table(own, schema=mark(PENDING))
                try:
                    yielding = await self._rivals(info.name, own)
                except GalleryExists:
                    await self._connection.drop_table(own)
                    raise
                if yielding:
                    await self._connection.drop_table(own)
                    continue
                table = await self._connection.create_table(
                    own, schema=schema(info), mode="overwrite"
                )
                gallery = self._open[info.name] = Gallery(info, table)
                return gallery
        except LanceError as error:
            # Else the next one to create it would wait for this one.
            with contextlib.suppress(*LanceError):
                if own:
                    await self._connection.drop_table(own)
            raise storage_error(error, f"creating gallery {info.name}") from error
        raise GalleryExists(f"Others are creating a gallery '{info.name}' right now.")

    async def list(self) -> list[Gallery]:
        """Every gallery that can be read, by name.

        Raises:
            StorageFailed: they cannot be read.
        """
        try:
            names = sorted(await self._names())
        except LanceError as error:
            raise storage_error(error, "listing the galleries") from error
        found = []
        for name in names:
            # One that cannot be read is in the log, and hides none of the others.
            with contextlib.suppress(UnknownGallery, StorageFailed):
                found.append(await self.get(name))
        return found

    async def get(self, name: str) -> Gallery:
        """The gallery of that name.

        Raises:
            UnknownGallery: there is none.
            StorageFailed: it cannot be read.
        """
        gallery = self._open.get(name)
        if gallery is not None:
            if await gallery.alive():
                return gallery
            if self._open.get(name) is gallery:
                del self._open[name]
        try:
            found = []
            for table, columns in await self._tables(name):
                info = description(columns)
                if info is not None:
                    found.append(Gallery(info, table))
            if found:
                # Another request may have been first, and one of them is to order all writes.
                first = min(found, key=lambda each: (each.info.created, each.table.name))
                return self._open.setdefault(name, first)
        except LanceError as error:
            raise storage_error(error, f"opening gallery {name}") from error
        raise UnknownGallery(f"There is no gallery '{name}'.")

    async def delete(self, name: str) -> None:
        """End a gallery.

        Raises:
            UnknownGallery: there is none.
            StorageFailed: it cannot be deleted.
        """
        gallery = await self.get(name)
        table = gallery.table
        doing = f"deleting gallery {name}"
        try:
            try:
                gone = await self._connection.create_table(
                    table.name, schema=mark(DELETED), mode="overwrite"
                )
            except LanceError as error:
                failure = storage_error(error, doing)
                if not isinstance(failure, StorageFull):
                    raise failure from error
                # Where there is no room to say that it is gone, to remove its files makes room.
                await self._connection.drop_table(table.name)
            else:
                await gone.optimize(cleanup_older_than=_AT_ONCE)
        except LanceError as error:
            raise storage_error(error, doing) from error
        finally:
            if self._open.get(name) is gallery:
                del self._open[name]

    async def close(self) -> None:
        """Finish what was put, and let go of the files."""
        for gallery in self._open.values():
            await gallery.settled()
        self._open.clear()
        self._connection.close()  # type: ignore[no-untyped-call]

    async def sweep(self) -> None:
        """Remove what is left of deleted galleries, and of those whose creation was cut short.

        Raises:
            RuntimeError, ValueError, OSError: LanceDB's.
        """
        for name in await self._names():
            for table, columns in await self._tables(name):
                deleted, pending = marked(columns, DELETED), marked(columns, PENDING)
                if (deleted or 0.0) > FORGET or (pending or 0.0) > FORGET:
                    await self._connection.drop_table(table.name)

    async def _rivals(self, name: str, own: str | None = None) -> bool:
        """Whether somebody else creates a gallery of that name.

        Raises:
            GalleryExists: there is one.
        """
        pending = False
        for table, columns in await self._tables(name):
            if table.name == own:
                continue
            if description(columns) is not None:
                raise GalleryExists(f"There is a gallery '{name}' already.")
            age = marked(columns, PENDING)
            pending |= age is not None and age < PATIENCE
        return pending

    async def _names(self) -> dict[str, builtins.list[str]]:
        """The tables of each name of a gallery, whatever their state."""
        found: dict[str, builtins.list[str]] = {}
        token: str | None = None
        while True:
            page = await self._connection.list_tables(page_token=token, limit=_PAGE)
            for table in page.tables:
                if (parts := _TABLE.fullmatch(table)) is not None:
                    found.setdefault(parts[1], []).append(table)
            token = page.page_token
            if not token:
                return found

    async def _tables(self, name: str) -> builtins.list[tuple[AsyncTable, pa.Schema]]:
        """The tables of a name with their columns, but those that are not complete."""
        found = []
        for each in (await self._names()).get(name, []):
            try:
                table = await self._connection.open_table(each)
                found.append((table, await table.schema()))
            except LanceError as error:
                if not is_missing(error):
                    raise
        return found
