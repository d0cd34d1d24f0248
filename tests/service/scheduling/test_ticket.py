"""Tests of tickets: costs, outcomes and cancellation."""

from __future__ import annotations

import numpy as np

from tokenfold.inference.backend import Call, Sample
from tokenfold.inference.errors import ImageError
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.ticket import Job, RunOutput, Ticket


class Idle:
    """A backend that runs nothing."""

    native = False
    max_concurrent_runs = None

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return waiting

    def run(self, *_: object, **__: object) -> list[Sample]:
        raise AssertionError("nothing must run")

    def close(self) -> None: ...


LANE = Lane(Idle(), Call("answer", "classify", ((0,),), ((1, 1),)))
OUTPUT = RunOutput({"logits": np.zeros(1)}, 1, 0.1, 1.0)


def ticket(*costs: float, priority: int = 0) -> Ticket:
    return Ticket(costs, lambda: None, priority=priority)


def job(owner: Ticket, index: int = 0) -> Job:
    return Job(ticket=owner, index=index, lane=LANE, sample={})


def test_the_last_outcome_is_reported() -> None:
    owner = ticket(1.0, 2.0)
    assert not owner.settle(1, OUTPUT)
    assert owner.settle(0, ImageError("bad"))
    assert isinstance(owner.outcomes[0], ImageError)
    assert owner.outcomes[1] is OUTPUT


def test_a_cancelled_ticket_gives_back_what_has_not_started() -> None:
    owner = ticket(1.0, 2.0, 4.0)
    started, queued = job(owner, 0), job(owner, 1)
    owner.queue(started)
    owner.queue(queued)
    owner.begin(started)
    jobs, costs = owner.cancel()
    assert jobs == [queued]
    assert sorted(costs) == [2.0, 4.0]  # a queued run, and one that was not submitted
    assert owner.cancelled
    assert owner.cancel() == ([], [])


def test_the_last_outcome_of_a_cancelled_ticket_is_not_reported() -> None:
    owner = ticket(1.0)
    running = job(owner)
    owner.queue(running)
    owner.begin(running)
    owner.cancel()
    assert not owner.settle(0, OUTPUT)


def test_a_withdrawn_run_is_not_given_back_again() -> None:
    owner = ticket(1.0, 2.0)
    owner.withdraw(0)
    assert owner.cancel() == ([], [2.0])


def test_the_order_is_by_priority_then_by_number() -> None:
    jobs = []
    for number, priority in ((1, 0), (2, 5), (3, 0), (4, -1)):
        owner = ticket(1.0, priority=priority)
        owner.number = number
        jobs.append(job(owner))
    assert [item.ticket.number for item in sorted(jobs, key=lambda item: item.order)] == [
        2,
        1,
        3,
        4,
    ]
