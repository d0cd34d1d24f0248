"""Tests of the queues: order of runs, batch sizes, and bounded room."""

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
    """A backend that only has limits."""

    native = False

    def __init__(self, max_batch: int = 1, max_concurrent_runs: int | None = None) -> None:
        self.max_batch = max_batch
        self.max_concurrent_runs = max_concurrent_runs

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, self.max_batch)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        raise AssertionError((samples, call, slots))

    def close(self) -> None: ...


class Job(NamedTuple):
    """A queued item."""

    lane: Lane
    order: tuple[int, int]


def lane(device: Device, plan: int = 0) -> Lane:
    return Lane(device, Call("answer", "classify", ((plan,),), ((1, 1),)))


def fill(queues: Queues[Job], *jobs: Job) -> None:
    for job in jobs:
        queues.add(job)


def test_the_lane_of_the_earliest_request_runs_first() -> None:
    queues: Queues[Job] = Queues()
    device = Device(max_batch=8)
    first, second = lane(device, 1), lane(device, 2)
    jobs = [Job(first, (0, 1)), Job(second, (0, 0)), Job(first, (0, 3)), Job(second, (0, 2))]
    assert not queues
    fill(queues, *jobs)
    # A later step of an earlier request goes before the requests that came in between.
    fill(queues, Job(first, (0, 2)))
    assert queues.next() == [jobs[1], jobs[3]]
    assert queues
    assert [job.order[1] for job in queues.next()] == [1, 2, 3]
    assert not queues
    assert queues.next() == []


def test_a_device_has_at_most_its_maximum_of_concurrent_runs() -> None:
    queues: Queues[Job] = Queues()
    gpu, cpu = Device(max_batch=2, max_concurrent_runs=2), Device()
    first, second = lane(gpu, 1), lane(gpu, 2)
    fill(queues, *(Job(first, (0, number)) for number in range(4)), Job(second, (0, 4)))
    fill(queues, Job(lane(cpu), (0, 5)), Job(lane(cpu), (0, 6)))
    assert [job.order[1] for job in queues.next()] == [0, 1]
    assert [job.order[1] for job in queues.next()] == [2, 3]
    # Items that wait for one device do not delay those of another.
    assert [job.order[1] for job in queues.next()] == [5]
    assert [job.order[1] for job in queues.next()] == [6]
    assert queues
    assert queues.next() == []
    queues.ended(first)
    assert [job.order[1] for job in queues.next()] == [4]
    assert not queues


def test_the_backend_chooses_the_batch_size() -> None:
    class Rounds(Device):
        def batch_size_for(self, _: Call, waiting: int, /) -> int:
            return 4 if waiting >= 4 else waiting

    queues: Queues[Job] = Queues()
    device_lane = lane(Rounds())
    fill(queues, *(Job(device_lane, (0, number)) for number in range(6)))
    assert [len(queues.next()), len(queues.next())] == [4, 2]


def test_a_removed_job_does_not_run() -> None:
    queues: Queues[Job] = Queues()
    device_lane = lane(Device(max_batch=9))
    jobs = [Job(device_lane, (0, number)) for number in range(3)]
    fill(queues, *jobs)
    queues.remove(jobs[1])
    assert queues.next() == [jobs[0], jobs[2]]
    fill(queues, jobs[0])
    queues.remove(jobs[0])
    assert not queues


def test_the_wait_is_the_cost_of_waiting_items_and_half_of_the_running_ones() -> None:
    places = Places(limit=10, workers=2)
    # Runs of 1 s and 3 s, shared by two workers.
    places.take([0.5, 1.5], longest=3.0, within=FOREVER)
    assert places.wait == 2.0  # one after the other
    places.begin(0.5)
    assert places.wait == 1.75  # running items count half
    places.begin(1.5)
    assert places.wait == 1.0
    places.end(0.5)
    assert places.wait == 0.0


def test_a_request_gets_places_for_all_its_items_or_none() -> None:
    places = Places(limit=3, workers=1)
    places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    places.check(1)
    with pytest.raises(QueueFull, match="2 items wait, and at most 3 may") as refused:
        places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    assert refused.value.retry_after == 2
    assert places.waiting == 2


def test_a_request_that_cannot_end_in_time_is_refused() -> None:
    places = Places(limit=3, workers=1)
    places.take([2.0], longest=2.0, within=2.0)
    with pytest.raises(TooSlowNow, match=r"take about 2\.0 s, and the request has 2\.5 s"):
        places.take([0.1, 1.0], longest=1.0, within=2.5)
    assert places.waiting == 1


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.booleans()), min_size=1))
def test_counts_and_costs_return_to_zero(items: list[tuple[float, bool]]) -> None:
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
