"""The galleries of a data directory."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from service.errors import GalleryExists, StorageFull, UnknownGallery
from service.galleries.columns import description, is_tombstone, schema, tombstone
from service.galleries.failures import LanceError, is_missing, is_taken, storage_error
from service.galleries.record import GalleryInfo
from service.galleries.table import Gallery

if TYPE_CHECKING:
    from lancedb import AsyncConnection, AsyncTable

_TABLE = re.compile(r"(\d+)-(.+)")
_PAGE = 1000  # tables
# Not zero: LanceDB warns that readers will fail then, which is the point here.
_AT_ONCE = timedelta(milliseconds=1)


class Galleries:
    """Every gallery under one path or object-store URI. Other processes may use the same.

    The gallery `holiday` is the table `1-holiday`. To delete it is to commit a version of the table
    without any of its columns, so that it is either there or not, and whoever still writes to it
    fails. The next gallery of that name is the table `2-holiday`, and so on: the creation of a
    table is atomic, and which of two creators came first is plain.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._open: dict[str, Gallery] = {}

    @classmethod
    async def open(cls, uri: str) -> Self:
        """The galleries in `uri`/galleries: a path, or an object store such as s3://bucket/path.

        Raises:
            StorageFailed: it cannot be used.
        """
        # It takes a second, in which the loop has other things to do.
        lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
        place = f"{uri.rstrip('/')}/galleries"
        try:
            # Every read looks for what other processes have written.
            connection = await lancedb.connect_async(place, read_consistency_interval=timedelta(0))
            galleries = cls(connection)
            await galleries._tables()
        except LanceError as error:
            raise storage_error(error, f"opening the galleries in {uri}") from error
        return galleries

    async def create(self, info: GalleryInfo) -> Gallery:
        """A new gallery.

        Raises:
            GalleryExists: one has that name.
            StorageFull: there is no room for it.
        """
        exists = GalleryExists(f"There is a gallery '{info.name}' already.")
        doing = f"creating gallery {info.name}"
        try:
            numbers = (await self._tables()).get(info.name, [])
            last = 0
            for number in reversed(numbers):
                table = await self._table(number, info.name)
                if table is None:
                    continue  # its creation was cut short
                if not is_tombstone(await table.schema()):
                    raise exists
                last = number
                break
            table = await self._connection.create_table(
                _name(last + 1, info.name), schema=schema(info)
            )
        except LanceError as error:
            if is_taken(error):
                raise exists from error
            raise storage_error(error, doing) from error
        gallery = self._open[info.name] = Gallery(info, table)
        for number in numbers:
            if number <= last:
                # Only the last number counts, so this may be cut short anywhere.
                with contextlib.suppress(*LanceError):
                    await self._connection.drop_table(_name(number, info.name))
        return gallery

    async def list(self) -> list[Gallery]:
        """Every gallery, by name.

        Raises:
            StorageFailed: they cannot be read.
        """
        try:
            names = sorted(await self._tables())
        except LanceError as error:
            raise storage_error(error, "listing the galleries") from error
        found = []
        for name in names:
            with contextlib.suppress(UnknownGallery):
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
            for number in reversed((await self._tables()).get(name, [])):
                table = await self._table(number, name)
                if table is None:
                    continue  # its creation was cut short
                info = description(await table.schema())
                if info is None:
                    break
                # Another request may have been first, and there is to be one that orders writes.
                return self._open.setdefault(name, Gallery(info, table))
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
                    table.name, schema=tombstone(), mode="overwrite"
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
        await self._connection.close()

    async def _tables(self) -> dict[str, list[int]]:
        """Numbers of the tables of each name, in order."""
        found: dict[str, list[int]] = {}
        token: str | None = None
        while True:
            page = await self._connection.list_tables(page_token=token, limit=_PAGE)
            for table in page.tables:
                if (parts := _TABLE.fullmatch(table)) is not None:
                    found.setdefault(parts[2], []).append(int(parts[1]))
            token = page.page_token
            if not token:
                return {name: sorted(numbers) for name, numbers in found.items()}

    async def _table(self, number: int, name: str) -> AsyncTable | None:
        """A table; None where its creation was cut short."""
        try:
            return await self._connection.open_table(_name(number, name))
        except LanceError as error:
            if is_missing(error):
                return None
            raise


def _name(number: int, name: str) -> str:
    return f"{number}-{name}"
