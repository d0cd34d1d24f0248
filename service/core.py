"""What a server is made of, and its life: starting, ready, draining, stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

import psutil  # type: ignore[import-untyped]

from tokenfold.runtime.machine import cores
from tokenfold.runtime.tensorrt.process import StoppedError
from tokenfold.service.errors import Draining, Starting, WorkerDied
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.label_vectors import LabelVectors
from tokenfold.service.metrics import Metrics
from tokenfold.service.scheduling import timing, warmup
from tokenfold.service.scheduling.backends import choice
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.backends.kinds import BackendKind, all_kinds
from tokenfold.service.scheduling.backends.preparation import Preparation
from tokenfold.service.scheduling.catalog import Catalog, Model
from tokenfold.service.scheduling.decoders import Decoders
from tokenfold.service.scheduling.queues import Lane
from tokenfold.service.scheduling.scheduler import Outcome, Scheduler
from tokenfold.service.scheduling.timing import Timing
from tokenfold.service.scheduling.work import Works
from tokenfold.service.settings import Settings

logger = logging.getLogger(__name__)


class Core:
    """Models, queues, decoders and metrics of one server.

    Attributes:
        keeper: of the galleries; the app starts and stops it, on its event loop.
        labels: their vectors, of requests that name their own classes.
        preparation: of backends whose engines are not built yet.
        failed: why the models could not be loaded, or None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kinds: Sequence[BackendKind] | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the bundles; `start` loads them.

        Args:
            kinds: backends to choose from, the best first; by default all that there are.
            on_failure: called, from another thread, when loading fails.

        Raises:
            BundleError, UnknownLevel: a bundle is damaged or lacks the default level.
            BackendError: the backend that the settings name cannot run them.
        """
        self.settings = settings
        self.catalog = Catalog.open(
            settings.bundles,
            default=settings.default_model,
            default_level=settings.default_level,
        )
        known = all_kinds(settings.engines) if kinds is None else kinds
        self._kinds = choice.usable(known, settings.backend)
        for model in self.catalog:
            choice.fitting(model.bundle, self._kinds)
        self.scheduler = Scheduler(
            workers=settings.workers or _workers(self._kinds),
            limit=settings.queue_limit,
            observer=self._observe,
        )
        self.metrics = Metrics(depth=lambda: self.scheduler.depth)
        self.decoders = Decoders(settings.decoders)
        self.preparation = Preparation(self.metrics.backends)
        self.labels = LabelVectors()
        self.keeper = Keeper(settings.data_dir, self.metrics.galleries)
        self.failed: BaseException | None = None
        self.on_failure = on_failure
        self._lanes: dict[int, Model] = {}
        self._loaded = threading.Event()
        self._loader: threading.Thread | None = None
        self._timing = Timing(self.scheduler)

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
        self.preparation.stop()
        deadline = time.monotonic() + self.settings.drain_timeout
        while self.scheduler.pending and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def stop(self) -> bool:
        """End the threads. Whether all workers have ended; a second call only looks."""
        # First of all: what is given up then is no failure.
        self.scheduler.drain()
        self.preparation.stop()
        self.decoders.stop()
        return self.scheduler.stop()

    def join_loader(self, timeout: float = 5.0) -> bool:
        """Wait for the end of what prepares, loads and times models, after `stop`. Whether it has
        come.
        """
        threads = [*([] if self._loader is None else [self._loader]), *self._timing.threads]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        prepared = self.preparation.join(max(0.0, deadline - time.monotonic()))
        return prepared and not any(thread.is_alive() for thread in threads)

    def share(self, model: Model) -> float:
        """Of its run's time that an item of a model takes from those behind it."""
        if model.backend.max_concurrent_runs is None:
            return 1.0 / self.scheduler.workers
        return model.costs.share

    def turns(self, model: Model, runs: int) -> float:
        """How many times as long as one some runs of a model take that are asked for at once."""
        if model.backend.max_concurrent_runs is None:
            # Workers run beside each other, but not half a run each.
            return math.ceil(runs / self.scheduler.workers)
        return 1.0 + (runs - 1) * model.costs.share

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
            raise Starting(
                "The models are being loaded.", retry_after=1, engines=self.preparation.statuses
            )

    def check_alive(self) -> None:
        """Whether every worker lives.

        Raises:
            WorkerDied: one does not.
        """
        if not self.scheduler.alive:
            raise WorkerDied("A thread that runs models has ended; restart the server.")

    def _load_all(self) -> None:
        try:
            chosen = [(model, self._kinds_now(model)) for model in self.catalog]
            for model, kinds in chosen:
                with self.preparation.before(model.bundle):
                    self._load_one(model, kinds)
        except BaseException as error:
            # A worker that the shutdown ended looks like one that died.
            if self.scheduler.draining and isinstance(error, Draining | WorkerDied | StoppedError):
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
        self.preparation.start({model.name: model.backend for model in self.catalog})

    def _kinds_now(self, model: Model) -> Sequence[BackendKind]:
        return self.preparation.survey(model.bundle, choice.fitting(model.bundle, self._kinds))

    def _load_one(self, model: Model, kinds: Sequence[BackendKind]) -> None:
        begun = time.perf_counter()
        first = kinds[0]
        before, before_gpu = _resident(), first.used()
        model.load(
            lambda bundle: choice.opened(
                bundle,
                kinds,
                metrics=self.metrics.backends,
                switched=lambda _: self._timing.again(model),
            )
        )
        self._lanes[id(model.backend)] = model
        times = timing.measure(model, self._run_queued, self.scheduler.workers)
        kind = model.backend.kind
        model.costs.learn(times)
        warmup.plan_ahead(model)
        peak, after_gpu = max(0, _resident() - before), first.used()
        gpu_peak = None
        if kind is first and before_gpu is not None and after_gpu is not None:
            gpu_peak = max(0, after_gpu - before_gpu)
        self.metrics.memory(model.name, weights=model.weights, peak=peak, gpu_peak=gpu_peak)
        model.ready = True
        logger.info(
            "loaded %s",
            model.name,
            extra={
                "seconds": round(time.perf_counter() - begun, 3),
                "backend": kind.name,
                "device": kind.device,
                "native_ops": model.backend.native,
                "peak_bytes": peak,
                **({} if gpu_peak is None else {"gpu_peak_bytes": gpu_peak}),
                "levels_ms": {
                    name: round(times.runs[model.levels.work(level.plan).flops] * 1000, 3)
                    for name, level in model.levels.levels.items()
                },
            },
        )

    def _run_queued(
        self, lane: Lane, sample: Sample, slots: bool, items: int
    ) -> list[Outcome | None]:
        """Run a sample several times, as under load."""
        settled = threading.Event()
        items = min(items, self.settings.queue_limit)
        ticket = self.scheduler.admit([0.0] * items, within=float("inf"), done=settled.set)
        for index in range(items):
            ticket.submit(index, lane, sample, slots=slots)
        # A worker that died would never answer.
        while not settled.wait(1.0):
            self.check_alive()
        return ticket.outcomes

    def _observe(self, lane: Lane, items: Sequence[Works], seconds: float) -> None:
        model = self._lanes[id(lane.backend)]
        if not model.ready:
            return  # the warm-up
        # Texts that share a run are read faster than those that a cost is asked of.
        if lane.call.step != "read" or len(items) == 1:
            model.costs.observe(items[0], seconds, lane.call.step, items=len(items))
        self.metrics.run(lane, items)


def _workers(kinds: Sequence[BackendKind]) -> int:
    """One for each core; two at least where a GPU is to have two runs on their way."""
    least = 1 if all(kind.device == "cpu" for kind in kinds) else 2
    return max(cores(), least)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
