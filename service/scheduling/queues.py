"""What waits, by what may share a run, and which of it runs next.

Plain data: the scheduler's lock is held whenever it is used.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, NamedTuple, Protocol, TypeVar

from tokenfold.service.scheduling.backends.backend import Backend, Call


class Lane(NamedTuple):
    """What may share a run: one model and one call."""

    backend: Backend
    call: Call


class Waiting(Protocol):
    """Something that waits for a run.

    Attributes:
        order: when its request came; the lowest goes first.
    """

    @property
    def lane(self) -> Lane: ...

    @property
    def order(self) -> int: ...


J = TypeVar("J", bound=Waiting)


class Queues(Generic[J]):
    """One queue for each lane."""

    def __init__(self) -> None:
        self._queues: dict[Lane, deque[J]] = {}
        # Runs on their way, by the backend's identity.
        self._running: Counter[int] = Counter()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._queues)

    def add(self, job: J) -> None:
        """Let it wait, before those of its lane that came after its request."""
        queue = self._queues.setdefault(job.lane, deque())
        at = len(queue)
        while at and queue[at - 1].order > job.order:
            at -= 1
        queue.insert(at, job)

    def remove(self, job: J) -> None:
        """Let it wait no longer."""
        queue = self._queues[job.lane]
        queue.remove(job)
        if not queue:
            del self._queues[job.lane]

    def next(self) -> list[J]:
        """The items of the next run, whose end is to be told by `ended`; none if nothing may run.

        Of the backends that have a run to spare it is the lane whose head's request came first.
        """
        free = [lane for lane in self._queues if self._is_free(lane.backend)]
        if not free:
            return []
        lane = min(free, key=lambda lane: self._queues[lane][0].order)
        queue = self._queues[lane]
        most = max(1, lane.backend.batch_size_for(lane.call, len(queue)))
        batch = [queue.popleft() for _ in range(min(len(queue), most))]
        if not queue:
            del self._queues[lane]
        self._running[id(lane.backend)] += 1
        return batch

    def ended(self, lane: Lane) -> None:
        """A run of the lane is over."""
        self._running[id(lane.backend)] -= 1

    def _is_free(self, backend: Backend) -> bool:
        most = backend.max_concurrent_runs
        return most is None or self._running[id(backend)] < most
