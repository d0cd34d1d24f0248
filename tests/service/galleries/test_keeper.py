"""The galleries of a server that starts, fails to open them, and stops."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tokenfold.service.errors import StorageFailed
from tokenfold.service.galleries import keeper
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.galleries.metrics import GalleryMetrics
from tokenfold.service.galleries.record import GalleryInfo


def kept(uri: Path | str) -> tuple[Keeper, CollectorRegistry]:
    registry = CollectorRegistry()
    return Keeper(str(uri), GalleryMetrics(registry)), registry


def info(name: str) -> GalleryInfo:
    return GalleryInfo(
        name=name,
        model="m",
        fingerprint="f",
        level="exact",
        requested=0,
        plan=(0, 0),
        width=4,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_it_opens_once(tmp_path: Path) -> None:
    async def run() -> None:
        one, _ = kept(tmp_path)
        first, second = await asyncio.gather(one.galleries(), one.galleries())
        assert first is second
        await one.stop()

    asyncio.run(run())


def test_a_failure_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        one, _ = kept(tmp_path / "file" / "data")
        one.start()
        with pytest.raises(StorageFailed):
            await one.galleries()
        (tmp_path / "file").unlink()
        (tmp_path / "file").mkdir()
        with pytest.raises(StorageFailed):  # not so soon
            await one.galleries()
        monkeypatch.setattr(keeper, "_PATIENCE", 0.0)
        assert await (await one.galleries()).list() == []
        await one.stop()

    (tmp_path / "file").write_text("no folder")
    asyncio.run(run())


def test_nothing_is_opened_after_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        one, _ = kept(tmp_path)
        one.start()
        await one.stop()
        with pytest.raises(StorageFailed):
            await one.galleries()

    asyncio.run(run())


def test_galleries_of_other_servers_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_BETWEEN_COUNTS", 0.01)

    async def run() -> None:
        one, registry = kept(tmp_path)
        other, _ = kept(tmp_path)
        await (await other.galleries()).create(info("shared"))
        one.start()

        async def until(value: float | None) -> None:
            async with asyncio.timeout(10):
                while (
                    registry.get_sample_value("tokenfold_gallery_images", {"gallery": "shared"})
                    != value
                ):
                    await asyncio.sleep(0.01)

        await until(0)
        await (await other.galleries()).delete("shared")
        await until(None)
        await one.stop()
        await other.stop()

    asyncio.run(run())
