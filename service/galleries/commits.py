"""Group commit: items that arrive during a commit share the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_ITEMS = 1024  # per commit: some tens of MiB of thumbnails


class Commits(Generic[ItemT, ResultT]):
    """Collects items from many callers into consecutive commits."""

    def __init__(
        self, commit: Callable[[list[ItemT]], Awaitable[list[ResultT]]], max_items: int = MAX_ITEMS
    ) -> None:
        """Prepare; the first `put` starts committing.

        Args:
            commit: makes items durable and returns a result for each, in order; if it raises an
                error, no item is durable.
            max_items: maximum items per commit. The items of one caller are never split.
        """
        self._commit = commit
        self._max_items = max_items
        self._waiting: list[tuple[Sequence[ItemT], asyncio.Future[list[ResultT]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, items: Sequence[ItemT]) -> list[ResultT]:
        """Commit items and return their results once they are durable.

        Raises:
            Exception: the error that the commit raised.
        """
        future: asyncio.Future[list[ResultT]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def settled(self) -> None:
        """Wait until no items are pending."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            group = self._take()
            items = [item for request_items, _ in group for item in request_items]
            try:
                results = await self._commit(items)
            except Exception as error:
                for _, future in group:
                    _settle(future, error)
                continue
            except asyncio.CancelledError:
                for _, future in group + self._waiting:
                    future.cancel()
                self._waiting.clear()
                raise
            begin = 0
            for request_items, future in group:
                _settle(future, results[begin : begin + len(request_items)])
                begin += len(request_items)

    def _take(self) -> list[tuple[Sequence[ItemT], asyncio.Future[list[ResultT]]]]:
        count, size = 0, 0
        for items, _ in self._waiting:
            if count and size + len(items) > self._max_items:
                break
            count, size = count + 1, size + len(items)
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group


def _settle(future: asyncio.Future[list[ResultT]], outcome: list[ResultT] | Exception) -> None:
    # The caller may have gone away, which cancels its future.
    with contextlib.suppress(asyncio.InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
