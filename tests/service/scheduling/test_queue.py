"""Queues: order, batches and room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.inference.backend import Call, Sample
from tokenfold.inference.errors import TooSlowNow
from tokenfold.service.errors import QueueFull
from tokenfold.service.scheduling.queue import Lane, Places, Queues

FOREVER = float("inf")


class Device:
    native = False

    def __init__(self, most: int = 1, max_concurrent_runs: int | None = None) -> None:
        self.most = most
        self.max_concurrent_runs = max_concurrent_runs

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, self.most)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        raise AssertionError((samples, call, slots))

    def close(self) -> None: ...


class Job(NamedTuple):
    lane: Lane
    order: tuple[int, int]


def lane(device: Device, plan: int = 0) -> Lane:
    return Lane(device, Call("answer", "classify", ((plan,),), ((1, 1),)))


def fill(queues: Queues[Job], *jobs: Job) -> None:
    for job in jobs:
        queues.add(job)


def test_the_first_request_goes_first() -> None:
    queues: Queues[Job] = Queues()
    device = Device(most=8)
    one, other = lane(device, 1), lane(device, 2)
    jobs = [Job(one, (0, 1)), Job(other, (0, 0)), Job(one, (0, 3)), Job(other, (0, 2))]
    assert not queues
    fill(queues, *jobs)
    # A later step of an earlier request goes before what came in between.
    fill(queues, Job(one, (0, 2)))
    assert queues.next() == [jobs[1], jobs[3]]
    assert queues
    assert [job.order[1] for job in queues.next()] == [1, 2, 3]
    assert not queues
    assert queues.next() == []


def test_a_device_takes_as_many_runs_as_it_wants() -> None:
    queues: Queues[Job] = Queues()
    gpu, cpu = Device(most=2, max_concurrent_runs=2), Device()
    first, second = lane(gpu, 1), lane(gpu, 2)
    fill(queues, *(Job(first, (0, at)) for at in range(4)), Job(second, (0, 4)))
    fill(queues, Job(lane(cpu), (0, 5)), Job(lane(cpu), (0, 6)))
    assert [job.order[1] for job in queues.next()] == [0, 1]
    assert [job.order[1] for job in queues.next()] == [2, 3]
    # What waits for the device does not hold up what runs elsewhere.
    assert [job.order[1] for job in queues.next()] == [5]
    assert [job.order[1] for job in queues.next()] == [6]
    assert queues
    assert queues.next() == []
    queues.ended(first)
    assert [job.order[1] for job in queues.next()] == [4]
    assert not queues


def test_a_device_that_wants_fewer_than_wait_is_asked() -> None:
    class Rounds(Device):
        def batch_size_for(self, _: Call, waiting: int, /) -> int:
            return 4 if waiting >= 4 else waiting

    queues: Queues[Job] = Queues()
    own = lane(Rounds())
    fill(queues, *(Job(own, (0, at)) for at in range(6)))
    assert [len(queues.next()), len(queues.next())] == [4, 2]


def test_what_is_removed_does_not_run() -> None:
    queues: Queues[Job] = Queues()
    own = lane(Device(most=9))
    jobs = [Job(own, (0, at)) for at in range(3)]
    fill(queues, *jobs)
    queues.remove(jobs[1])
    assert queues.next() == [jobs[0], jobs[2]]
    fill(queues, jobs[0])
    queues.remove(jobs[0])
    assert not queues


def test_nobody_waits_for_an_idle_worker() -> None:
    places = Places(limit=10, workers=2)
    # Of 1 s and 3 s, by two workers.
    places.take([0.5, 1.5], longest=3.0, within=FOREVER)
    assert places.wait == 2.0  # one after the other
    places.begin(0.5)
    assert places.wait == 1.75  # what runs is half done
    places.begin(1.5)
    assert places.wait == 1.0
    places.end(0.5)
    assert places.wait == 0.0


def test_there_is_room_for_all_or_none() -> None:
    places = Places(limit=3, workers=1)
    places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    places.check(1)
    with pytest.raises(QueueFull, match="2 items wait, and at most 3 may") as refused:
        places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    assert refused.value.retry_after == 2
    assert places.waiting == 2


def test_nobody_waits_in_vain() -> None:
    places = Places(limit=3, workers=1)
    places.take([2.0], longest=2.0, within=2.0)
    with pytest.raises(TooSlowNow, match=r"take about 2\.0 s, and the request has 2\.5 s"):
        places.take([0.1, 1.0], longest=1.0, within=2.5)
    assert places.waiting == 1


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.booleans()), min_size=1))
def test_what_came_and_went_leaves_nothing(items: list[tuple[float, bool]]) -> None:
    places = Places(limit=len(items), workers=1)
    places.take([cost for cost, _ in items], longest=1.0, within=FOREVER)
    for cost, runs in items:
        if runs:
            places.begin(cost)
        else:
            places.leave(cost)
    for cost, runs in items:
        if runs:
            places.end(cost)
    assert (places.waiting, places.running, places.wait) == (0, 0, 0.0)
    places.take([1.0], longest=1.0, within=FOREVER)
    assert places.wait == 1.0
