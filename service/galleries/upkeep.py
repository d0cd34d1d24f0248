"""What keeps galleries quick: files merged, old versions removed, vectors indexed.

LanceDB does the work, in its own threads, while others read and write. Each step ends in a commit,
so that it may be cut short anywhere, and two processes may both do it: one is too late then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import timedelta
from typing import NamedTuple

from tokenfold.inference.errors import RequestError
from tokenfold.service.galleries.failures import LanceError, is_conflict
from tokenfold.service.galleries.record import GalleryStats
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import ID_INDEX, VECTOR_INDEX, Gallery

logger = logging.getLogger(__name__)

# Exact search spends 40 ms of a core on 20,000 vectors of 512 numbers, and the index 2.
INDEX_FROM = 20_000  # images
# Images without an index are compared one by one, beside the index.
UNINDEXED = 0.1  # of all
# A partition of the index, in images.
PARTITION = 4096
# A merge writes all of a gallery's files anew but those of a million images. A large gallery has
# to wait for more of them, lest it be written again and again while it grows.
FRAGMENTS, MOST_FRAGMENTS = 64, 1024
BYTES_PER_FRAGMENT = 32 * 1024 * 1024
# What is added to an index lies beside it, in up to this many parts. Then it is made anew.
PARTS = 8
# Somebody may still read a version that is no longer the newest.
KEEP = timedelta(minutes=10)
# Seconds without a change after which a gallery is put in order, whatever its state; and once more
# when the versions before that are old enough to be removed.
QUIET = (60.0, 60.0 + KEEP.total_seconds() + 60.0)


class Policy(NamedTuple):
    """From what size on there is an index. Tests want less."""

    index_from: int = INDEX_FROM
    partition: int = PARTITION


class Seen(NamedTuple):
    """A gallery when it was looked at.

    Attributes:
        version: of its table.
        since: when somebody else last changed it, by the loop's clock, or later.
        ordered: how many of the times in `QUIET` it was put in order since.
    """

    version: int
    since: float
    ordered: int = 0


class Upkeep:
    """Looks after every gallery from time to time, in the background."""

    def __init__(
        self, galleries: Galleries, every: float = 30.0, policy: Policy | None = None
    ) -> None:
        """Args:
        galleries: to look after.
        every: seconds between two rounds.
        policy: from what size on there is an index.
        """
        self._galleries = galleries
        self._every = every
        self._policy = policy or Policy()
        self._seen: dict[str, Seen] = {}
        self._late: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End. What was under way is either done or was never begun."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def round(self) -> None:
        """Look after every gallery once. What fails is logged, and tried again the next time."""
        try:
            await self._galleries.sweep()
        except LanceError as error:
            logger.warning("the upkeep of deleted galleries failed: %s", error)
        galleries = await self._galleries.list()
        names = {gallery.info.name for gallery in galleries}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        self._late &= names
        for gallery in galleries:
            name = gallery.info.name
            try:
                await self._look_after(gallery)
            except RequestError:
                pass  # deleted meanwhile, or in the log
            except LanceError as error:
                level = logging.INFO if is_conflict(error) else logging.WARNING
                logger.log(level, "upkeep of gallery %s failed: %s", name, error)

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except RequestError:
                pass  # where it was raised it was logged
            except Exception:
                logger.exception("upkeep failed")
            await asyncio.sleep(self._every)

    async def _look_after(self, gallery: Gallery) -> None:
        name = gallery.info.name
        now = asyncio.get_running_loop().time()
        version = await gallery.table.version()
        seen = self._seen.get(name)
        if seen is None or seen.version != version:
            seen = Seen(version, now)
        passed = sum(now - seen.since >= quiet for quiet in QUIET)
        if seen.ordered < len(QUIET):
            stats = await gallery.stats()
            if passed > seen.ordered or crowded(stats):
                await self._optimize(gallery)
                stats = await gallery.stats()
            if stats.images >= self._policy.index_from:
                await index(gallery, self._policy.partition)
        # What was added meanwhile is taken for a work of this round; the next change shows it.
        self._seen[name] = Seen(await gallery.table.version(), seen.since, passed)

    async def _optimize(self, gallery: Gallery) -> None:
        # Merging files is too late if any row of theirs is replaced, or deleted, meanwhile. Where
        # that happened the last time, whoever writes is the one to wait.
        name = gallery.info.name
        try:
            async with gallery.paused() if name in self._late else contextlib.nullcontext():
                await optimize(gallery)
        except LanceError as error:
            if is_conflict(error):
                self._late.add(name)
            raise
        self._late.discard(name)


def crowded(stats: GalleryStats) -> bool:
    """Whether a gallery lies in many files, or has many images that its index does not know."""
    allowed = min(FRAGMENTS + stats.bytes // BYTES_PER_FRAGMENT, MOST_FRAGMENTS)
    behind = stats.indexed > 0 and stats.images - stats.indexed > UNINDEXED * stats.images
    return stats.fragments >= allowed or behind


async def optimize(gallery: Gallery) -> None:
    """Merge files, remove old versions, and add new images to the indexes.

    Raises:
        RuntimeError, ValueError, OSError: LanceDB's; another writer was first, or the disk is full.
    """
    begun = time.perf_counter()
    stats = await gallery.table.optimize(cleanup_older_than=KEEP)
    logger.info(
        "gallery %s put in order: %d files became %d, %d old versions removed",
        gallery.info.name,
        stats.compaction.files_removed,
        stats.compaction.files_added,
        stats.prune.old_versions_removed,
        extra={"ms": round((time.perf_counter() - begun) * 1e3, 2)},
    )


async def index(gallery: Gallery, partition: int = PARTITION) -> None:
    """Index vectors and ids where they are not, or where what was added lies in many parts.

    The vectors' index keeps a byte for each number. All of it is searched, so that what it finds
    does not hang on how the vectors lie; the best are compared in full.

    Raises:
        RuntimeError, ValueError, OSError: LanceDB's; another writer was first, or the disk is full.
    """
    from lancedb.index import BTree, IvfSq

    table = gallery.table
    vectors = await table.index_stats(VECTOR_INDEX)
    if vectors is None or (vectors.num_indices or 1) > PARTS:
        images = await table.count_rows()
        begun = time.perf_counter()
        await table.create_index(
            "vector",
            config=IvfSq(  # type: ignore[arg-type]  # left out there by mistake
                distance_type="cosine", num_partitions=max(1, images // partition)
            ),
            name=VECTOR_INDEX,
        )
        logger.info(
            "gallery %s: %d vectors indexed",
            gallery.info.name,
            images,
            extra={"ms": round((time.perf_counter() - begun) * 1e3, 2)},
        )
    if await table.index_stats(ID_INDEX) is None:
        await table.create_index("id", config=BTree(), name=ID_INDEX)
