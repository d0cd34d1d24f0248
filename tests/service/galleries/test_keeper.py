"""Opening the galleries of a server, failing to open them, and closing them."""

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


def make_keeper(uri: Path | str) -> tuple[Keeper, CollectorRegistry]:
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


def test_concurrent_requests_open_once(tmp_path: Path) -> None:
    async def run() -> None:
        galleries_keeper, _ = make_keeper(tmp_path)
        first, second = await asyncio.gather(
            galleries_keeper.galleries(), galleries_keeper.galleries()
        )
        assert first is second
        await galleries_keeper.stop()

    asyncio.run(run())


def test_opening_is_retried_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        galleries_keeper, _ = make_keeper(tmp_path / "file" / "data")
        galleries_keeper.start()
        with pytest.raises(StorageFailed):
            await galleries_keeper.galleries()
        (tmp_path / "file").unlink()
        (tmp_path / "file").mkdir()
        with pytest.raises(StorageFailed):  # too soon for a retry
            await galleries_keeper.galleries()
        monkeypatch.setattr(keeper, "_RETRY_AFTER", 0.0)
        assert await (await galleries_keeper.galleries()).list() == []
        await galleries_keeper.stop()

    (tmp_path / "file").write_text("no folder")
    asyncio.run(run())


def test_nothing_is_opened_after_stop(tmp_path: Path) -> None:
    async def run() -> None:
        galleries_keeper, _ = make_keeper(tmp_path)
        galleries_keeper.start()
        await galleries_keeper.stop()
        with pytest.raises(StorageFailed):
            await galleries_keeper.galleries()

    asyncio.run(run())


def test_galleries_of_other_servers_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_COUNT_INTERVAL", 0.01)

    async def run() -> None:
        galleries_keeper, registry = make_keeper(tmp_path)
        other_keeper, _ = make_keeper(tmp_path)
        await (await other_keeper.galleries()).create(info("shared"))
        galleries_keeper.start()

        async def until(value: float | None) -> None:
            async with asyncio.timeout(10):
                while (
                    registry.get_sample_value("tokenfold_gallery_images", {"gallery": "shared"})
                    != value
                ):
                    await asyncio.sleep(0.01)

        await until(0)
        await (await other_keeper.galleries()).delete("shared")
        await until(None)
        await galleries_keeper.stop()
        await other_keeper.stop()

    asyncio.run(run())
