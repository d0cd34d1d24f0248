"""Galleries come and go whole, for every process that looks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.service.galleries.made import WIDTH, image, info, vectors
from tokenfold.inference.errors import RequestError
from tokenfold.service.errors import GalleryExists, StorageFailed, StorageFull, UnknownGallery
from tokenfold.service.galleries import store
from tokenfold.service.galleries.columns import PENDING, mark
from tokenfold.service.galleries.store import Galleries


def with_two(place: Path, use: Callable[[Galleries, Galleries], Awaitable[None]]) -> None:
    """Two that share nothing but the files, as two processes would."""

    async def run() -> None:
        one, other = await Galleries.open(str(place)), await Galleries.open(str(place))
        await use(one, other)
        await one.close()
        await other.close()

    asyncio.run(run())


async def names(galleries: Galleries) -> list[str]:
    return [gallery.info.name for gallery in await galleries.list()]


def test_every_process_sees_them(tmp_path: Path) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        assert await names(one) == []
        made = await one.create(info("b"))
        assert made.info == info("b")
        found = await other.get("b")
        assert found.info == info("b")
        assert await other.get("b") is found
        await other.create(info("a", level="exact", plan=(), width=3))
        assert await names(one) == await names(other) == ["a", "b"]
        assert (await one.get("a")).info == info("a", level="exact", plan=(), width=3)
        await made.put([image("x")])
        assert await found.count() == 1
        with pytest.raises(GalleryExists, match="'b'"):
            await other.create(info("b", level="exact"))
        assert (await other.get("b")).info.level == "balanced"
        with pytest.raises(UnknownGallery, match="'nobody'"):
            await one.get("nobody")

    with_two(tmp_path, use)


def test_a_deleted_one_is_gone_for_all(tmp_path: Path) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        await (await one.create(info())).put([image("a")])
        await one.create(info("other"))
        held = await other.get("holiday")
        await one.delete("holiday")
        asked: list[Awaitable[object]] = [
            held.put([image("b")]),
            held.search(vectors(1)[0], top_k=1),
            held.fetch("a"),
            held.page(None, 3),
            held.delete(["a"]),
            other.get("holiday"),
            other.delete("holiday"),
            one.get("holiday"),
        ]
        for each in asked:
            with pytest.raises(UnknownGallery, match="'holiday'"):
                await each
        assert await names(one) == await names(other) == ["other"]

    with_two(tmp_path, use)


def test_the_next_one_of_a_name_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        for width in (3, 4, 5):
            held = await other.create(info(width=width))
            await held.put([image("a", width=width)])
            assert await (await one.get("holiday")).count() == 1
            await one.delete("holiday")
        last = await one.create(info())
        assert await last.count() == 0
        with pytest.raises(UnknownGallery):
            await held.put([image("b", width=5)])
        assert await names(other) == ["holiday"]
        assert (await other.get("holiday")).info.width == WIDTH
        assert len(list((tmp_path / "galleries").iterdir())) == 4
        await other.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 4
        monkeypatch.setattr(store, "FORGET", 0.0)
        await other.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 1
        assert await (await one.get("holiday")).count() == 0
        with pytest.raises(UnknownGallery):
            await held.put([image("b", width=5)])

    with_two(tmp_path, use)


def test_deleting_frees_the_disk(tmp_path: Path) -> None:
    async def use(one: Galleries, _: Galleries) -> None:
        gallery = await one.create(info())
        for n in range(5):
            await gallery.put([image(f"{n}")._replace(thumbnail=bytes(100_000))])
        assert used(tmp_path) > 100_000
        await one.delete("holiday")
        assert used(tmp_path) < 20_000

    def used(place: Path) -> int:
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())

    with_two(tmp_path, use)


def test_one_of_two_creators_is_first(tmp_path: Path) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        for _ in range(10):
            found = await asyncio.gather(
                *(each.create(info(level=f"{n}")) for n, each in enumerate([one, other] * 3)),
                return_exceptions=True,
            )
            made = [each for each in found if not isinstance(each, BaseException)]
            assert [type(each) for each in found].count(GalleryExists) == 5
            assert (await one.get("holiday")).info == (await other.get("holiday")).info
            assert made[0].info == (await one.get("holiday")).info
            await other.delete("holiday")

    with_two(tmp_path, use)


def test_adding_to_what_is_being_deleted(tmp_path: Path) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        for turn in range(5):
            await one.create(info())
            held = await other.get("holiday")
            puts = [held.put([image(f"{turn}-{n}")]) for n in range(20)]
            *found, _ = await asyncio.gather(*puts, one.delete("holiday"), return_exceptions=True)
            for each in found:
                assert each == ["added"] or isinstance(each, UnknownGallery), each
            assert await names(one) == await names(other) == []

    with_two(tmp_path, use)


def test_leftovers_are_no_galleries(tmp_path: Path) -> None:
    async def use(one: Galleries, _: Galleries) -> None:
        place = tmp_path / "galleries"
        half = place / f"{0:016}-holiday.lance" / "data"
        half.mkdir(parents=True)
        (half / "half.lance").write_bytes(b"half")
        (place / "notes.txt").write_text("mine")
        (place / "some.lance").mkdir()
        assert await names(one) == []
        with pytest.raises(UnknownGallery):
            await one.get("holiday")
        gallery = await one.create(info())
        assert await gallery.put([image("a")]) == ["added"]
        await one.delete("holiday")
        await one.create(info())

    with_two(tmp_path, use)


def test_a_broken_gallery_hides_no_other(tmp_path: Path) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        for name in ("broken", "whole"):
            await (await one.create(info(name))).put([image("a")])
        (broken,) = (tmp_path / "galleries").glob("*-broken.lance")
        for manifest in (broken / "_versions").glob("*.manifest"):
            manifest.write_bytes(b"no manifest")
        assert await names(other) == ["whole"]
        with pytest.raises(StorageFailed):
            await other.get("broken")

    with_two(tmp_path, use)


def test_a_creation_that_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        await one._connection.create_table(f"{0:016}-holiday", schema=mark(PENDING))
        assert await names(other) == []
        with pytest.raises(GalleryExists, match="right now"):
            await other.create(info())
        monkeypatch.setattr(store, "PATIENCE", 0.0)
        await other.create(info())
        assert await names(one) == ["holiday"]
        monkeypatch.setattr(store, "FORGET", 0.0)
        await one.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 1
        assert await names(other) == ["holiday"]

    monkeypatch.setattr(store, "_ATTEMPTS", 3)
    with_two(tmp_path, use)


def test_one_that_failed_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        make = one._connection.create_table

        async def full(*names: Any, **options: Any) -> Any:
            if "mode" in options:  # the second half
                raise RuntimeError("No space left on device (os error 28)")
            return await make(*names, **options)

        monkeypatch.setattr(one._connection, "create_table", full)
        with pytest.raises(StorageFull):
            await one.create(info())
        await other.create(info())
        assert await names(one) == ["holiday"]

    monkeypatch.setattr(store, "_ATTEMPTS", 1)
    with_two(tmp_path, use)


def test_small_commits_are_not_all_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(one: Galleries, _: Galleries) -> None:
        gallery = await one.create(info())
        for n in range(40):
            await gallery.put([image(f"{n}")])
        assert one._session.size_bytes < 2 * store.MOST_REMEMBERED
        assert await gallery.count() == 40

    monkeypatch.setattr(store, "MOST_REMEMBERED", 200_000)  # 40 versions are 1.4 MB
    with_two(tmp_path, use)


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "1-a", "x" * 64, "a.lance"])
def test_names(tmp_path: Path, name: str) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        await one.create(info(name))
        assert await names(other) == [name]
        await other.delete(name)
        assert await names(one) == []

    with_two(tmp_path, use)


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "..", "x" * 65, "é", "a\n"])
def test_no_names(name: str) -> None:
    with pytest.raises(ValidationError):
        info(name)


def test_more_galleries_than_a_page_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(one: Galleries, other: Galleries) -> None:
        for n in range(7):
            await one.create(info(f"g{n}"))
        assert await names(other) == [f"g{n}" for n in range(7)]

    monkeypatch.setattr("tokenfold.service.galleries.store._PAGE", 3)
    with_two(tmp_path, use)


def test_a_place_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the ~ of --data-dir=~/data as it is."""

    async def run() -> None:
        galleries = await Galleries.open("~/data")
        await galleries.create(info())
        await galleries.close()

    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    asyncio.run(run())
    assert [each.name for each in (tmp_path / "home" / "data").iterdir()] == ["galleries"]
    assert list((tmp_path / "here").iterdir()) == []


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")

    async def run() -> None:
        galleries = await Galleries.open(str(blocked))
        await galleries.create(info())

    with pytest.raises(StorageFailed) as caught:
        asyncio.run(run())
    assert isinstance(caught.value, RequestError)


def test_lancedb_is_not_imported_before_it_is_needed() -> None:
    # It takes a second of a processor.
    code = (
        "import sys, tokenfold.service.galleries.upkeep; "
        "print([name for name in ('lancedb', 'pyarrow', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
