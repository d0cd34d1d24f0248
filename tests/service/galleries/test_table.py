"""A gallery: stored images are returned by id, by page and by similarity."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from tests.service.galleries.made import WIDTH, assert_same, image, info, unit, vectors
from tokenfold.inference.errors import InvalidRequest
from tokenfold.service.errors import InvalidFilter
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import Gallery


def with_gallery(folder: Path, use: Callable[[Gallery], Awaitable[None]]) -> None:
    async def run() -> None:
        galleries = await Galleries.open(str(folder))
        await use(await galleries.create(info()))
        await galleries.close()

    asyncio.run(run())


def test_put_and_fetch(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        first = image("a", metadata={"album": "x", "deep": {"list": [1, None, "é"]}})
        assert await gallery.put([first, image("b")]) == ["added", "added"]
        assert await gallery.put([]) == []
        assert_same(await gallery.fetch("a", vector=True), first)
        without_vector = await gallery.fetch("a")
        assert without_vector is not None
        assert without_vector.vector.shape == (0,)
        assert await gallery.fetch("nobody") is None
        assert await gallery.known(["b", "nobody", "a"]) == {
            "a": first.sha256,
            "b": image("b").sha256,
        }
        assert await gallery.thumbnails(["b", "nobody"]) == {"b": image("b").thumbnail}
        assert await gallery.known([]) == {}
        stats = await gallery.stats()
        assert (stats.images, stats.indexed, stats.fragments) == (2, 0, 1)
        assert stats.bytes > 0

    with_gallery(tmp_path, use)


def test_unchanged_images_write_nothing(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        row = image("a", metadata={"x": 1, "y": 2.0})
        assert await gallery.put([row]) == ["added"]
        version = await gallery.table.version()
        repeated = row._replace(metadata={"y": 2.0, "x": 1}, thumbnail=b"another")
        assert await gallery.put([repeated, repeated]) == ["unchanged", "unchanged"]
        assert await gallery.table.version() == version
        other = row._replace(metadata={"x": True, "y": 2.0})
        assert await gallery.put([other]) == ["replaced"]
        assert await gallery.put([image("a", content="other")]) == ["replaced"]
        assert await gallery.count() == 1
        assert_same(await gallery.fetch("a", vector=True), image("a", content="other"))

    with_gallery(tmp_path, use)


def test_the_last_of_rows_with_one_id_is_kept(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        rows = [image("a"), image("a", content="b"), image("a", content="b"), image("a")]
        assert await gallery.put(rows) == ["added", "replaced", "unchanged", "replaced"]
        assert await gallery.count() == 1
        assert_same(await gallery.fetch("a", vector=True), image("a"))

    with_gallery(tmp_path, use)


def test_many_callers_share_commits(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        before = await gallery.table.version()
        puts = [gallery.put([image(f"{n}"), image("all")]) for n in range(40)]
        statuses = await asyncio.gather(*puts)
        assert [status for status, _ in statuses] == ["added"] * 40
        assert sorted(status for _, status in statuses) == ["added"] + ["unchanged"] * 39
        assert await gallery.count() == 41
        assert await gallery.table.version() - before < 5

    with_gallery(tmp_path, use)


def test_invalid_images_do_not_affect_others(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        results = await asyncio.gather(
            gallery.put([image("a")]),
            gallery.put([image("b", metadata={"n": 2**70})]),
            gallery.put([image("c", width=WIDTH + 1)]),
            return_exceptions=True,
        )
        assert results[0] == ["added"]
        assert isinstance(results[1], InvalidRequest)
        assert isinstance(results[2], ValueError)
        assert await gallery.count() == 1

    with_gallery(tmp_path, use)


IDS = ["'", "a'b", '"', "a\\'", "%", "A", "a", "é", "😀", " ", "x" * 500, "a/b\n", "' OR 1=1 --"]


def test_any_text_can_be_an_id(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        await gallery.put([image(id) for id in IDS])
        for id in IDS:
            assert_same(await gallery.fetch(id, vector=True), image(id))
        assert [hit.id for hit in await gallery.page(None, 100)] == sorted(IDS)
        for id in IDS:
            assert await gallery.delete([id]) == 1
        assert await gallery.count() == 0

    with_gallery(tmp_path, use)


def test_pages_are_ordered_by_id(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        ids = [f"{n:03}" for n in range(25)]
        for id in reversed(ids):
            if int(id) % 5 == 4:
                numbers = range(int(id) - 4, int(id) + 1)
                await gallery.put([image(f"{n:03}", metadata={"n": n}) for n in numbers])
        paged_ids: list[str] = []
        after = None
        while page := await gallery.page(after, 7):
            assert all(math.isnan(hit.score) for hit in page)
            assert [hit.metadata["n"] for hit in page] == [int(hit.id) for hit in page]
            paged_ids += [hit.id for hit in page]
            after = page[-1].id
        assert paged_ids == ids
        filtered = await gallery.page("003", 2, {"n": {"gt": 10}})
        assert [hit.id for hit in filtered] == ["011", "012"]
        assert await gallery.count({"n": {"gt": 10}}) == 14

    with_gallery(tmp_path, use)


def test_delete_returns_the_number_of_images(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        await gallery.put([image("a"), image("b"), image("c")])
        assert await gallery.delete(["a", "c", "nobody"]) == 2
        assert await gallery.delete(["a"]) == 0
        assert await gallery.delete([]) == 0
        assert [hit.id for hit in await gallery.page(None, 9)] == ["b"]
        assert await gallery.put([image("a")]) == ["added"]

    with_gallery(tmp_path, use)


def test_more_ids_than_fit_one_statement(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        ids = [f"{n}" for n in range(2500)]
        await gallery.put([image(id) for id in ids])
        assert len(await gallery.known(ids)) == 2500
        assert await gallery.put([image(id) for id in ids]) == ["unchanged"] * 2500
        assert await gallery.delete(ids) == 2500

    with_gallery(tmp_path, use)


def test_search_orders_by_cosine(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        image_vectors = vectors(60)
        rows = [
            image(f"{n:02}", vector=vector, metadata={"n": n})
            for n, vector in enumerate(image_vectors)
        ]
        await gallery.put(rows[:30])
        await gallery.put(rows[30:])
        query = vectors(1, seed=9)[0]
        cosines = image_vectors @ query
        order = np.argsort(-cosines)
        hits = await gallery.search(3 * query, top_k=10)
        assert [hit.metadata["n"] for hit in hits] == order[:10].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], cosines[order[:10]], atol=1e-6)
        assert hits[0].sha256 == rows[order[0]].sha256
        assert hits[0].added == rows[order[0]].added
        further = await gallery.search(query, top_k=10, offset=5)
        assert [hit.id for hit in further[:5]] == [hit.id for hit in hits[5:]]
        even = await gallery.search(query, top_k=3, filter={"n": {"in": list(range(0, 60, 2))}})
        assert [hit.metadata["n"] for hit in even] == [n for n in order if n % 2 == 0][:3]
        assert len(await gallery.search(query, top_k=1000)) == 60
        assert await gallery.search(query, top_k=10, offset=60) == []
        assert await gallery.search(query, top_k=1, filter={"n": -1}) == []
        with pytest.raises(ValueError, match=r"\(9,\), not \(8,\)"):
            await gallery.search(vectors(1, WIDTH + 1)[0], top_k=1)
        with pytest.raises(InvalidFilter):
            await gallery.search(query, top_k=1, filter={"n": {}})

    with_gallery(tmp_path, use)


def test_ties_are_ordered_by_id_across_pages(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        near, far = unit(np.eye(WIDTH)[0]), unit(np.eye(WIDTH)[0] + np.eye(WIDTH)[1])
        ids = [f"{n:03}" for n in range(50)]
        shuffled = np.random.default_rng(1).permutation(ids).tolist()
        await gallery.put([image(id, vector=far) for id in shuffled])
        await gallery.put([image("best", vector=near)])
        paged_ids = []
        for offset in range(0, 51, 7):
            paged_ids += [hit.id for hit in await gallery.search(near, top_k=7, offset=offset)]
        assert paged_ids == ["best", *ids]

    with_gallery(tmp_path, use)


def test_an_empty_gallery(tmp_path: Path) -> None:
    async def use(gallery: Gallery) -> None:
        assert await gallery.search(vectors(1)[0], top_k=3) == []
        assert await gallery.page(None, 3) == []
        assert await gallery.count() == 0
        assert await gallery.delete(["a"]) == 0
        assert (await gallery.stats()).images == 0

    with_gallery(tmp_path, use)
