"""Who waits and who runs: whether there is room for a request, and how long the queue will take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenfold.service.errors import QueueFull, TooSlowNow


class Places:
    """Places of items, from their request's admission to the end of their run.

    Counts only: the scheduler's lock is held whenever it is used.

    Attributes:
        waiting: items with a place that do not run: being decoded, or queued.
        running: items that run.
    """

    def __init__(self, *, limit: int, workers: int) -> None:
        """Args:
        limit: items that may wait.
        workers: threads that run them.
        """
        self.waiting = 0
        self.running = 0
        self._limit = limit
        self._workers = workers
        # Seconds that they take from those behind them.
        self._waiting_cost = 0.0
        self._running_cost = 0.0

    @property
    def wait(self) -> float:
        """Seconds until a worker would take up a request that came now."""
        if not self.waiting and self.running < self._workers:
            return 0.0
        # What runs is half done, on average.
        return self._waiting_cost + self._running_cost / 2

    def check(self, items: int) -> None:
        """Whether there is room.

        Raises:
            QueueFull: not for all items.
        """
        if self.waiting + items > self._limit:
            raise QueueFull(
                f"{self.waiting} items wait already, and at most {self._limit} may. "
                f"The queue will take about {self.wait:.1f} s.",
                retry_after=_whole(self.wait),
            )

    def take(self, costs: Sequence[float], *, longest: float, within: float) -> None:
        """Let items wait.

        Args:
            costs: seconds that each one takes from those behind it; 1 or more.
            longest: of their runs, in seconds.
            within: seconds that they have.

        Raises:
            QueueFull: there is no room for all of them.
            TooSlowNow: the longest one would not be done in time even if it came first.
        """
        self.check(len(costs))
        wait = self.wait
        if wait + longest > within:
            raise TooSlowNow(
                f"The queue will take about {wait:.1f} s, and requests may take {within:g} s.",
                retry_after=_whole(wait),
            )
        self.waiting += len(costs)
        self._waiting_cost += sum(costs)

    def leave(self, cost: float) -> None:
        """An item that waited does so no longer."""
        self.waiting -= 1
        self._waiting_cost -= cost
        if not self.waiting:
            self._waiting_cost = 0.0  # no rounding error outlives a busy hour

    def begin(self, cost: float) -> None:
        """An item that waited runs."""
        self.leave(cost)
        self.running += 1
        self._running_cost += cost

    def end(self, cost: float) -> None:
        """An item that ran is done."""
        self.running -= 1
        self._running_cost -= cost
        if not self.running:
            self._running_cost = 0.0


def _whole(seconds: float) -> int:
    # As Retry-After has it.
    return max(1, math.ceil(seconds))
