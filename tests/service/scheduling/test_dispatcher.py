"""Tests of the dispatcher: admission, deadlines, callers that disconnect, and results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.standin import bundle, picture, settings, until
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Call, Sample
from tokenfold.inference.errors import ImageFormat, InvalidRequest, TooSlowNow
from tokenfold.inference.levels import Selector
from tokenfold.inference.request import Item, ItemResult, Request, all_succeeded
from tokenfold.service.core import Core
from tokenfold.service.errors import Abandoned, Expired
from tokenfold.service.scheduling.catalog import ServedModel


class Blocked:
    """A backend whose runs wait while `gate` is cleared."""

    max_concurrent_runs = None

    def __init__(self, opened: Bundle) -> None:
        self._inner = sessions.load(opened)
        self.native = self._inner.native
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        return self._inner.batch_size_for(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        self.runs += 1
        assert self.gate.wait(20)
        return self._inner.run(samples, call, slots=slots)

    def close(self) -> None:
        self._inner.close()


class Server:
    """A server's core with one model, whose backend can be blocked."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.backend: Blocked
        self.core = Core(
            settings(root, workers=1, **changes), kinds=[StubKind("cpu", "cpu", self._load)]
        )
        self.core.start()
        until(lambda: self.core.started or self.core.failed is not None)
        assert self.core.failed is None

    def _load(self, opened: Bundle) -> Blocked:
        self.backend = Blocked(opened)
        return self.backend

    @property
    def model(self) -> ServedModel:
        return self.core.catalog.get("colours")

    def stop(self) -> None:
        self.backend.gate.set()
        self.core.stop()
        self.core.join_loader()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    bundle(tmp_path / "a")
    started = Server(tmp_path, queue_limit=4, max_items=4)
    yield started
    started.stop()


def request(*images: bytes, **fields: Any) -> Request:
    items = [Item((index,)) for index in range(len(images))]
    return Request(model="colours", task="classify", items=items, images=images, **fields)


async def connected() -> None:
    """Wait forever, as for the disconnection of a caller that stays."""
    await asyncio.Event().wait()


async def disconnected() -> None:
    """Return at once, as for a caller that has disconnected."""


def test_each_item_gets_its_result_or_its_error(server: Server) -> None:
    mixed = request(picture("red"), b"no image", picture("blue"), selector=Selector(level="fast"))
    result = asyncio.run(server.core.dispatcher.answer(server.model, mixed, disconnect=connected))
    assert result.choice.level == "fast"
    first, second, third = result.items
    assert isinstance(first, ItemResult)
    assert isinstance(second, ImageFormat)
    assert isinstance(third, ItemResult)
    assert first.output["logits"].argmax() == 0
    assert third.output["logits"].argmax() == 2
    with pytest.raises(ImageFormat):
        all_succeeded(result.items)


def test_a_caller_that_disconnects_abandons_its_request(server: Server) -> None:
    runs = server.backend.runs
    server.backend.gate.clear()
    with pytest.raises(Abandoned):
        asyncio.run(
            server.core.dispatcher.answer(
                server.model, request(picture(), picture()), disconnect=disconnected
            )
        )
    assert server.core.scheduler.depth == 0
    server.backend.gate.set()
    until(lambda: server.core.scheduler.pending == 0)
    assert server.backend.runs <= runs + 1  # the second image never ran


def test_items_that_are_not_finished_in_time_have_expired(tmp_path: Path) -> None:
    bundle(tmp_path / "a")
    server = Server(tmp_path, request_timeout=0.3)
    try:
        server.backend.gate.clear()
        result = asyncio.run(server.core.dispatcher.answer(server.model, request(picture())))
        (item,) = result.items
        assert isinstance(item, Expired)
        assert "0.3 s" in item.detail
    finally:
        server.stop()


def test_a_request_whose_deadline_has_passed_is_refused(server: Server) -> None:
    runs = server.backend.runs
    with pytest.raises(TooSlowNow):
        asyncio.run(server.core.dispatcher.answer(server.model, request(picture(), deadline=0.0)))
    assert server.backend.runs == runs


def test_a_request_with_more_runs_than_may_wait_is_refused(server: Server) -> None:
    with pytest.raises(InvalidRequest, match="needs 5 runs of the model; at most 4"):
        asyncio.run(server.core.dispatcher.plan(server.model, request(*[picture()] * 5)))


def test_a_choice_made_before_is_kept(server: Server) -> None:
    choice = server.model.levels.choose(Selector(reduction=0.25), "classify")
    planned = asyncio.run(
        server.core.dispatcher.plan(server.model, request(picture(), selector=choice))
    )
    assert planned.choice is choice
