"""The galleries of a running server: opened, looked after, and closed at its end.

A data directory that cannot be used is no reason not to classify: it is tried again when somebody
asks for a gallery.
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

# Seconds in which a data directory that could not be opened is not tried again.
_PATIENCE = 5.0
# Seconds between two looks at how large galleries are: other servers may fill them too.
_BETWEEN_COUNTS = 15.0


class Keeper:
    """Opens the galleries, once, and does what has to be done in the background."""

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
        """Begin, on the running loop."""
        self._counting = asyncio.get_running_loop().create_task(self._count_on())

    async def stop(self) -> None:
        """End what goes on in the background, and close the galleries."""
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
        """The opened galleries.

        Raises:
            StorageFailed: they cannot be opened.
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
        if self._failure is not None and time.monotonic() - self._failed_at < _PATIENCE:
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

    async def _count_on(self) -> None:
        while True:
            try:
                found = await (await self.galleries()).list()
                self.metrics.sizes({one.info.name: await one.count() for one in found})
            except RequestError:
                pass  # logged where it was opened, and told to whoever asks
            except Exception:
                logger.exception("the galleries could not be counted")
            await asyncio.sleep(_BETWEEN_COUNTS)
