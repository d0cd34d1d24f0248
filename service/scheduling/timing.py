"""Models are timed again when another backend runs them than before, while they answer."""

from __future__ import annotations

import logging
import threading
import time

from tokenfold.service.errors import Draining
from tokenfold.service.scheduling import warmup
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.costs import Times
from tokenfold.service.scheduling.queues import Lane
from tokenfold.service.scheduling.scheduler import Done, Outcome, Scheduler
from tokenfold.service.scheduling.warmup import RunMany

logger = logging.getLogger(__name__)


def measure(model: Model, run_many: RunMany, workers: int) -> Times:
    """The times of one backend: again, if another has taken over meanwhile.

    Raises:
        BundleError: see `warmup.times`.
    """
    while True:
        kind = model.backend.kind
        found = warmup.times(model, run_many, workers)
        if model.backend.kind is kind:
            return found


class Timing:
    """The threads that do it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.threads: list[threading.Thread] = []

    def again(self, model: Model) -> None:
        """Time a model, in a thread."""
        thread = threading.Thread(
            target=self._learn, args=(model,), name=f"times-{model.name}", daemon=True
        )
        self.threads.append(thread)
        thread.start()

    def _learn(self, model: Model) -> None:
        try:
            model.costs.learn(measure(model, self._run_beside, self._scheduler.workers))
        except Draining:
            return
        except Exception:
            logger.exception("%s could not be timed again", model.name)

    def _run_beside(
        self, lane: Lane, sample: Sample, slots: bool, items: int
    ) -> list[Outcome | None]:
        """Run a sample several times, past the queue.

        Raises:
            Draining: the server shuts down.
        """
        found: list[Outcome | None] = []
        for _ in range(items):
            if self._scheduler.draining:
                raise Draining("The server is shutting down.", retry_after=1)
            begun = time.perf_counter()
            (output,) = lane.backend.run([sample], lane.call, slots=slots)
            ended = time.perf_counter()
            found.append(Done(output, 1, ended - begun, ended))
        return found
