"""Scheduler: bounded queues, one per model and call, that feed a few worker threads.

A free worker takes the queue whose first item belongs to the earliest request, and as many of its
items as the backend takes in one run. So batches form while a device is busy, and no item waits for
a batch to fill. A device with as many runs in flight as it supports is passed over.

Requests get places (a `Ticket`) before their images are decoded, so that a full server refuses them
without work. A cancelled ticket leaves the queues at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from tokenfold.inference.errors import InternalError, RequestError
from tokenfold.inference.work import Works
from tokenfold.service.errors import Draining
from tokenfold.service.scheduling.queue import Lane, Places, Queues
from tokenfold.service.scheduling.ticket import Job, Outcome, RunOutput, Ticket

logger = logging.getLogger(__name__)

Observer = Callable[[Lane, Sequence[Works], float], None]
"""Called after each successful run, in the worker, with its lane, works and seconds."""


class Scheduler:
    """The queues, and the worker threads that empty them."""

    def __init__(self, *, workers: int, limit: int, observer: Observer = lambda *_: None) -> None:
        """Create a scheduler.

        Args:
            workers: number of threads.
            limit: items that may wait, those that are being decoded included.
            observer: called after each successful run.
        """
        self._places = Places(limit=limit, workers=workers)
        self._observer = observer
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._queues: Queues[Job] = Queues()
        self._requests = 0
        self._draining = False
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{i}", daemon=True)
            for i in range(workers)
        ]

    @property
    def workers(self) -> int:
        """Number of threads, alive or not."""
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
        """Whether every worker is alive."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def dead(self) -> bool:
        """Whether no worker is alive, so that queued items would never run."""
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def wait(self) -> float:
        """Seconds until a worker would start a request that arrived now."""
        with self._lock:
            return self._places.wait

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on; admitted ones are still answered."""
        self._draining = True

    def stop(self, timeout: float = 5.0) -> bool:
        """End the workers once the queues are empty.

        Args:
            timeout: seconds after which workers are left behind.

        Returns:
            Whether all workers have ended.
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
        """Check that one more item may wait.

        Raises:
            QueueFull: the queue is full.
            Draining: the server is shutting down.
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
        priority: int = 0,
    ) -> Ticket:
        """Give a request its places.

        Args:
            costs: expected seconds of each run; 1 or more.
            within: seconds until the answer is needed.
            done: called once, from any thread, when every run is finished.
            share: fraction of its duration that a run takes from those behind it, which may share
                the run or run at the same time; by default 1 / workers.
            priority: requests of a higher priority run first.

        Raises:
            QueueFull: there is no room for all runs.
            TooSlowNow: the longest run would not end in time even if it started first.
            Draining: the server is shutting down.
        """
        with self._lock:
            self._check_open()
            fraction = 1.0 / self.workers if share is None else share
            taken = [cost * fraction for cost in costs]
            self._places.take(taken, longest=max(costs), within=within)
            return Ticket(taken, done, priority=priority)

    def submit(self, job: Job) -> None:
        """Queue a run, once for each place of its ticket. From any thread."""
        with self._lock:
            if job.ticket.cancelled:
                return
            if job.ticket.number is None:
                self._requests += 1
                job.ticket.number = self._requests
            job.ticket.queue(job)
            # A second run of a request goes before the runs of later requests.
            self._queues.add(job)
            self._ready.notify()

    def fail(self, ticket: Ticket, index: int, error: RequestError) -> None:
        """Settle a place without a run. From any thread."""
        with self._lock:
            if ticket.cancelled:
                return
            ticket.withdraw(index)
            self._places.leave(ticket.cost(index))
            last = ticket.settle(index, error)
        if last:
            ticket.done()

    def cancel(self, ticket: Ticket) -> None:
        """Give up the runs of a ticket that have not started; `Ticket.done` is not called then."""
        with self._lock:
            if ticket.cancelled:
                return
            queued, costs = ticket.cancel()
            for job in queued:
                self._queues.remove(job)
            for cost in costs:
                self._places.leave(cost)

    def _work(self) -> None:
        while True:
            batch = self._take()
            if batch is None:
                return
            self._serve(batch)
            del batch  # or the last answer would be kept alive until the next request

    def _take(self) -> list[Job] | None:
        with self._lock:
            while not (batch := self._queues.next()):
                if self._stopped and not self._queues:
                    return None
                self._ready.wait()
            if self._queues:
                self._ready.notify()  # the end of one run may allow several to start
            for job in batch:
                job.ticket.begin(job)
                self._places.begin(job.ticket.cost(job.index))
            return batch

    def _serve(self, batch: list[Job]) -> None:
        outcomes: list[Outcome] = [InternalError()] * len(batch)
        try:
            outcomes = self._run(batch)
        finally:
            # Even a worker that dies of a BaseException answers first.
            finished = []
            with self._lock:
                self._queues.ended(batch[0].lane)
                # Another worker must take what waited for the end of this run, should this worker
                # die. Workers that were told to stop wait for the queues to be empty.
                if self._stopped:
                    self._ready.notify_all()
                elif self._queues:
                    self._ready.notify()
                for job, outcome in zip(batch, outcomes, strict=True):
                    self._places.end(job.ticket.cost(job.index))
                    if job.ticket.settle(job.index, outcome):
                        finished.append(job.ticket)
            for job, outcome in zip(batch, outcomes, strict=True):
                if job.on_outcome is not None:
                    job.on_outcome(outcome)
            for ticket in finished:
                ticket.done()

    def _run(self, batch: list[Job]) -> list[Outcome]:
        lane = batch[0].lane
        started = time.perf_counter()
        try:
            outputs = lane.backend.run(
                [job.sample for job in batch], lane.call, slots=any(job.slots for job in batch)
            )
            ended = time.perf_counter()
            seconds = ended - started
            self._observer(lane, [job.works for job in batch], seconds)
            return [
                RunOutput(output, len(batch), seconds, ended)
                for _, output in zip(batch, outputs, strict=True)
            ]
        except Exception:
            if len(batch) == 1:
                logger.exception("a run failed")
                return [InternalError()]
            # One item may be at fault: it must not fail the others.
            logger.exception("a run of %d items failed; they are run one by one", len(batch))
            return [self._run([job])[0] for job in batch]
