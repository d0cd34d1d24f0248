"""Measure search time, memory and disk space of galleries by size."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped]
from rich.box import SIMPLE
from rich.table import Table

from load_tests.load import percentile_ms
from tokenfold.service.galleries import columns
from tokenfold.service.galleries.record import GalleryInfo, ImageRow
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.galleries.upkeep import index, optimize

GOAL = 0.98  # recall of the ten nearest
TOP = 10
CLUSTERS = 1000
SPREAD = 0.8  # standard deviation of a vector around its cluster's centre
_BATCH = 10_000
_MIN_SEARCHES = 5  # searches of each kind
THUMBNAIL = bytes(64)  # stored in a column that no search reads

Vectors = npt.NDArray[np.float32]


class SearchPlan(NamedTuple):
    """Parameters of a measurement.

    Attributes:
        width: dimensions of the vectors.
        queries: number of searches of each kind.
        seconds: maximum duration for each kind of search.
    """

    width: int
    queries: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """Results for a gallery of one size.

    Attributes:
        size, width: number of vectors, and their dimensions.
        exact_p50_ms, exact_p99_ms: duration of searches that compare every vector.
        index_p50_ms, index_p99_ms: duration of searches with the index.
        recall: fraction of the ten nearest that the index returns.
        index_seconds: time to build the index.
        memory_mb: resident memory of the process, minus that before the gallery was filled.
        disk_mb: size of the gallery with its index.
    """

    size: int
    width: int
    exact_p50_ms: float
    exact_p99_ms: float
    index_p50_ms: float
    index_p99_ms: float
    recall: float
    index_seconds: float
    memory_mb: float
    disk_mb: float

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as a dict for json.dumps."""
        return asdict(self)


def clustered(count: int, width: int, seed: int) -> Vectors:
    """Return unit vectors (count, width) around centres that are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), np.float32)
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, CLUSTERS, count)]
    vectors += SPREAD * random.standard_normal((count, width), np.float32)
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


async def fill(gallery: Gallery, size: int) -> None:
    """Add synthetic images without checking for duplicates."""
    width, now = gallery.info.width, datetime.now(UTC)
    for begin in range(0, size, _BATCH):
        vectors = clustered(min(_BATCH, size - begin), width, seed=begin + 1)
        rows = [
            ImageRow(
                id=f"{begin + n:064x}",
                vector=vector,
                sha256=f"{begin + n:064x}",
                metadata={"number": begin + n},
                width=640,
                height=480,
                added=now,
                thumbnail=THUMBNAIL,
            )
            for n, vector in enumerate(vectors)
        ]
        await gallery.table.add(columns.table(rows, gallery.info))


async def searches(
    gallery: Gallery, queries: Vectors, seconds: float, *, exact: bool
) -> tuple[list[set[str]], list[float]]:
    """Search for each query until the time is over; return the ids and durations in seconds."""
    results: list[set[str]] = []
    durations: list[float] = []
    end = time.monotonic() + seconds
    for query in queries:
        if time.monotonic() > end and len(results) >= _MIN_SEARCHES:
            break
        begin = time.perf_counter()
        hits = await gallery.search(query, top_k=TOP, exact=exact)
        durations.append(time.perf_counter() - begin)
        results.append({hit.id for hit in hits})
    return results, durations


async def measure(size: int, plan: SearchPlan, folder: Path) -> Row:
    """Measure one size; run it in a new process, because it measures the process's memory."""
    process = psutil.Process()
    galleries = await Galleries.open(str(folder))
    gallery = await galleries.create(
        GalleryInfo(
            name=f"size-{size}",
            model="synthetic",
            fingerprint="0" * 64,
            level="exact",
            requested=0.0,
            plan=(),
            width=plan.width,
            created=datetime.now(UTC),
        )
    )
    before = process.memory_info().rss
    await fill(gallery, size)
    await optimize(gallery)
    queries = clustered(plan.queries, plan.width, seed=0)
    # Warm the file cache.
    await searches(gallery, queries[:_MIN_SEARCHES], plan.seconds, exact=True)
    exact_results, exact_seconds = await searches(gallery, queries, plan.seconds, exact=True)
    begin = time.perf_counter()
    await index(gallery)
    build_seconds = time.perf_counter() - begin
    await searches(gallery, queries[:_MIN_SEARCHES], plan.seconds, exact=False)
    index_results, index_seconds = await searches(gallery, queries, plan.seconds, exact=False)
    recalls = [
        len(exact_ids & index_ids) / TOP
        for exact_ids, index_ids in zip(exact_results, index_results, strict=False)
    ]
    row = Row(
        size=size,
        width=plan.width,
        exact_p50_ms=percentile_ms(exact_seconds, 50) or 0.0,
        exact_p99_ms=percentile_ms(exact_seconds, 99) or 0.0,
        index_p50_ms=percentile_ms(index_seconds, 50) or 0.0,
        index_p99_ms=percentile_ms(index_seconds, 99) or 0.0,
        recall=float(np.mean(recalls)),
        index_seconds=build_seconds,
        memory_mb=(process.memory_info().rss - before) / 2**20,
        disk_mb=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20,
    )
    await galleries.delete(gallery.info.name)
    await galleries.close()
    return row


def measure_each(sizes: Sequence[int], plan: SearchPlan, folder: Path | None) -> list[Row]:
    """Measure every size in turn.

    Args:
        sizes: numbers of vectors.
        plan: parameters of the measurement.
        folder: folder on the disk to measure; None for a temporary folder.
    """
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", __name__, json.dumps([size, plan, temporary])]
            completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(Row(**json.loads(completed.stdout)))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Return the results as a table."""
    result = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("vectors", "exact\np50 ms", "exact\np99 ms", "index\np50 ms", "index\np99 ms"),
        *("recall\n@10", "index\nbuilt s", "memory\nMiB", "disk\nMiB"),
    ):
        result.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(
            f"{row.size:,}",
            f"{row.exact_p50_ms:.1f}",
            f"{row.exact_p99_ms:.1f}",
            f"{row.index_p50_ms:.1f}",
            f"{row.index_p99_ms:.1f}",
            f"{row.recall:.3f}",
            f"{row.index_seconds:.1f}",
            f"{row.memory_mb:.0f}",
            f"{row.disk_mb:.0f}",
        )
    return result


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    row = asyncio.run(measure(arguments[0], SearchPlan(*arguments[1]), Path(arguments[2])))
    print(json.dumps(row.as_json()))
