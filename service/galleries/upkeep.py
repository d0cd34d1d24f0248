"""Keep galleries fast: merge files, remove old versions, index vectors.

LanceDB does the work in its own threads, while other requests read and write. Each step ends with a
commit. Therefore it can be interrupted anywhere, and of two processes that do it, one fails.
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

# Exact search of 20,000 vectors of 512 numbers takes 40 ms of a core, and the index 2 ms.
INDEX_FROM = 20_000  # images
# Fraction of images that the index may lack; search compares them one by one.
UNINDEXED = 0.1
# Images per partition of the index.
PARTITION = 4096
# A merge rewrites all files of a gallery except those of a million images. A large gallery waits
# for more files, so that it is not rewritten again and again while it grows.
FRAGMENTS, MAX_FRAGMENTS = 64, 1024
BYTES_PER_FRAGMENT = 32 * 1024 * 1024
# Additions to an index are separate parts, up to this number; then the index is rebuilt.
MAX_INDEX_PARTS = 8
# Readers may still use a version that is no longer the newest.
KEEP_VERSIONS = timedelta(minutes=10)
# Seconds without a change after which a gallery is optimised in any state: a first time, and again
# when the previous versions are old enough to be removed.
QUIET_PERIODS = (60.0, 60.0 + KEEP_VERSIONS.total_seconds() + 60.0)


class Policy(NamedTuple):
    """Minimum size of an indexed gallery, and images per partition. Tests use smaller values."""

    index_from: int = INDEX_FROM
    partition: int = PARTITION


class Observation(NamedTuple):
    """State of a gallery when upkeep last looked at it.

    Attributes:
        version: version of its table.
        since: time of the last change by others, by the event loop's clock, or later.
        ordered: number of `QUIET_PERIODS` after which it has been optimised since.
    """

    version: int
    since: float
    ordered: int = 0


class Upkeep:
    """Maintains all galleries periodically in the background."""

    def __init__(
        self, galleries: Galleries, interval: float = 30.0, policy: Policy | None = None
    ) -> None:
        """Prepare; `start` begins the rounds.

        Args:
            galleries: galleries to maintain.
            interval: seconds between two rounds.
            policy: sizes for indexing.
        """
        self._galleries = galleries
        self._interval = interval
        self._policy = policy or Policy()
        self._observations: dict[str, Observation] = {}
        self._conflicted: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop. An interrupted step is either complete or has no effect."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def round(self) -> None:
        """Maintain every gallery once. Errors are logged, and the next round tries again."""
        try:
            await self._galleries.sweep()
        except LanceError as error:
            logger.warning("the upkeep of deleted galleries failed: %s", error)
        galleries = await self._galleries.list()
        names = {gallery.info.name for gallery in galleries}
        self._observations = {
            name: observation for name, observation in self._observations.items() if name in names
        }
        self._conflicted &= names
        for gallery in galleries:
            name = gallery.info.name
            try:
                await self._maintain(gallery)
            except RequestError:
                pass  # deleted meanwhile, or logged already
            except LanceError as error:
                level = logging.INFO if is_conflict(error) else logging.WARNING
                logger.log(level, "upkeep of gallery %s failed: %s", name, error)

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except RequestError:
                pass  # logged where it was raised
            except Exception:
                logger.exception("upkeep failed")
            await asyncio.sleep(self._interval)

    async def _maintain(self, gallery: Gallery) -> None:
        name = gallery.info.name
        now = asyncio.get_running_loop().time()
        version = await gallery.table.version()
        observation = self._observations.get(name)
        if observation is None or observation.version != version:
            observation = Observation(version, now)
        quiet_periods = sum(now - observation.since >= quiet for quiet in QUIET_PERIODS)
        if observation.ordered < len(QUIET_PERIODS):
            stats = await gallery.stats()
            if quiet_periods > observation.ordered or crowded(stats):
                await self._optimize(gallery)
                stats = await gallery.stats()
            if stats.images >= self._policy.index_from:
                await index(gallery, self._policy.partition)
        # Changes during this round count as its own; the next change will be noticed.
        self._observations[name] = Observation(
            await gallery.table.version(), observation.since, quiet_periods
        )

    async def _optimize(self, gallery: Gallery) -> None:
        # A merge fails if one of its rows is replaced or deleted meanwhile. After such a conflict,
        # the next merge makes the writers of this process wait.
        name = gallery.info.name
        try:
            async with gallery.paused() if name in self._conflicted else contextlib.nullcontext():
                await optimize(gallery)
        except LanceError as error:
            if is_conflict(error):
                self._conflicted.add(name)
            raise
        self._conflicted.discard(name)


def crowded(stats: GalleryStats) -> bool:
    """Whether a gallery has too many files, or too many images that its index lacks."""
    allowed = min(FRAGMENTS + stats.bytes // BYTES_PER_FRAGMENT, MAX_FRAGMENTS)
    index_outdated = stats.indexed > 0 and stats.images - stats.indexed > UNINDEXED * stats.images
    return stats.fragments >= allowed or index_outdated


async def optimize(gallery: Gallery) -> None:
    """Merge files, remove old versions, and add new images to the indexes.

    Raises:
        RuntimeError, ValueError, OSError: LanceDB's; another writer was first, or the disk is full.
    """
    begin = time.perf_counter()
    stats = await gallery.table.optimize(cleanup_older_than=KEEP_VERSIONS)
    logger.info(
        "gallery %s optimised: %d files became %d, %d old versions removed",
        gallery.info.name,
        stats.compaction.files_removed,
        stats.compaction.files_added,
        stats.prune.old_versions_removed,
        extra={"ms": round((time.perf_counter() - begin) * 1e3, 2)},
    )


async def index(gallery: Gallery, partition: int = PARTITION) -> None:
    """Index vectors and ids that are not indexed, or whose index has many parts.

    The vector index keeps a byte per dimension. All of it is searched, so that recall does not
    depend on the distribution of the vectors; the full vectors of the best candidates are compared.

    Raises:
        RuntimeError, ValueError, OSError: LanceDB's; another writer was first, or the disk is full.
    """
    from lancedb.index import BTree, IvfSq

    table = gallery.table
    vectors = await table.index_stats(VECTOR_INDEX)
    if vectors is None or (vectors.num_indices or 1) > MAX_INDEX_PARTS:
        images = await table.count_rows()
        begin = time.perf_counter()
        await table.create_index(
            "vector",
            config=IvfSq(  # type: ignore[arg-type]  # missing in LanceDB's annotation
                distance_type="cosine", num_partitions=max(1, images // partition)
            ),
            name=VECTOR_INDEX,
        )
        logger.info(
            "gallery %s: %d vectors indexed",
            gallery.info.name,
            images,
            extra={"ms": round((time.perf_counter() - begin) * 1e3, 2)},
        )
    if await table.index_stats(ID_INDEX) is None:
        await table.create_index("id", config=BTree(), name=ID_INDEX)
