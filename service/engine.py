"""What a server is made of, and its life: starting, ready, draining, stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil  # type: ignore[import-untyped]

from export.bundle import BundleError
from models.reduction.workload import Plan
from service.backends.backend import Sample
from service.backends.onnxruntime import OnnxRuntime
from service.catalog import Catalog, Load, Model
from service.decoders import Decoders
from service.errors import Draining, Starting, WorkerDied
from service.metrics import Metrics
from service.scheduler import Done, Lane, Outcome, Scheduler
from service.settings import Settings

logger = logging.getLogger(__name__)

# Of the warm-up, for each level: rounds that count, after one that does not, and their seconds.
_ROUNDS = 5
_PATIENCE = 1.0


class Engine:
    """Models, queues, decoders and metrics of one server.

    Attributes:
        failed: why the models could not be loaded, or None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        load: Load = OnnxRuntime,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the bundles; `start` loads them.

        Args:
            on_failure: called, from another thread, when loading fails.

        Raises:
            BundleError, UnknownLevel: a bundle is damaged or lacks the default level.
        """
        self.settings = settings
        self.catalog = Catalog.open(
            settings.bundles,
            default=settings.default_model,
            default_level=settings.default_level,
        )
        self.scheduler = Scheduler(
            workers=settings.workers, limit=settings.queue_limit, observer=self._observe
        )
        self.metrics = Metrics(depth=lambda: self.scheduler.depth)
        self.decoders = Decoders(settings.decoders)
        self.failed: BaseException | None = None
        self.on_failure = on_failure
        self._load = load
        self._lanes: dict[int, Model] = {}
        self._loaded = threading.Event()
        self._loader: threading.Thread | None = None

    @property
    def started(self) -> bool:
        """Whether every model is loaded and warm."""
        return self._loaded.is_set()

    def start(self) -> None:
        """Start the workers, and load the models in the background."""
        self.scheduler.start()
        self.decoders.start()
        self._loader = threading.Thread(target=self._load_all, name="loader", daemon=True)
        self._loader.start()

    async def drain(self) -> None:
        """Refuse new requests, and return when the accepted ones are answered."""
        self.scheduler.drain()
        deadline = time.monotonic() + self.settings.drain_timeout
        while self.scheduler.pending and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def stop(self) -> bool:
        """End the threads. Whether all workers have ended; a second call only looks."""
        self.decoders.stop()
        return self.scheduler.stop()

    def join_loader(self, timeout: float = 5.0) -> bool:
        """Wait for the models' loading to end, after `stop`. Whether it has."""
        if self._loader is None:
            return True
        self._loader.join(timeout)
        return not self._loader.is_alive()

    def check_open(self) -> None:
        """Whether requests are taken.

        Raises:
            Starting, Draining: they are not.
        """
        if self.scheduler.draining:
            raise Draining("The server is shutting down.", retry_after=1)
        self.check_started()

    def check_room(self) -> None:
        """Whether a request may be read at all: a full server refuses it unread.

        Raises:
            Starting, Draining, QueueFull: it may not.
            WorkerDied: nobody would ever run it.
        """
        self.check_open()
        if self.scheduler.dead:
            self.check_alive()
        self.scheduler.check()

    def check_started(self) -> None:
        """Whether the models are there.

        Raises:
            Starting: not yet.
        """
        if not self.started:
            raise Starting("The models are being loaded.", retry_after=1)

    def check_alive(self) -> None:
        """Whether every worker lives.

        Raises:
            WorkerDied: one does not.
        """
        if not self.scheduler.alive:
            raise WorkerDied("A thread that runs models has ended; restart the server.")

    def _load_all(self) -> None:
        try:
            for model in self.catalog:
                self._load_one(model)
        except BaseException as error:
            # A worker that the shutdown ended looks like one that died.
            if self.scheduler.draining and isinstance(error, Draining | WorkerDied):
                logger.info("loading given up: the server is shutting down")
                return
            logger.critical("loading failed: %s", error, exc_info=error)
            self.failed = error
            self.on_failure()
            return
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._loaded.set()
        logger.info("ready", extra={"models": [model.name for model in self.catalog]})

    def _load_one(self, model: Model) -> None:
        begun = time.perf_counter()
        before = _resident()
        model.load(self._load)
        self._lanes[id(model.backend)] = model
        times = {plan: self._time(model, plan) for plan in _plans(model)}
        model.costs.learn(times)
        peak = max(0, _resident() - before)
        self.metrics.memory(model.name, weights=model.weights, peak=peak)
        model.ready = True
        logger.info(
            "loaded %s",
            model.name,
            extra={
                "seconds": round(time.perf_counter() - begun, 3),
                "native_ops": model.backend.native,
                "peak_bytes": peak,
                "levels_ms": {
                    name: round(times[level.plan] * 1000, 3)
                    for name, level in model.levels.levels.items()
                },
            },
        )

    def _time(self, model: Model, plan: Plan) -> float:
        """Median seconds of a run while every worker runs, which is how they run under load."""
        noise = np.random.default_rng(0)
        size = model.manifest.preprocess.size
        sample = {"image": noise.integers(0, 256, (*size, 3), dtype=np.uint8)}
        runs: list[float] = []
        begun = time.perf_counter()
        for turn in range(1 + _ROUNDS):
            # The first round also sees what slots cost in memory.
            found = self._round(Lane(model.backend, plan), sample, slots=turn == 0)
            if turn:
                runs += [self._checked(model, outcome).ran for outcome in found]
            if runs and time.perf_counter() - begun > _PATIENCE:
                break
        return statistics.median(runs)

    def _round(self, lane: Lane, sample: Sample, *, slots: bool) -> list[Outcome | None]:
        settled = threading.Event()
        items = min(self.scheduler.workers, self.settings.queue_limit)
        ticket = self.scheduler.admit(lane, items, cost=0.0, within=float("inf"), done=settled.set)
        for index in range(items):
            ticket.submit(index, sample, slots=slots)
        # A worker that died would never answer.
        while not settled.wait(1.0):
            self.check_alive()
        return ticket.outcomes

    def _checked(self, model: Model, outcome: Outcome | None) -> Done:
        if not isinstance(outcome, Done):
            raise BundleError(f"{model.bundle.model} does not run; the log above says why")
        classes = outcome.output["logits"].shape[-1]
        if classes != len(model.labels):
            raise BundleError(
                f"{model.bundle.model} has {classes} outputs and "
                f"{len(model.labels)} labels"
            )
        return outcome

    def _observe(self, lane: Lane, size: int, seconds: float) -> None:
        model = self._lanes[id(lane.backend)]
        if not model.ready:
            return  # the warm-up
        model.costs.observe(lane.plan, seconds / size)
        self.metrics.run(size, model.levels.work(lane.plan))


def _plans(model: Model) -> list[Plan]:
    # Two levels of one plan are timed once.
    return list(dict.fromkeys(level.plan for level in model.levels.levels.values()))


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
