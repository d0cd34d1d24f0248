"""Open the galleries of a running server, maintain them, and close them at the end.

A data directory that cannot be used does not stop the server from classifying: opening it is
retried when a request needs a gallery.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from tokenfold.inference.errors import RequestError
from tokenfold.service.errors import StorageFailed
from tokenfold.service.galleries.metrics import GalleryMetrics
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.upkeep import Upkeep

logger = logging.getLogger(__name__)

# Seconds after a failure in which opening the data directory is not retried.
_RETRY_AFTER = 5.0
# Seconds between counts of the images: other servers may add images too.
_COUNT_INTERVAL = 15.0


class Keeper:
    """Opens the galleries once, and runs their background tasks."""

    def __init__(self, uri: str, metrics: GalleryMetrics) -> None:
        self._uri = uri
        self.metrics = metrics
        self._opening = asyncio.Lock()
        self._galleries: Galleries | None = None
        self._upkeep: Upkeep | None = None
        self._counting: asyncio.Task[None] | None = None
        self._failure: RequestError | None = None
        self._failed_at = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start counting images, on the running event loop."""
        self._counting = asyncio.get_running_loop().create_task(self._count_periodically())

    async def stop(self) -> None:
        """Stop the background tasks and close the galleries."""
        self._stopped = True
        if self._counting is not None:
            self._counting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._counting
        async with self._opening:
            if self._upkeep is not None:
                await self._upkeep.stop()
            if self._galleries is not None:
                await self._galleries.close()
            self._galleries = self._upkeep = None

    async def galleries(self) -> Galleries:
        """Return the opened galleries.

        Raises:
            StorageFailed: the galleries cannot be opened.
        """
        if self._galleries is not None:
            return self._galleries
        async with self._opening:
            if self._galleries is None:
                await self._open()
            assert self._galleries is not None
            return self._galleries

    async def _open(self) -> None:
        if self._stopped:
            raise StorageFailed("The galleries are closed: the server is shutting down.")
        if self._failure is not None and time.monotonic() - self._failed_at < _RETRY_AFTER:
            raise self._failure
        try:
            galleries = await Galleries.open(self._uri)
        except RequestError as error:
            self._failure, self._failed_at = error, time.monotonic()
            logger.error("the galleries in %s cannot be opened: %s", self._uri, error)
            raise
        self._failure = None
        self._galleries = galleries
        self._upkeep = Upkeep(galleries)
        self._upkeep.start()

    async def _count_periodically(self) -> None:
        while True:
            try:
                galleries = await (await self.galleries()).list()
                self.metrics.sizes(
                    {gallery.info.name: await gallery.count() for gallery in galleries}
                )
            except RequestError:
                pass  # logged when opening failed, and returned to requests
            except Exception:
                logger.exception("the galleries could not be counted")
            await asyncio.sleep(_COUNT_INTERVAL)
