"""Group commit: waiting callers share a commit, and its failure."""

from __future__ import annotations

import asyncio

import pytest

from tokenfold.service.galleries.commits import Commits


class Log:
    """A commit function that waits for `gate` and records its groups."""

    def __init__(self, max_items: int = 100) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.commits = Commits(self.commit, max_items)

    async def commit(self, items: list[int]) -> list[str]:
        self.groups.append(items)
        await self.gate.wait()
        if -1 in items:
            raise ValueError("no")
        return [str(item) for item in items]

    async def put(self, *items: int) -> list[str]:
        return await self.commits.put(items)


async def start(*puts: object) -> list[asyncio.Task[list[str]]]:
    """Start tasks and let them run until they wait."""
    tasks = [asyncio.ensure_future(put) for put in puts]  # type: ignore[call-overload]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_waiting_items_share_a_commit() -> None:
    async def run() -> None:
        log = Log()
        tasks = await start(log.put(1), log.put(2, 3), log.put(4))
        assert log.groups == [[1, 2, 3, 4]]
        later_tasks = await start(log.put(5), log.put(6))
        log.gate.set()
        assert await asyncio.gather(*tasks, *later_tasks) == [
            ["1"],
            ["2", "3"],
            ["4"],
            ["5"],
            ["6"],
        ]
        assert log.groups == [[1, 2, 3, 4], [5, 6]]
        assert await log.put(7) == ["7"]

    asyncio.run(run())


def test_groups_are_limited_and_callers_are_not_split() -> None:
    async def run() -> None:
        log = Log(max_items=3)
        tasks = await start(log.put(1, 2), log.put(3, 4), log.put(5), log.put(6, 7, 8, 9))
        log.gate.set()
        await asyncio.gather(*tasks)
        assert log.groups == [[1, 2], [3, 4, 5], [6, 7, 8, 9]]

    asyncio.run(run())


def test_a_failed_commit_fails_only_its_group() -> None:
    async def run() -> None:
        log = Log(max_items=2)
        tasks = await start(log.put(1), log.put(-1), log.put(2))
        log.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["no", "no", "['2']"]

    asyncio.run(run())


def test_a_cancelled_caller_does_not_affect_others() -> None:
    async def run() -> None:
        log = Log()
        cancelled, other = await start(log.put(1), log.put(2))
        cancelled.cancel()
        log.gate.set()
        assert await other == ["2"]
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await log.commits.settled()
        assert log.groups == [[1, 2]]

    asyncio.run(run())


def test_settled_waits_for_pending_items() -> None:
    async def run() -> None:
        log = Log()
        (task,) = await start(log.put(1))
        (settled,) = await start(log.commits.settled())
        assert not settled.done()
        log.gate.set()
        await settled
        assert task.done()

    asyncio.run(run())
