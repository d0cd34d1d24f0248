"""Which run comes next: bounded queues, one per model and call, feeding a few worker threads.

A worker that is free takes the queue whose head's request came first, and as many items of it as
the backend takes in one run. So batches form while a device is busy, and nobody waits for one. A
device that has as many runs on their way as it wants is passed over.

Places are given out per request (a `Ticket`), before its images are decoded: a full server refuses
without work. A cancelled ticket leaves the queues at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenfold.service.errors import ApiError, Draining, InternalError
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.places import Places
from tokenfold.service.scheduling.queues import Lane, Queues
from tokenfold.service.scheduling.work import Works

logger = logging.getLogger(__name__)


class Done(NamedTuple):
    """An item's run.

    Attributes:
        output: by name in the graph.
        batch_size: items of the run, this one included.
        ran: seconds of the run.
        ended: when it was over, in seconds of perf_counter.
    """

    output: Sample
    batch_size: int
    ran: float
    ended: float


Outcome = Done | ApiError


@dataclass(slots=True, eq=False)
class _Job:
    ticket: Ticket
    index: int
    lane: Lane
    sample: Sample
    works: Works
    slots: bool
    then: Callable[[Outcome], None] | None
    order: int


class Ticket:
    """A request's places in the queue.

    Attributes:
        outcomes: of each item, in order; None while it is not there.
    """

    def __init__(
        self, scheduler: Scheduler, costs: Sequence[float], done: Callable[[], None]
    ) -> None:
        """Args:
        costs: what each item adds to the wait of those behind it, in seconds.
        """
        self.outcomes: list[Outcome | None] = [None] * len(costs)
        self._scheduler = scheduler
        self._costs = costs
        self._done = done
        self._left = len(costs)
        self._cancelled = False
        self._order: int | None = None  # of its first item
        self._queued: set[_Job] = set()
        self._held = set(range(len(costs)))  # holding a place: not yet submitted, or queued

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled

    def submit(
        self,
        index: int,
        lane: Lane,
        sample: Sample,
        *,
        works: Works = (),
        slots: bool = False,
        then: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Queue item `index`. From any thread, once for each item.

        Args:
            works: what the run costs, for the observer.
            then: told of the outcome, in the worker, before the whole ticket can be done. It must
                not raise.
        """
        self._scheduler._submit(self, index, lane, sample, works, slots, then)

    def fail(self, index: int, error: ApiError) -> None:
        """Settle item `index` without a run. From any thread."""
        self._scheduler._fail(self, index, error)

    def cancel(self) -> None:
        """Give up what has not begun to run; `done` is not called any more."""
        self._scheduler._cancel(self)


Observer = Callable[[Lane, Sequence[Works], float], None]


class Scheduler:
    """Queues and the threads that empty them."""

    def __init__(self, *, workers: int, limit: int, observer: Observer = lambda *_: None) -> None:
        """Args:
        workers: threads.
        limit: items that may wait, those still being decoded included.
        observer: told of each successful run, in the worker: lane, works of its items, seconds.
        """
        self._places = Places(limit=limit, workers=workers)
        self._share = 1.0 / workers
        self._observer = observer
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._queues: Queues[_Job] = Queues()
        self._order = 0
        self._draining = False
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{i}", daemon=True)
            for i in range(workers)
        ]

    @property
    def workers(self) -> int:
        """Threads, alive or not."""
        return len(self._threads)

    @property
    def depth(self) -> int:
        """Items that wait."""
        return self._places.waiting

    @property
    def pending(self) -> int:
        """Items that wait or run."""
        return self._places.waiting + self._places.running

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    @property
    def alive(self) -> bool:
        """Whether every worker lives."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def dead(self) -> bool:
        """Whether no worker lives: what is queued would never run."""
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def wait(self) -> float:
        """Seconds until a worker would take up a request that came now."""
        with self._lock:
            return self._places.wait

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on; those that have a place are answered."""
        self._draining = True

    def stop(self, timeout: float = 5.0) -> bool:
        """End the workers once the queues are empty; after `timeout` seconds leave them behind.

        Returns:
            Whether all have ended.
        """
        with self._lock:
            self._draining = self._stopped = True
            self._ready.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def check(self) -> None:
        """Whether there is room for anything, before anything is done for a request.

        Raises:
            QueueFull, Draining: see `admit`.
        """
        with self._lock:
            self._check_open()
            self._places.check(1)

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("The server is shutting down.", retry_after=1)

    def admit(
        self,
        costs: Sequence[float],
        *,
        within: float,
        done: Callable[[], None],
        share: float | None = None,
    ) -> Ticket:
        """Places for a request, or an error at once.

        Args:
            costs: expected seconds of each item's run; 1 or more.
            within: seconds that the request has.
            done: called once, from any thread, when every item is settled.
            share: of its run's time that an item takes from those behind it, who may share the run
                or run beside it; by default what one of the workers is among them.

        Raises:
            QueueFull: there is no room for all items.
            TooSlowNow: the longest one would not be done in time even if it came first.
            Draining: the server shuts down.
        """
        with self._lock:
            self._check_open()
            taken = [cost * (self._share if share is None else share) for cost in costs]
            self._places.take(taken, longest=max(costs), within=within)
            return Ticket(self, taken, done)

    def _submit(
        self,
        ticket: Ticket,
        index: int,
        lane: Lane,
        sample: Sample,
        works: Works,
        slots: bool,
        then: Callable[[Outcome], None] | None,
    ) -> None:
        with self._lock:
            if ticket._cancelled:
                return
            if ticket._order is None:
                self._order += 1
                ticket._order = self._order
            job = _Job(ticket, index, lane, sample, works, slots, then, ticket._order)
            ticket._queued.add(job)
            # What follows from a run of its request goes before those that came after that.
            self._queues.add(job)
            self._ready.notify()

    def _fail(self, ticket: Ticket, index: int, error: ApiError) -> None:
        with self._lock:
            if ticket._cancelled:
                return
            ticket._held.remove(index)
            self._places.leave(ticket._costs[index])
            last = self._settle(ticket, index, error)
        if last:
            ticket._done()

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket._cancelled:
                return
            ticket._cancelled = True
            for job in ticket._queued:
                self._queues.remove(job)
            ticket._queued.clear()
            for index in ticket._held:
                self._places.leave(ticket._costs[index])
            ticket._held.clear()

    def _settle(self, ticket: Ticket, index: int, outcome: Outcome) -> bool:
        ticket.outcomes[index] = outcome
        ticket._left -= 1
        return ticket._left == 0 and not ticket._cancelled

    def _work(self) -> None:
        while True:
            batch = self._take()
            if batch is None:
                return
            self._serve(batch)
            # Else the last answer would be kept alive until the next request.
            del batch

    def _take(self) -> list[_Job] | None:
        with self._lock:
            while not (batch := self._queues.next()):
                if self._stopped and not self._queues:
                    return None
                self._ready.wait()
            if self._queues:
                # One end of a run may let several begin.
                self._ready.notify()
            for job in batch:
                job.ticket._queued.discard(job)
                job.ticket._held.remove(job.index)
                self._places.begin(job.ticket._costs[job.index])
            return batch

    def _serve(self, batch: list[_Job]) -> None:
        outcomes: list[Outcome] = [InternalError()] * len(batch)
        try:
            outcomes = self._run(batch)
        finally:
            # Even a worker that dies of something that is no Exception answers first.
            finished = []
            with self._lock:
                self._queues.ended(batch[0].lane)
                # What waited for its end is for another, should this worker die; and those that
                # were told to stop wait for the last queue to be emptied.
                if self._stopped:
                    self._ready.notify_all()
                elif self._queues:
                    self._ready.notify()
                for job, outcome in zip(batch, outcomes, strict=True):
                    self._places.end(job.ticket._costs[job.index])
                    if self._settle(job.ticket, job.index, outcome):
                        finished.append(job.ticket)
            for job, outcome in zip(batch, outcomes, strict=True):
                if job.then is not None:
                    job.then(outcome)
            for ticket in finished:
                ticket._done()

    def _run(self, batch: list[_Job]) -> list[Outcome]:
        lane = batch[0].lane
        started = time.perf_counter()
        try:
            outputs = lane.backend.run(
                [job.sample for job in batch], lane.call, slots=any(job.slots for job in batch)
            )
            ended = time.perf_counter()
            ran = ended - started
            self._observer(lane, [job.works for job in batch], ran)
            return [
                Done(output, len(batch), ran, ended)
                for _, output in zip(batch, outputs, strict=True)
            ]
        except Exception:
            if len(batch) == 1:
                logger.exception("a run failed")
                return [InternalError()]
            # One item may be at fault: the others are not to fail with it.
            logger.exception("a run of %d items failed; they are run one by one", len(batch))
            return [self._run([job])[0] for job in batch]
