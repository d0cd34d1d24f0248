"""Queues: who is next, how many, and who has to wait for a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenfold.inference.backend import Call, Sample
from tokenfold.service.scheduling.queue import Lane, Queues


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
    order: int


def lane(device: Device, plan: int = 0) -> Lane:
    return Lane(device, Call("answer", "classify", ((plan,),), ((1, 1),)))


def fill(queues: Queues[Job], *jobs: Job) -> None:
    for job in jobs:
        queues.add(job)


def test_the_first_request_goes_first() -> None:
    queues: Queues[Job] = Queues()
    device = Device(most=8)
    one, other = lane(device, 1), lane(device, 2)
    jobs = [Job(one, 1), Job(other, 0), Job(one, 3), Job(other, 2)]
    assert not queues
    fill(queues, *jobs)
    # A later step of an earlier request goes before what came in between.
    fill(queues, Job(one, 2))
    assert queues.next() == [jobs[1], jobs[3]]
    assert queues
    assert [job.order for job in queues.next()] == [1, 2, 3]
    assert not queues
    assert queues.next() == []


def test_a_device_takes_as_many_runs_as_it_wants() -> None:
    queues: Queues[Job] = Queues()
    gpu, cpu = Device(most=2, max_concurrent_runs=2), Device()
    first, second = lane(gpu, 1), lane(gpu, 2)
    fill(queues, *(Job(first, at) for at in range(4)), Job(second, 4))
    fill(queues, Job(lane(cpu), 5), Job(lane(cpu), 6))
    assert [job.order for job in queues.next()] == [0, 1]
    assert [job.order for job in queues.next()] == [2, 3]
    # What waits for the device does not hold up what runs elsewhere.
    assert [job.order for job in queues.next()] == [5]
    assert [job.order for job in queues.next()] == [6]
    assert queues
    assert queues.next() == []
    queues.ended(first)
    assert [job.order for job in queues.next()] == [4]
    assert not queues


def test_a_device_that_wants_fewer_than_wait_is_asked() -> None:
    class Rounds(Device):
        def batch_size_for(self, _: Call, waiting: int, /) -> int:
            return 4 if waiting >= 4 else waiting

    queues: Queues[Job] = Queues()
    own = lane(Rounds())
    fill(queues, *(Job(own, at) for at in range(6)))
    assert [len(queues.next()), len(queues.next())] == [4, 2]


def test_what_is_removed_does_not_run() -> None:
    queues: Queues[Job] = Queues()
    own = lane(Device(most=9))
    jobs = [Job(own, at) for at in range(3)]
    fill(queues, *jobs)
    queues.remove(jobs[1])
    assert queues.next() == [jobs[0], jobs[2]]
    fill(queues, jobs[0])
    queues.remove(jobs[0])
    assert not queues
