"""Creation and deletion of galleries are atomic and visible to all processes."""

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


def with_two_stores(folder: Path, use: Callable[[Galleries, Galleries], Awaitable[None]]) -> None:
    """Run a test with two stores that share only the files, as two processes do."""

    async def run() -> None:
        first_store, second_store = (
            await Galleries.open(str(folder)),
            await Galleries.open(str(folder)),
        )
        await use(first_store, second_store)
        await first_store.close()
        await second_store.close()

    asyncio.run(run())


async def names(galleries: Galleries) -> list[str]:
    return [gallery.info.name for gallery in await galleries.list()]


def test_every_process_sees_all_galleries(tmp_path: Path) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        assert await names(first_store) == []
        created = await first_store.create(info("b"))
        assert created.info == info("b")
        opened = await second_store.get("b")
        assert opened.info == info("b")
        assert await second_store.get("b") is opened
        await second_store.create(info("a", level="exact", plan=(), width=3))
        assert await names(first_store) == await names(second_store) == ["a", "b"]
        assert (await first_store.get("a")).info == info("a", level="exact", plan=(), width=3)
        await created.put([image("x")])
        assert await opened.count() == 1
        with pytest.raises(GalleryExists, match="'b'"):
            await second_store.create(info("b", level="exact"))
        assert (await second_store.get("b")).info.level == "balanced"
        with pytest.raises(UnknownGallery, match="'nobody'"):
            await first_store.get("nobody")

    with_two_stores(tmp_path, use)


def test_a_deleted_gallery_is_gone_for_all_processes(tmp_path: Path) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        await (await first_store.create(info())).put([image("a")])
        await first_store.create(info("other"))
        gallery = await second_store.get("holiday")
        await first_store.delete("holiday")
        requests: list[Awaitable[object]] = [
            gallery.put([image("b")]),
            gallery.search(vectors(1)[0], top_k=1),
            gallery.fetch("a"),
            gallery.page(None, 3),
            gallery.delete(["a"]),
            second_store.get("holiday"),
            second_store.delete("holiday"),
            first_store.get("holiday"),
        ]
        for request in requests:
            with pytest.raises(UnknownGallery, match="'holiday'"):
                await request
        assert await names(first_store) == await names(second_store) == ["other"]

    with_two_stores(tmp_path, use)


def test_a_recreated_gallery_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        for width in (3, 4, 5):
            deleted_gallery = await second_store.create(info(width=width))
            await deleted_gallery.put([image("a", width=width)])
            assert await (await first_store.get("holiday")).count() == 1
            await first_store.delete("holiday")
        recreated = await first_store.create(info())
        assert await recreated.count() == 0
        with pytest.raises(UnknownGallery):
            await deleted_gallery.put([image("b", width=5)])
        assert await names(second_store) == ["holiday"]
        assert (await second_store.get("holiday")).info.width == WIDTH
        assert len(list((tmp_path / "galleries").iterdir())) == 4
        await second_store.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 4
        monkeypatch.setattr(store, "DELETION_DELAY", 0.0)
        await second_store.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 1
        assert await (await first_store.get("holiday")).count() == 0
        with pytest.raises(UnknownGallery):
            await deleted_gallery.put([image("b", width=5)])

    with_two_stores(tmp_path, use)


def test_deleting_frees_disk_space(tmp_path: Path) -> None:
    async def use(first_store: Galleries, _: Galleries) -> None:
        gallery = await first_store.create(info())
        for n in range(5):
            await gallery.put([image(f"{n}")._replace(thumbnail=bytes(100_000))])
        assert used(tmp_path) > 100_000
        await first_store.delete("holiday")
        assert used(tmp_path) < 20_000

    def used(place: Path) -> int:
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())

    with_two_stores(tmp_path, use)


def test_one_of_several_creators_succeeds(tmp_path: Path) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        for _ in range(10):
            results = await asyncio.gather(
                *(
                    store_or_result.create(info(level=f"{n}"))
                    for n, store_or_result in enumerate([first_store, second_store] * 3)
                ),
                return_exceptions=True,
            )
            created = [
                store_or_result
                for store_or_result in results
                if not isinstance(store_or_result, BaseException)
            ]
            assert [type(store_or_result) for store_or_result in results].count(GalleryExists) == 5
            assert (await first_store.get("holiday")).info == (
                await second_store.get("holiday")
            ).info
            assert created[0].info == (await first_store.get("holiday")).info
            await second_store.delete("holiday")

    with_two_stores(tmp_path, use)


def test_adding_during_deletion(tmp_path: Path) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        for turn in range(5):
            await first_store.create(info())
            gallery = await second_store.get("holiday")
            puts = [gallery.put([image(f"{turn}-{n}")]) for n in range(20)]
            *results, _ = await asyncio.gather(
                *puts, first_store.delete("holiday"), return_exceptions=True
            )
            for result in results:
                assert result == ["added"] or isinstance(result, UnknownGallery), result
            assert await names(first_store) == await names(second_store) == []

    with_two_stores(tmp_path, use)


def test_leftover_files_are_not_galleries(tmp_path: Path) -> None:
    async def use(first_store: Galleries, _: Galleries) -> None:
        folder = tmp_path / "galleries"
        incomplete = folder / f"{0:016}-holiday.lance" / "data"
        incomplete.mkdir(parents=True)
        (incomplete / "half.lance").write_bytes(b"half")
        (folder / "notes.txt").write_text("mine")
        (folder / "some.lance").mkdir()
        assert await names(first_store) == []
        with pytest.raises(UnknownGallery):
            await first_store.get("holiday")
        gallery = await first_store.create(info())
        assert await gallery.put([image("a")]) == ["added"]
        await first_store.delete("holiday")
        await first_store.create(info())

    with_two_stores(tmp_path, use)


def test_a_broken_gallery_does_not_hide_others(tmp_path: Path) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        for name in ("broken", "whole"):
            await (await first_store.create(info(name))).put([image("a")])
        (broken,) = (tmp_path / "galleries").glob("*-broken.lance")
        for manifest in (broken / "_versions").glob("*.manifest"):
            manifest.write_bytes(b"no manifest")
        assert await names(second_store) == ["whole"]
        with pytest.raises(StorageFailed):
            await second_store.get("broken")

    with_two_stores(tmp_path, use)


def test_an_interrupted_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        await first_store._connection.create_table(f"{0:016}-holiday", schema=mark(PENDING))
        assert await names(second_store) == []
        with pytest.raises(GalleryExists, match="Another request is creating"):
            await second_store.create(info())
        monkeypatch.setattr(store, "CREATION_TIMEOUT", 0.0)
        await second_store.create(info())
        assert await names(first_store) == ["holiday"]
        monkeypatch.setattr(store, "DELETION_DELAY", 0.0)
        await first_store.sweep()
        assert len(list((tmp_path / "galleries").iterdir())) == 1
        assert await names(second_store) == ["holiday"]

    monkeypatch.setattr(store, "_ATTEMPTS", 3)
    with_two_stores(tmp_path, use)


def test_a_failed_creation_does_not_block_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        make = first_store._connection.create_table

        async def full(*names: Any, **options: Any) -> Any:
            if "mode" in options:  # the second step of the creation
                raise RuntimeError("No space left on device (os error 28)")
            return await make(*names, **options)

        monkeypatch.setattr(first_store._connection, "create_table", full)
        with pytest.raises(StorageFull):
            await first_store.create(info())
        await second_store.create(info())
        assert await names(first_store) == ["holiday"]

    monkeypatch.setattr(store, "_ATTEMPTS", 1)
    with_two_stores(tmp_path, use)


def test_the_metadata_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(first_store: Galleries, _: Galleries) -> None:
        gallery = await first_store.create(info())
        for n in range(40):
            await gallery.put([image(f"{n}")])
        assert first_store._session.size_bytes < 2 * store.METADATA_CACHE_BYTES
        assert await gallery.count() == 40

    monkeypatch.setattr(store, "METADATA_CACHE_BYTES", 200_000)  # 40 versions are 1.4 MB
    with_two_stores(tmp_path, use)


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "1-a", "x" * 64, "a.lance"])
def test_valid_names(tmp_path: Path, name: str) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        await first_store.create(info(name))
        assert await names(second_store) == [name]
        await second_store.delete(name)
        assert await names(first_store) == []

    with_two_stores(tmp_path, use)


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "..", "x" * 65, "é", "a\n"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(ValidationError):
        info(name)


def test_listing_follows_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(first_store: Galleries, second_store: Galleries) -> None:
        for n in range(7):
            await first_store.create(info(f"g{n}"))
        assert await names(second_store) == [f"g{n}" for n in range(7)]

    monkeypatch.setattr("tokenfold.service.galleries.store._PAGE", 3)
    with_two_stores(tmp_path, use)


def test_a_data_directory_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that ~ is expanded: shells do not expand it in --data-dir=~/data."""

    async def run() -> None:
        galleries = await Galleries.open("~/data")
        await galleries.create(info())
        await galleries.close()

    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    asyncio.run(run())
    assert [folder.name for folder in (tmp_path / "home" / "data").iterdir()] == ["galleries"]
    assert list((tmp_path / "here").iterdir()) == []


def test_an_unusable_data_directory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")

    async def run() -> None:
        galleries = await Galleries.open(str(blocked))
        await galleries.create(info())

    with pytest.raises(StorageFailed) as caught:
        asyncio.run(run())
    assert isinstance(caught.value, RequestError)


def test_lancedb_is_imported_lazily() -> None:
    # The import takes a second of processor time.
    code = (
        "import sys, tokenfold.service.galleries.upkeep; "
        "print([name for name in ('lancedb', 'pyarrow', 'torch') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
