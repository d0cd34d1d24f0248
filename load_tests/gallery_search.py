"""How long a search takes, and what memory and disk it needs, by the size of a gallery."""

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

GOAL = 0.98  # recall of the ten best
TOP = 10
CLUSTERS = 1000
SPREAD = 0.8  # of a vector around its cluster's centre, which has length 1
_BATCH = 10_000
_FEWEST = 5  # searches of each kind
THUMBNAIL = bytes(64)  # they lie in a column that no search reads

Vectors = npt.NDArray[np.float32]


class Plan(NamedTuple):
    """What to measure.

    Attributes:
        width: of the vectors.
        queries: searches of each kind.
        seconds: for each kind, at most.
    """

    width: int
    queries: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """A gallery of one size.

    Attributes:
        size, width: vectors, and numbers of each.
        exact_p50_ms, exact_p99_ms: of searches that compare with every vector.
        index_p50_ms, index_p99_ms: of searches by the index.
        recall: of the ten best, the share that the index finds.
        index_seconds: to build the index.
        memory_mb: resident memory of the process now, over that before the gallery was filled.
        disk_mb: of the gallery with its index.
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
        """The attributes, for json.dumps."""
        return asdict(self)


def clustered(count: int, width: int, seed: int) -> Vectors:
    """(count, width) of length 1 around some centres, the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), np.float32)
    draw = np.random.default_rng(seed)
    found = centres[draw.integers(0, CLUSTERS, count)]
    found += SPREAD * draw.standard_normal((count, width), np.float32)
    scaled: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return scaled


async def fill(gallery: Gallery, size: int) -> None:
    """Add synthetic images, past the checks of what is there already."""
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
    """What each query finds, and its seconds; fewer queries where the time is over."""
    found: list[set[str]] = []
    durations: list[float] = []
    end = time.monotonic() + seconds
    for query in queries:
        if time.monotonic() > end and len(found) >= _FEWEST:
            break
        begun = time.perf_counter()
        hits = await gallery.search(query, top_k=TOP, exact=exact)
        durations.append(time.perf_counter() - begun)
        found.append({hit.id for hit in hits})
    return found, durations


async def measure(size: int, plan: Plan, folder: Path) -> Row:
    """One size, in a process of its own: what memory it needs is seen no other way."""
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
    await searches(gallery, queries[:_FEWEST], plan.seconds, exact=True)  # files are read once
    best, exact = await searches(gallery, queries, plan.seconds, exact=True)
    begun = time.perf_counter()
    await index(gallery)
    built = time.perf_counter() - begun
    await searches(gallery, queries[:_FEWEST], plan.seconds, exact=False)
    near, indexed = await searches(gallery, queries, plan.seconds, exact=False)
    shares = [len(one & other) / TOP for one, other in zip(best, near, strict=False)]
    row = Row(
        size=size,
        width=plan.width,
        exact_p50_ms=percentile_ms(exact, 50) or 0.0,
        exact_p99_ms=percentile_ms(exact, 99) or 0.0,
        index_p50_ms=percentile_ms(indexed, 50) or 0.0,
        index_p99_ms=percentile_ms(indexed, 99) or 0.0,
        recall=float(np.mean(shares)),
        index_seconds=built,
        memory_mb=(process.memory_info().rss - before) / 2**20,
        disk_mb=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20,
    )
    await galleries.delete(gallery.info.name)
    await galleries.close()
    return row


def measure_each(sizes: Sequence[int], plan: Plan, folder: Path | None) -> list[Row]:
    """Every size in turn.

    Args:
        sizes: vectors.
        plan: what to measure.
        folder: on the disk that is to be measured; by default a temporary one.
    """
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            line = [sys.executable, "-m", __name__, json.dumps([size, plan, place])]
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(Row(**json.loads(done.stdout)))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """The figures, for people."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("vectors", "exact\np50 ms", "exact\np99 ms", "index\np50 ms", "index\np99 ms"),
        *("recall\n@10", "index\nbuilt s", "memory\nMiB", "disk\nMiB"),
    ):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
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
    return shown


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    measured = asyncio.run(measure(asked[0], Plan(*asked[1]), Path(asked[2])))
    print(json.dumps(measured.as_json()))
