"""The threads that decode images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], None]


class Decoders:
    """A pool for work whose outcome goes elsewhere.

    An executor's futures, which nobody would read, cost more than handing over a small image.
    """

    def __init__(self, count: int) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"decoder-{i}", daemon=True)
            for i in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Do it soon, in the order of submission. It must not raise."""
        self._work.put(work)

    def stop(self) -> None:
        """End the threads after what was submitted."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            # Else the last image would be kept alive until the next one.
            del work
