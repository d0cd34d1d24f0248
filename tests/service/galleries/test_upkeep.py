"""Upkeep merges files and builds an index, without changing results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.service.galleries.made import Vectors, assert_same, image, info, unit, vectors
from tokenfold.service.galleries import upkeep
from tokenfold.service.galleries.failures import is_conflict
from tokenfold.service.galleries.record import GalleryStats
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import VECTOR_INDEX, Gallery
from tokenfold.service.galleries.upkeep import Policy, Upkeep, crowded, index, optimize

SMALL = Policy(index_from=300, partition=64)


def with_galleries(folder: Path, use: Callable[[Galleries], Awaitable[None]]) -> None:
    async def run() -> None:
        galleries = await Galleries.open(str(folder))
        await use(galleries)
        await galleries.close()

    asyncio.run(run())


async def fill(gallery: Gallery, commits: int, per_commit: int = 1, first: int = 0) -> None:
    for begin in range(first, first + commits * per_commit, per_commit):
        await gallery.put([image(f"{n:05}") for n in range(begin, begin + per_commit)])


def test_optimize_merges_files_and_removes_old_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        await fill(gallery, 10, 3)
        await gallery.delete(["00004"])
        assert (await gallery.stats()).fragments == 10
        monkeypatch.setattr(upkeep, "KEEP_VERSIONS", timedelta(milliseconds=1))
        await optimize(gallery)
        stats = await gallery.stats()
        assert (stats.images, stats.fragments) == (29, 1)
        versions = await gallery.table.list_versions()  # type: ignore[no-untyped-call]
        assert len(versions) <= 2
        assert_same(await gallery.fetch("00007", vector=True), image("00007"))
        # An optimised gallery needs no work, so two processes that maintain it come to rest.
        await optimize(gallery)
        version = await gallery.table.version()
        await optimize(gallery)
        assert await gallery.table.version() == version

    with_galleries(tmp_path, use)


def clustered(count: int, width: int, seed: int) -> Vectors:
    """Return (count, width) unit vectors around 40 directions that do not depend on the seed."""
    centres = np.random.default_rng(7).standard_normal((40, width))
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, width))
    return unit(centres[draw.integers(0, 40, count)] + 0.7 * noise)


def between_kinds(count: int, width: int, seed: int) -> Vectors:
    """Return queries that are far from all images, as embeddings of texts are."""
    offset = np.random.default_rng(8).standard_normal(width)
    return unit(clustered(count, width, seed) + 2.0 * unit(offset))


@pytest.mark.parametrize("kind", ["clustered", "uniform", "between kinds"])
def test_the_index_has_high_recall(tmp_path: Path, kind: str) -> None:
    width, count = 64, 3000
    image_vectors = vectors(count, width) if kind == "uniform" else clustered(count, width, 1)
    queries = {"uniform": vectors, "clustered": clustered, "between kinds": between_kinds}[kind](
        40, width, 2
    )

    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info(width=width))
        rows = [
            image(f"{n}", vector=image_vectors[n], metadata={"even": n % 2 == 0})
            for n in range(count)
        ]
        await gallery.put(rows[:2500])
        await index(gallery, partition=128)
        await gallery.put(rows[2500:])
        stats = await gallery.stats()
        assert (stats.images, stats.indexed) == (3000, 2500)
        recalls = []
        for filter in (None, {"even": True}):
            for query in queries:
                exact_hits = await gallery.search(query, top_k=10, filter=filter, exact=True)
                index_hits = await gallery.search(query, top_k=10, filter=filter)
                recalls.append(
                    len({hit.id for hit in exact_hits} & {hit.id for hit in index_hits}) / 10
                )
                assert [hit.score for hit in index_hits] == sorted(
                    (hit.score for hit in index_hits), reverse=True
                )
        assert np.mean(recalls) >= 0.98
        hits = await gallery.search(image_vectors[2999], top_k=1)
        assert hits[0].id == "2999"
        assert hits[0].score == pytest.approx(1.0, abs=1e-6)

    with_galleries(tmp_path, use)


def test_an_index_follows_changes(tmp_path: Path) -> None:
    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        await fill(gallery, 1, 400)
        await index(gallery, 64)
        await gallery.delete(["00001"])
        assert await gallery.put([image("00002", content="other"), image("new")]) == [
            "replaced",
            "added",
        ]
        for _ in range(2):
            assert (await gallery.search(image("00001").vector, top_k=1))[0].id != "00001"
            (hit,) = await gallery.search(image("other").vector, top_k=1)
            assert hit.id == "00002"
            assert hit.score == pytest.approx(1.0, abs=1e-6)
            assert (await gallery.search(image("new").vector, top_k=1))[0].id == "new"
            assert set(await gallery.known(["00001", "00002", "new"])) == {"00002", "new"}
            assert await gallery.put([image("00003"), image("new")]) == ["unchanged"] * 2
            await optimize(gallery)
        stats = await gallery.stats()
        assert stats.images == stats.indexed == 400

    with_galleries(tmp_path, use)


def test_an_index_of_many_parts_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        await fill(gallery, 1, 300)
        await index(gallery, 64)
        for turn in range(4):
            await fill(gallery, 1, 20, first=1000 * (turn + 1))
            await optimize(gallery)
        parts = await gallery.table.index_stats(VECTOR_INDEX)
        assert parts is not None
        assert (parts.num_indices or 1) > 2
        monkeypatch.setattr(upkeep, "MAX_INDEX_PARTS", 2)
        await index(gallery, 64)
        parts = await gallery.table.index_stats(VECTOR_INDEX)
        assert parts is not None
        assert (parts.num_indices, parts.num_unindexed_rows) == (1, 0)
        await optimize(gallery)
        assert (await gallery.stats()).fragments == 1

    with_galleries(tmp_path, use)


def test_a_round_does_the_due_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FRAGMENTS", 8)

    async def use(galleries: Galleries) -> None:
        maintenance = Upkeep(galleries, policy=SMALL)
        few, many = await galleries.create(info("few")), await galleries.create(info("many"))
        large = await galleries.create(info("large"))
        await fill(few, 3)
        await fill(many, 9)
        await fill(large, 1, 300)
        await maintenance.round()
        assert (await few.stats()).fragments == 3
        assert (await many.stats()).fragments == 1
        assert (await large.stats()).indexed == 300
        monkeypatch.setattr(upkeep, "QUIET_PERIODS", (0.0, 0.0))
        await fill(few, 1, first=100)
        await maintenance.round()
        assert (await few.stats()).fragments == 1
        version = await few.table.version()
        await maintenance.round()
        assert await few.table.version() == version
        await galleries.delete("few")
        await maintenance.round()

    with_galleries(tmp_path, use)


@pytest.mark.parametrize(
    ("images", "indexed", "size", "fragments", "expected"),
    [
        (100, 0, 10**6, 63, False),
        (100, 0, 10**6, 64, True),
        (10**5, 0, 2**32, 100, False),
        (10**5, 0, 2**32, 192, True),
        (10**7, 10**7, 2**40, 1023, False),
        (10**7, 10**7, 2**40, 1024, True),
        (10**5, 95_000, 2**30, 1, False),
        (10**5, 85_000, 2**30, 1, True),
    ],
)
def test_crowded(images: int, indexed: int, size: int, fragments: int, expected: bool) -> None:
    assert crowded(GalleryStats(images, indexed, size, fragments)) == expected


def test_searches_and_writes_continue_during_upkeep(tmp_path: Path) -> None:
    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        other = await (await Galleries.open(str(tmp_path))).get("holiday")
        await fill(gallery, 5, 100)
        working = True

        async def work() -> None:
            nonlocal working
            for turn in range(4):
                await asyncio.gather(keep(gallery), keep(other))
                await fill(gallery, 3, 2, first=1000 * (turn + 1))
            working = False

        async def keep(store: Gallery) -> None:
            # One of two concurrent steps may fail with a conflict.
            steps = optimize(store), index(store, 64)
            results = await asyncio.gather(*steps, return_exceptions=True)
            failed = [result for result in results if isinstance(result, Exception)]
            assert all(is_conflict(result) for result in failed), failed

        async def ask() -> int:
            queries = 0
            while working:
                n = 7 * queries % 500
                (hit,) = await gallery.search(image(f"{n:05}").vector, top_k=1)
                assert hit.id == f"{n:05}"
                assert await gallery.put([image(f"{n:05}", metadata={"asked": queries})]) != []
                queries += 1
                await asyncio.sleep(0)
            return queries

        _, asked = await asyncio.gather(work(), ask())
        assert asked > 3
        assert await gallery.count() == 500 + 4 * 6

    with_galleries(tmp_path, use)


def test_upkeep_succeeds_despite_constant_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        await fill(gallery, 40, 10)

        async def replace() -> None:
            turn = 0
            while True:
                turn += 1
                rows = [
                    image(f"{number:05}", content=f"{turn}-{number}")
                    for number in range(0, 400, 10)
                ]
                await asyncio.gather(gallery.put(rows), gallery.delete([f"{turn % 400:05}"]))

        writing = asyncio.create_task(replace())
        maintenance = Upkeep(galleries)
        for _ in range(2):
            await maintenance.round()
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing

    monkeypatch.setattr(upkeep, "FRAGMENTS", 8)
    with caplog.at_level(logging.INFO):
        with_galleries(tmp_path, use)
    assert "gallery holiday optimised" in caplog.text


def test_upkeep_runs_in_the_background_until_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "FRAGMENTS", 2)

    async def use(galleries: Galleries) -> None:
        gallery = await galleries.create(info())
        maintenance = Upkeep(galleries, interval=0.01)
        await maintenance.stop()
        maintenance.start()
        await fill(gallery, 3)
        begin = time.monotonic()
        while (await gallery.stats()).fragments > 1:
            assert time.monotonic() - begin < 60
            await asyncio.sleep(0.01)
        await maintenance.stop()
        await fill(gallery, 3, first=10)
        await asyncio.sleep(0.1)
        assert (await gallery.stats()).fragments == 4

    with caplog.at_level(logging.INFO):
        with_galleries(tmp_path, use)
    assert "gallery holiday optimised" in caplog.text


def test_a_failure_is_logged_and_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(gallery: Gallery) -> None:
        if gallery.info.name == "a":
            raise RuntimeError("lance error: broken")
        await optimize(gallery)

    async def use(galleries: Galleries) -> None:
        first, second = await galleries.create(info("a")), await galleries.create(info("b"))
        await fill(first, 3)
        await fill(second, 3)
        monkeypatch.setattr(upkeep, "optimize", failing)
        await Upkeep(galleries).round()
        assert (await first.stats()).fragments == 3
        assert (await second.stats()).fragments == 1

    monkeypatch.setattr(upkeep, "FRAGMENTS", 2)
    with_galleries(tmp_path, use)
    assert "upkeep of gallery a failed: lance error: broken" in caplog.text
