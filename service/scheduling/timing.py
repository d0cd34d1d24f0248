"""Timing of models: through the queue before they serve, and beside it when a backend changes."""

from __future__ import annotations

import logging
import threading
import time

from tokenfold.inference.backend import Sample
from tokenfold.service.errors import Draining, WorkerDied
from tokenfold.service.scheduling import warmup
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.costs import Times
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.scheduler import Scheduler
from tokenfold.service.scheduling.ticket import Job, Outcome, RunOutput
from tokenfold.service.scheduling.warmup import RunMany

logger = logging.getLogger(__name__)


def measure(model: ServedModel, run_many: RunMany, workers: int) -> Times:
    """Return the durations of one backend; start again if another one takes over meanwhile.

    Raises:
        BundleError: see `warmup.times`.
    """
    while True:
        kind = model.backend.kind
        times = warmup.times(model, run_many, workers)
        if model.backend.kind is kind:
            return times


class Timing:
    """Times models on the workers of a scheduler, or beside them.

    Attributes:
        threads: the threads that time models again.
    """

    def __init__(self, scheduler: Scheduler, max_runs: int) -> None:
        """Create a timing.

        Args:
            scheduler: of the server.
            max_runs: runs that may wait in its queue.
        """
        self._scheduler = scheduler
        self._max_runs = max_runs
        self.threads: list[threading.Thread] = []

    def first(self, model: ServedModel) -> Times:
        """Time a model that does not serve yet.

        Raises:
            BundleError: see `warmup.times`.
            WorkerDied: a worker has ended.
        """
        return measure(model, self._run_queued, self._scheduler.workers)

    def again(self, model: ServedModel) -> None:
        """Time a model whose backend has changed, in a thread, while it serves."""
        thread = threading.Thread(
            target=self._learn, args=(model,), name=f"times-{model.name}", daemon=True
        )
        self.threads.append(thread)
        thread.start()

    def _learn(self, model: ServedModel) -> None:
        try:
            model.costs.learn(measure(model, self._run_beside, self._scheduler.workers))
        except Draining:
            return
        except Exception:
            logger.exception("%s could not be timed again", model.name)

    def _run_queued(
        self, lane: Lane, sample: Sample, slots: bool, items: int
    ) -> list[Outcome | None]:
        """Run a sample several times through the queue, as under load."""
        settled = threading.Event()
        items = min(items, self._max_runs)
        ticket = self._scheduler.admit([0.0] * items, within=float("inf"), done=settled.set)
        for index in range(items):
            job = Job(ticket=ticket, index=index, lane=lane, sample=sample, slots=slots)
            self._scheduler.submit(job)
        while not settled.wait(1.0):
            # A dead worker never answers.
            if not self._scheduler.alive:
                raise WorkerDied("A thread that runs models has ended; restart the server.")
        return ticket.outcomes

    def _run_beside(
        self, lane: Lane, sample: Sample, slots: bool, items: int
    ) -> list[Outcome | None]:
        """Run a sample several times without the queue, so that requests do not wait for it.

        Raises:
            Draining: the server is shutting down.
        """
        outcomes: list[Outcome | None] = []
        for _ in range(items):
            if self._scheduler.draining:
                raise Draining("The server is shutting down.", retry_after=1)
            begun = time.perf_counter()
            (output,) = lane.backend.run([sample], lane.call, slots=slots)
            ended = time.perf_counter()
            outcomes.append(RunOutput(output, 1, ended - begun, ended))
        return outcomes
