"""Group commit: who waits goes together, and fails together."""

from __future__ import annotations

import asyncio

import pytest

from tokenfold.service.galleries.commits import Commits


class Log:
    """A commit that waits at a gate, and notes its groups."""

    def __init__(self, most: int = 100) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.commits = Commits(self.commit, most)

    async def commit(self, items: list[int]) -> list[str]:
        self.groups.append(items)
        await self.gate.wait()
        if -1 in items:
            raise ValueError("no")
        return [str(item) for item in items]

    async def put(self, *items: int) -> list[str]:
        return await self.commits.put(items)


async def started(*puts: object) -> list[asyncio.Task[list[str]]]:
    """Tasks that have come as far as they can."""
    tasks = [asyncio.ensure_future(put) for put in puts]  # type: ignore[call-overload]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_what_waits_goes_together() -> None:
    async def run() -> None:
        log = Log()
        tasks = await started(log.put(1), log.put(2, 3), log.put(4))
        assert log.groups == [[1, 2, 3, 4]]
        more = await started(log.put(5), log.put(6))
        log.gate.set()
        assert await asyncio.gather(*tasks, *more) == [["1"], ["2", "3"], ["4"], ["5"], ["6"]]
        assert log.groups == [[1, 2, 3, 4], [5, 6]]
        assert await log.put(7) == ["7"]

    asyncio.run(run())


def test_a_group_has_a_size_and_nobody_is_split() -> None:
    async def run() -> None:
        log = Log(most=3)
        tasks = await started(log.put(1, 2), log.put(3, 4), log.put(5), log.put(6, 7, 8, 9))
        log.gate.set()
        await asyncio.gather(*tasks)
        assert log.groups == [[1, 2], [3, 4, 5], [6, 7, 8, 9]]

    asyncio.run(run())


def test_a_group_fails_together_and_the_next_does_not() -> None:
    async def run() -> None:
        log = Log(most=2)
        tasks = await started(log.put(1), log.put(-1), log.put(2))
        log.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(each) for each in found] == ["no", "no", "['2']"]

    asyncio.run(run())


def test_a_caller_who_goes_away_leaves_the_others() -> None:
    async def run() -> None:
        log = Log()
        gone, other = await started(log.put(1), log.put(2))
        gone.cancel()
        log.gate.set()
        assert await other == ["2"]
        with pytest.raises(asyncio.CancelledError):
            await gone
        await log.commits.settled()
        assert log.groups == [[1, 2]]

    asyncio.run(run())


def test_settled_waits_for_what_was_put() -> None:
    async def run() -> None:
        log = Log()
        (task,) = await started(log.put(1))
        (settled,) = await started(log.commits.settled())
        assert not settled.done()
        log.gate.set()
        await settled
        assert task.done()

    asyncio.run(run())
