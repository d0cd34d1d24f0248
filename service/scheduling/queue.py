"""Bounded queues: room for requests, and the order in which their runs start.

Plain data structures: the scheduler holds its lock whenever it uses them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from tokenfold.inference.backend import Backend, Call
from tokenfold.inference.errors import TooSlowNow
from tokenfold.service.errors import QueueFull

Order = tuple[int, int]
"""Position in the queue: lower first. The negative priority, then the request's number."""


class Lane(NamedTuple):
    """The items that may share a run: those of one model and one call."""

    backend: Backend
    call: Call


class Waiting(Protocol):
    """An item that waits for a run."""

    @property
    def lane(self) -> Lane: ...

    @property
    def order(self) -> Order: ...


J = TypeVar("J", bound=Waiting)


class Queues(Generic[J]):
    """One queue for each lane."""

    def __init__(self) -> None:
        self._queues: dict[Lane, deque[J]] = {}
        self._running: Counter[int] = Counter()  # runs in flight by the backend's identity

    def __bool__(self) -> bool:
        """Whether any item waits."""
        return bool(self._queues)

    def add(self, job: J) -> None:
        """Add an item, before those of its lane that belong to later requests."""
        queue = self._queues.setdefault(job.lane, deque())
        index = len(queue)
        while index and queue[index - 1].order > job.order:
            index -= 1
        queue.insert(index, job)

    def remove(self, job: J) -> None:
        """Remove an item that waits."""
        queue = self._queues[job.lane]
        queue.remove(job)
        if not queue:
            del self._queues[job.lane]

    def next(self) -> list[J]:
        """Take the items of the next run; none if no run may start.

        Among the backends that may start a run, the lane is taken whose first item belongs to the
        earliest request. `ended` must be called after the run.
        """
        free = [lane for lane in self._queues if self._is_free(lane.backend)]
        if not free:
            return []
        lane = min(free, key=lambda lane: self._queues[lane][0].order)
        queue = self._queues[lane]
        size = max(1, lane.backend.batch_size_for(lane.call, len(queue)))
        batch = [queue.popleft() for _ in range(min(len(queue), size))]
        if not queue:
            del self._queues[lane]
        self._running[id(lane.backend)] += 1
        return batch

    def ended(self, lane: Lane) -> None:
        """Note the end of a run of the lane."""
        self._running[id(lane.backend)] -= 1

    def _is_free(self, backend: Backend) -> bool:
        limit = backend.max_concurrent_runs
        return limit is None or self._running[id(backend)] < limit


class Places:
    """Counts of the items in the system, and the time they will take.

    An item has a place from the admission of its request to the end of its run.

    Attributes:
        waiting: items that do not run yet: they are being decoded, or are queued.
        running: items that run.
    """

    def __init__(self, *, limit: int, workers: int) -> None:
        """Create an empty system.

        Args:
            limit: items that may wait.
            workers: threads that run them.
        """
        self.waiting = 0
        self.running = 0
        self._limit = limit
        self._workers = workers
        # Seconds that the items take from those behind them.
        self._waiting_cost = 0.0
        self._running_cost = 0.0

    @property
    def wait(self) -> float:
        """Seconds until a worker would start a request that arrived now."""
        if not self.waiting and self.running < self._workers:
            return 0.0
        # Running items are half done, on average.
        return self._waiting_cost + self._running_cost / 2

    def check(self, items: int) -> None:
        """Check that `items` more items may wait; raise QueueFull otherwise."""
        if self.waiting + items > self._limit:
            raise QueueFull(
                f"{self.waiting} items wait, and at most {self._limit} may. "
                f"The queue will take about {self.wait:.1f} s.",
                retry_after=whole_seconds(self.wait),
            )

    def take(self, costs: Sequence[float], *, longest: float, within: float) -> None:
        """Take places for items.

        Args:
            costs: seconds that each item takes from those behind it; 1 or more.
            longest: duration of the longest run, in seconds.
            within: seconds until the answer is needed.

        Raises:
            QueueFull: there is no room for all items.
            TooSlowNow: the longest run would not end in time even if it started first.
        """
        self.check(len(costs))
        wait = self.wait
        if wait + longest > within:
            raise TooSlowNow(
                f"The queue will take about {wait:.1f} s, and the request has {within:.3g} s.",
                retry_after=whole_seconds(wait),
            )
        self.waiting += len(costs)
        self._waiting_cost += sum(costs)

    def leave(self, cost: float) -> None:
        """Give back the place of an item that does not run yet."""
        self.waiting -= 1
        self._waiting_cost -= cost
        if not self.waiting:
            self._waiting_cost = 0.0  # rounding errors must not accumulate

    def begin(self, cost: float) -> None:
        """Note that an item starts to run."""
        self.leave(cost)
        self.running += 1
        self._running_cost += cost

    def end(self, cost: float) -> None:
        """Give back the place of an item whose run has ended."""
        self.running -= 1
        self._running_cost -= cost
        if not self.running:
            self._running_cost = 0.0


def whole_seconds(seconds: float) -> int:
    """Return a duration for `Retry-After`: whole seconds, 1 at least."""
    return max(1, math.ceil(seconds))
