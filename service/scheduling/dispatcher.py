"""Dispatcher: plans a request, admits it to the queue, and collects its results."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tokenfold.inference.errors import InvalidRequest
from tokenfold.inference.levels import Choice
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import Request, Result
from tokenfold.service.errors import Abandoned, Expired
from tokenfold.service.scheduling.catalog import Catalog, ServedModel
from tokenfold.service.scheduling.execution import Decoders, Execution
from tokenfold.service.scheduling.queue import whole_seconds
from tokenfold.service.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

# Seconds before the dispatcher checks whether the caller is still there.
_WATCH_DELAY = 0.1
# Characters of all texts that are encoded in the event loop; longer texts are encoded in a thread.
_MAX_INLINE_CHARACTERS = 2000

Disconnect = Callable[[], Awaitable[Any]]
"""Returns when the caller has disconnected."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request.

    Attributes:
        max_runs: runs of a request.
        max_pixels: width times height of an image.
        max_seconds: duration of a request.
    """

    max_runs: int
    max_pixels: int
    max_seconds: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A request whose model and level are chosen.

    Attributes:
        model: the model.
        prepared: the request, matched to the model.
        choice: the level.
    """

    model: ServedModel
    prepared: Prepared
    choice: Choice


class Dispatcher:
    """Runs requests on the models of a catalog.

    Attributes:
        catalog: the models.
        decoders: threads that decode images.
        limits: limits of a request.
    """

    def __init__(
        self, catalog: Catalog, scheduler: Scheduler, decoders: Decoders, limits: Limits
    ) -> None:
        self.catalog = catalog
        self.decoders = decoders
        self.limits = limits
        self._scheduler = scheduler

    async def plan(self, model: ServedModel, request: Request) -> Planned:
        """Encode a request's texts and choose its level.

        Raises:
            EmptyText: a text has no words.
            InvalidRequest: the request needs more runs than may wait, or its selector is invalid.
            RequestError: no level can be chosen; see `Levels.choose`.
        """
        if sum(map(len, request.texts)) <= _MAX_INLINE_CHARACTERS:
            prepared = Prepared.of(model, request)
        else:
            prepared = await asyncio.to_thread(Prepared.of, model, request)
        return Planned(model, prepared, self._choose(model, prepared))

    async def run(self, planned: Planned, *, disconnect: Disconnect | None = None) -> Result:
        """Run a request.

        Args:
            planned: the request, with its model and level.
            disconnect: returns when the caller has disconnected; None if it cannot disconnect.

        Returns:
            The results; items that are not finished at the deadline have expired.

        Raises:
            RequestError: the request is not admitted; see `Scheduler.admit`.
            Abandoned: the caller has disconnected.
        """
        model, prepared, choice = planned.model, planned.prepared, planned.choice
        request = prepared.request
        now = time.perf_counter()
        seconds = min(request.deadline - now, self.limits.max_seconds)
        settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ticket = self._scheduler.admit(
            prepared.costs(choice, model.costs.seconds),
            within=seconds,
            done=_waker(settled),
            share=self.share(model),
            priority=request.priority,
        )
        execution = Execution(prepared, choice, model.backend, self._scheduler, ticket)
        try:
            execution.start(self.decoders, self.limits.max_pixels)
            await _wait(request, disconnect, settled, seconds)
        finally:
            self._scheduler.cancel(ticket)
        results = [
            self._expired(seconds) if result is None else result for result in execution.results()
        ]
        return Result(choice, results, prepared.texts)

    async def answer(
        self, model: ServedModel, request: Request, *, disconnect: Disconnect | None = None
    ) -> Result:
        """Plan a request and run it; see `plan` and `run`."""
        return await self.run(await self.plan(model, request), disconnect=disconnect)

    def _choose(self, model: ServedModel, prepared: Prepared) -> Choice:
        request, runs = prepared.request, prepared.runs
        if runs > self.limits.max_runs:
            raise InvalidRequest(
                f"The request needs {runs} runs of the model; at most {self.limits.max_runs} may "
                "wait."
            )
        if isinstance(request.selector, Choice):
            return request.selector
        relative = self.relative_duration(model, runs)

        def duration(choice: Choice) -> float:
            return relative * sum(prepared.costs(choice, model.costs.seconds)) / runs

        wait = 0.0
        if request.selector.max_latency_ms is not None:
            wait = time.perf_counter() - request.arrived + self._scheduler.wait
        return model.levels.choose(request.selector, request.task, wait=wait, duration=duration)

    def share(self, model: ServedModel) -> float:
        """Return the fraction of a run's duration that an item takes from those behind it."""
        if model.backend.max_concurrent_runs is None:
            return 1.0 / self._scheduler.workers
        return model.costs.share

    def relative_duration(self, model: ServedModel, runs: int) -> float:
        """Return the duration of `runs` concurrent runs of a model, relative to one."""
        if model.backend.max_concurrent_runs is None:
            # Workers run side by side, but not half a run each.
            return math.ceil(runs / self._scheduler.workers)
        return 1.0 + (runs - 1) * model.costs.share

    def _expired(self, seconds: float) -> Expired:
        return Expired(
            f"The answer was not ready after {seconds:.3g} s.",
            retry_after=whole_seconds(self._scheduler.wait),
        )


def _waker(settled: asyncio.Future[str]) -> Callable[[], None]:
    loop = settled.get_loop()

    def done() -> None:
        # Once per request, however many items it has: waking the loop costs more than the rest.
        loop.call_soon_threadsafe(_resolve, settled, "answered")

    return done


def _resolve(settled: asyncio.Future[str], reason: str) -> None:
    if not settled.done():
        settled.set_result(reason)


async def _wait(
    request: Request, disconnect: Disconnect | None, settled: asyncio.Future[str], timeout: float
) -> None:
    """Wait until all runs are finished, or time is up.

    Raises:
        Abandoned: the caller has disconnected.
    """
    loop = settled.get_loop()
    watch: asyncio.Future[Any] | None = None

    def look() -> None:
        nonlocal watch
        assert disconnect is not None  # or no timer would have called this
        watch = asyncio.ensure_future(disconnect())
        watch.add_done_callback(lambda _: _resolve(settled, "disconnected"))

    timers = [loop.call_later(timeout, _resolve, settled, "late")]
    if disconnect is not None:
        # Most answers are ready before it is worth watching the caller.
        timers.append(loop.call_later(_WATCH_DELAY, look))
    try:
        if await settled == "disconnected":
            logger.info("the caller went away", extra={"caller": request.caller, "id": request.id})
            raise Abandoned("The caller went away.")
    finally:
        for timer in timers:
            timer.cancel()
        if watch is not None:
            if watch.done() and not watch.cancelled():
                watch.exception()
            watch.cancel()
