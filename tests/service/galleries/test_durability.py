"""Acknowledged images survive kill -9, concurrent writers and a full disk."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.service.galleries.made import assert_same, info
from tests.service.galleries.writers import BATCH, GALLERY, Order, row, writers
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.galleries.upkeep import index, optimize

KILLS = 50


def test_a_writer_killed_at_any_moment(tmp_path: Path) -> None:
    draw = random.Random(1)

    async def make_gallery() -> Gallery:
        galleries = await Galleries.open(str(tmp_path))
        return await galleries.create(info(GALLERY))

    async def image_ids(gallery: Gallery) -> set[str]:
        ids: set[str] = set()
        after = None
        while page := await gallery.page(after, 1000):
            ids |= {hit.id for hit in page}
            after = page[-1].id
        return ids

    with asyncio.Runner() as runner, writers() as children:
        gallery = runner.run(make_gallery())
        acknowledged: set[str] = set()
        first, resumed = 0, 0
        for _ in range(KILLS):
            children.begin(Order(str(tmp_path), first, 100_000, upkeep=draw.choice([0, 3, 7])))
            (child,) = children.hear()["began"]
            # Kill while the writer opens the gallery, or after its first answer.
            message = children.hear() if draw.random() < 0.9 else {}
            threading.Timer(draw.uniform(0.0, 0.25), os.kill, (child, signal.SIGKILL)).start()
            resumed += "put" in message
            while "ended" not in message:
                if "put" in message:
                    batch = range(message["put"], message["put"] + BATCH)
                    acknowledged |= {f"{n:06}" for n in batch}
                message = children.hear()
            assert message["ended"] == -signal.SIGKILL
            stored_ids = runner.run(image_ids(gallery))
            assert acknowledged <= stored_ids
            # Each batch is stored completely or not at all.
            assert len(stored_ids) % BATCH == 0
            assert stored_ids == {f"{n:06}" for n in range(len(stored_ids))}
            first = len(stored_ids)
        assert resumed > KILLS // 2
        assert len(acknowledged) >= resumed * BATCH
        compared = runner.run(read(gallery, sorted(acknowledged)))
        assert compared == len(acknowledged)


async def read(gallery: Gallery, ids: list[str]) -> int:
    """Compare all fields of some images and the thumbnails of all; return their number."""
    for id in ids[:: max(1, len(ids) // 50)]:
        assert_same(await gallery.fetch(id, vector=True), row(int(id)))
    thumbnails = await gallery.thumbnails(ids)
    assert all(thumbnails[id] == row(int(id)).thumbnail for id in ids)
    return len(thumbnails)


@pytest.mark.parametrize("indexed", [False, True])
def test_concurrent_writers_lose_nothing(tmp_path: Path, indexed: bool) -> None:
    """Check that images which several writers insert concurrently are stored once."""

    async def make_gallery() -> Gallery:
        galleries = await Galleries.open(str(tmp_path))
        gallery = await galleries.create(info(GALLERY))
        if indexed:
            await gallery.put([row(n) for n in range(900_000, 900_400)])
            await optimize(gallery)
            await index(gallery, 64)
        return gallery

    with asyncio.Runner() as runner, writers() as children:
        gallery = runner.run(make_gallery())
        children.begin(
            Order(str(tmp_path), 0, 80, content="a"),
            Order(str(tmp_path), 0, 80, content="b", upkeep=5),
            Order(str(tmp_path), 40, 80, content="c"),
        )
        messages = [children.hear()]
        while sum("ended" in line for line in messages) < 3:
            messages.append(children.hear())
        assert [line["ended"] for line in messages if "ended" in line] == [0, 0, 0]
        assert sum("put" in line for line in messages) == 3 * 80 // BATCH
        page = runner.run(gallery.page(None, 1000))
        ids = [hit.id for hit in page if hit.id < "900000"]
        assert ids == [f"{n:06}" for n in range(120)]
        assert runner.run(gallery.count()) == 120 + 400 * indexed
        for hit in page[:120]:
            stored = runner.run(gallery.fetch(hit.id, vector=True))
            assert_same(stored, row(int(hit.id), hit.metadata["by"]))


FULL = """
import asyncio, resource, signal, sys
from tokenfold.service.errors import (StorageFull)
from tokenfold.service.galleries.store import Galleries
from tests.service.galleries.made import assert_same, image, info, vectors

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

async def run(place):
    galleries = await Galleries.open(place)
    gallery = await galleries.create(info())
    small, large = image("small"), image("large")._replace(thumbnail=bytes(500_000))
    await gallery.put([small])
    limit(100_000)
    for _ in range(2):
        try:
            await gallery.put([large])
        except StorageFull as error:
            assert type(error).__name__ == "StorageFull"
            assert "adding to gallery holiday failed" in error.detail, error.detail
        else:
            raise AssertionError("kept it")
        assert_same(await gallery.fetch("small", vector=True), small)
        assert [hit.id for hit in await gallery.search(vectors(1)[0], top_k=3)] == ["small"]
        assert await gallery.count() == 1
    limit(0)
    for write in (galleries.create(info("other")), gallery.put([image("b")])):
        try:
            await write
        except StorageFull:
            pass
        else:
            raise AssertionError("wrote it")
    assert [each.info.name for each in await galleries.list()] == ["holiday"]
    assert_same(await gallery.fetch("small", vector=True), small)
    await galleries.delete("holiday")
    assert await galleries.list() == []
    limit(10**9)
    gallery = await galleries.create(info())
    assert await gallery.put([large]) == ["added"]

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(run(sys.argv[1]))
"""


def test_a_full_disk_can_be_read_and_emptied(tmp_path: Path) -> None:
    begin = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert time.monotonic() - begin < 200
