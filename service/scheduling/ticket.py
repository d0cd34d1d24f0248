"""Places of a request in the queue, and the outcomes of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenfold.inference.backend import Sample
from tokenfold.inference.errors import RequestError
from tokenfold.inference.work import Works
from tokenfold.service.scheduling.queue import Lane, Order


class RunOutput(NamedTuple):
    """The outputs of one item of a run.

    Attributes:
        output: outputs by their name in the graph.
        batch_size: items of the run, this one included.
        seconds: duration of the run.
        ended: its end, in seconds of `time.perf_counter`.
    """

    output: Sample
    batch_size: int
    seconds: float
    ended: float


Outcome = RunOutput | RequestError


class Ticket:
    """The places of a request's runs. The scheduler's lock guards every method.

    Attributes:
        outcomes: outcome of each run, in order; None for one that is not finished.
        cancelled: whether the request was given up.
        priority: runs of a higher priority start first.
        number: set when the first run is queued; among equal priorities lower numbers start first.
        done: called once, from any thread, when the last run is finished, unless cancelled.
    """

    def __init__(
        self, costs: Sequence[float], done: Callable[[], None], *, priority: int = 0
    ) -> None:
        """Create a ticket.

        Args:
            costs: seconds that each run takes from those behind it; 1 or more.
            done: see the attributes.
            priority: see the attributes.
        """
        self.outcomes: list[Outcome | None] = [None] * len(costs)
        self.cancelled = False
        self.priority = priority
        self.number: int | None = None
        self.done = done
        self._costs = costs
        self._unfinished = len(costs)
        self._queued: set[Job] = set()
        self._waiting = set(range(len(costs)))  # not submitted yet, or queued

    def cost(self, index: int) -> float:
        """Return the seconds that a run takes from those behind it."""
        return self._costs[index]

    def queue(self, job: Job) -> None:
        """Note that a run is queued."""
        self._queued.add(job)

    def begin(self, job: Job) -> None:
        """Note that a queued run starts."""
        self._queued.discard(job)
        self._waiting.remove(job.index)

    def withdraw(self, index: int) -> None:
        """Note that a run which was not submitted never will be."""
        self._waiting.remove(index)

    def settle(self, index: int, outcome: Outcome) -> bool:
        """Store an outcome. Return whether it was the last one, and the caller still waits."""
        self.outcomes[index] = outcome
        self._unfinished -= 1
        return self._unfinished == 0 and not self.cancelled

    def cancel(self) -> tuple[list[Job], list[float]]:
        """Give up. Return the queued runs, and the costs of all that have not started."""
        self.cancelled = True
        queued, costs = list(self._queued), [self._costs[index] for index in self._waiting]
        self._queued.clear()
        self._waiting.clear()
        return queued, costs


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A run of one item.

    Attributes:
        ticket: of its request.
        index: its place in the ticket.
        lane: model and call.
        sample: inputs.
        works: its cost, for the observer of the scheduler.
        slots: whether to return the composed slots too.
        on_outcome: called with the outcome, in the worker, before `Ticket.done`. It must not raise.
    """

    ticket: Ticket
    index: int
    lane: Lane
    sample: Sample
    works: Works = ()
    slots: bool = False
    on_outcome: Callable[[Outcome], None] | None = None

    @property
    def order(self) -> Order:
        """The position of its request in the queue."""
        assert self.ticket.number is not None  # the scheduler sets it when it queues the job
        return (-self.ticket.priority, self.ticket.number)
