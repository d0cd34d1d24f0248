"""Core: the models, queue, decoders and metrics of a server, and their life cycle."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence

import psutil  # type: ignore[import-untyped]

from tokenfold.inference.work import Works
from tokenfold.runtime.libraries import native_ops
from tokenfold.runtime.machine import cores
from tokenfold.runtime.tensorrt.process import StoppedError
from tokenfold.service.errors import Draining, Starting, WorkerDied
from tokenfold.service.metrics import Metrics
from tokenfold.service.scheduling import warmup
from tokenfold.service.scheduling.backends import selection
from tokenfold.service.scheduling.backends.kinds import BackendKind, all_kinds
from tokenfold.service.scheduling.backends.preparation import Preparation
from tokenfold.service.scheduling.catalog import Catalog, ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher, Limits
from tokenfold.service.scheduling.execution import Decoders
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.scheduler import Scheduler
from tokenfold.service.scheduling.timing import Timing
from tokenfold.service.settings import Settings

logger = logging.getLogger(__name__)

_POLL = 0.1  # seconds between two checks whether the models are loaded


class Core:
    """The core of a server.

    Attributes:
        settings: the settings.
        catalog: the models.
        dispatcher: runs requests.
        scheduler: the queue and its workers.
        metrics: the metrics.
        preparation: builds TensorRT engines.
        failed: error that ended the loading of the models, or None.
        on_failure: called, from another thread, when loading fails.
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
            settings: the settings.
            kinds: kinds of backends to choose from, the best first; by default all.
            on_failure: see the attributes.

        Raises:
            BundleError: a bundle is damaged.
            UnknownLevel: a bundle lacks the default level.
            BackendError: the backend that the settings name cannot run the bundles.
        """
        self.settings = settings
        self.catalog = Catalog.open(
            settings.bundles,
            default=settings.default_model,
            default_level=settings.default_level,
        )
        known = all_kinds(settings.engines) if kinds is None else kinds
        self._kinds = selection.usable(known, settings.backend)
        for model in self.catalog:
            selection.fitting(model.bundle, self._kinds)
        self.scheduler = Scheduler(
            workers=settings.workers or _workers(self._kinds),
            limit=settings.queue_limit,
            observer=self._observe,
        )
        self.metrics = Metrics(depth=lambda: self.scheduler.depth)
        self.decoders = Decoders(settings.decoders)
        limits = Limits(settings.queue_limit, settings.max_pixels, settings.request_timeout)
        self.dispatcher = Dispatcher(self.catalog, self.scheduler, self.decoders, limits)
        self.preparation = Preparation(self.metrics.backends)
        self.failed: BaseException | None = None
        self.on_failure = on_failure
        self._models: dict[int, ServedModel] = {}  # by the identity of their backends
        self._loaded = threading.Event()
        self._loader: threading.Thread | None = None
        self._timing = Timing(self.scheduler, settings.queue_limit)

    @property
    def started(self) -> bool:
        """Whether every model is loaded and warmed up."""
        return self._loaded.is_set()

    def start(self) -> None:
        """Start the workers, and load the models in the background."""
        self.scheduler.start()
        self.decoders.start()
        self._loader = threading.Thread(target=self._load_all, name="loader", daemon=True)
        self._loader.start()

    async def wait_started(self) -> bool:
        """Wait until the models are loaded. Return False if loading has failed."""
        while not self.started:
            if self.failed is not None:
                return False
            await asyncio.sleep(_POLL)
        return True

    async def drain(self) -> None:
        """Refuse new requests, and return when the admitted ones are answered."""
        self.scheduler.drain()
        self.preparation.stop()
        deadline = time.monotonic() + self.settings.drain_timeout
        while self.scheduler.pending and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def stop(self) -> bool:
        """End the threads. Return whether all workers have ended; a second call only reports."""
        # First, so that requests which are given up now are not reported as failures.
        self.scheduler.drain()
        self.preparation.stop()
        self.decoders.stop()
        return self.scheduler.stop()

    def join_loader(self, timeout: float = 5.0) -> bool:
        """Wait, after `stop`, for the threads that prepare, load and time models.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether they have ended.
        """
        threads = [*([] if self._loader is None else [self._loader]), *self._timing.threads]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        prepared = self.preparation.join(max(0.0, deadline - time.monotonic()))
        return prepared and not any(thread.is_alive() for thread in threads)

    def check_open(self) -> None:
        """Check that requests are accepted; raise Starting or Draining otherwise."""
        if self.scheduler.draining:
            raise Draining("The server is shutting down.", retry_after=1)
        self.check_started()

    def check_room(self) -> None:
        """Check that a request may be read: a full server refuses it unread.

        Raises:
            Starting, Draining, QueueFull: the request is refused.
            WorkerDied: no worker would ever run it.
        """
        self.check_open()
        if self.scheduler.dead:
            self.check_alive()
        self.scheduler.check()

    def check_started(self) -> None:
        """Check that the models are loaded; raise Starting otherwise."""
        if not self.started:
            raise Starting(
                "The models are being loaded.", retry_after=1, engines=self.preparation.statuses
            )

    def check_alive(self) -> None:
        """Check that every worker is alive; raise WorkerDied otherwise."""
        if not self.scheduler.alive:
            raise WorkerDied("A thread that runs models has ended; restart the server.")

    def _load_all(self) -> None:
        try:
            chosen = [(model, self._kinds_now(model)) for model in self.catalog]
            for model, kinds in chosen:
                with self.preparation.before(model.bundle):
                    self._load_one(model, kinds)
        except BaseException as error:
            # During a shutdown, a worker that was ended looks like one that died.
            if self.scheduler.draining and isinstance(error, Draining | WorkerDied | StoppedError):
                logger.info("loading given up: the server is shutting down")
                return
            logger.critical("loading failed: %s", error, exc_info=error)
            self.failed = error
            self.on_failure()
            return
        reason = native_ops().reason
        if reason is not None and any(m.backend.kind.device == "cpu" for m in self.catalog):
            logger.warning("portable ops run on the CPU, which is slower: %s", reason)
        # The objects of the models live as long as the process: the garbage collector skips them.
        gc.collect()
        gc.freeze()
        self._loaded.set()
        logger.info("ready", extra={"models": [model.name for model in self.catalog]})
        self.preparation.start({model.name: model.backend for model in self.catalog})

    def _kinds_now(self, model: ServedModel) -> Sequence[BackendKind]:
        return self.preparation.survey(model.bundle, selection.fitting(model.bundle, self._kinds))

    def _load_one(self, model: ServedModel, kinds: Sequence[BackendKind]) -> None:
        begun = time.perf_counter()
        first = kinds[0]
        before, before_gpu = _resident(), first.used_memory()
        model.load(
            lambda bundle: selection.opened(
                bundle,
                kinds,
                metrics=self.metrics.backends,
                switched=lambda _: self._timing.again(model),
            )
        )
        self._models[id(model.backend)] = model
        times = self._timing.first(model)
        kind = model.backend.kind
        model.costs.learn(times)
        warmup.plan_ahead(model)
        peak, after_gpu = max(0, _resident() - before), first.used_memory()
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

    def _observe(self, lane: Lane, items: Sequence[Works], seconds: float) -> None:
        model = self._models[id(lane.backend)]
        if not model.ready:
            return  # the run belongs to the warm-up
        # Texts that share a run take less time each than the text of a lone request.
        if lane.call.step != "read" or len(items) == 1:
            model.costs.observe(items[0], seconds, lane.call.step, items=len(items))
        self.metrics.run(lane, items)


def _workers(kinds: Sequence[BackendKind]) -> int:
    """Return the number of workers: one per core, and on a GPU at minimum one per run in flight."""
    minimum = 1 if all(kind.device == "cpu" for kind in kinds) else 2
    return max(cores(), minimum)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
