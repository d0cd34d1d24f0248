"""Group commit: what is put while a commit is under way goes into the next one, together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_ITEMS = 1024  # of one commit: some tens of MiB of thumbnails


class Commits(Generic[Item, Result]):
    """Takes items from many callers to one commit after another."""

    def __init__(
        self, commit: Callable[[list[Item]], Awaitable[list[Result]]], most: int = MOST_ITEMS
    ) -> None:
        """Args:
        commit: makes items durable, all or, where it raises, none; a result for each, in order.
        most: items of one commit. The items of one caller are never split.
        """
        self._commit = commit
        self._most = most
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[list[Result]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, items: Sequence[Item]) -> list[Result]:
        """The results of these items, once they are durable.

        Raises:
            Exception: what the commit raised.
        """
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def settled(self) -> None:
        """Wait until nothing waits."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            group = self._take()
            items = [item for each, _ in group for item in each]
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
            for each, future in group:
                _settle(future, results[begin : begin + len(each)])
                begin += len(each)

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[list[Result]]]]:
        count, size = 0, 0
        for items, _ in self._waiting:
            if count and size + len(items) > self._most:
                break
            count, size = count + 1, size + len(items)
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group


def _settle(future: asyncio.Future[list[Result]], outcome: list[Result] | Exception) -> None:
    # Of a caller who went away the future is cancelled, perhaps just now.
    with contextlib.suppress(asyncio.InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
