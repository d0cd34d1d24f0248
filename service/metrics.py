"""Prometheus metrics. Each `Metrics` has its own registry, so a process can hold several apps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from tokenfold.bundle.tasks import Task
from tokenfold.inference.errors import RequestError
from tokenfold.inference.request import Stage
from tokenfold.inference.work import Works
from tokenfold.service.galleries.metrics import GalleryMetrics
from tokenfold.service.gpus import GpuCollector
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.queue import Lane

UNKNOWN = "unknown"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)

# Series with the creation time of each counter, which nothing reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Track:
    """Labels of a request in the metrics. Only known names become labels.

    Attributes:
        model: name of the model.
        level: name of the level.
        outcome: ok, partial (some items failed), invalid, rejected, expired, abandoned or error.
    """

    def __init__(self) -> None:
        self.model = UNKNOWN
        self.level = UNKNOWN
        self.outcome = "ok"


class _TaskCounters(NamedTuple):
    """The counters of a task: looking them up for each run would take longer than counting."""

    images: Counter
    tokens_in: Counter
    tokens_out: Counter
    spent: Counter
    saved: Counter


class Metrics:
    """The metrics of a server.

    Attributes:
        registry: their registry.
        galleries: metrics of the galleries.
        backends: metrics of the backends.
    """

    def __init__(self, depth: Callable[[], int]) -> None:
        """Create the metrics.

        Args:
            depth: returns the number of waiting runs; called at each scrape.
        """
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(GpuCollector())
        self.galleries = GalleryMetrics(registry)
        self.backends = BackendMetrics(registry)
        self._requests = Counter(
            "tokenfold_requests",
            "Requests by outcome.",
            ["task", "model", "level", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "tokenfold_request_duration_seconds",
            "Duration of answered requests, from the first byte to the answer.",
            ["task", "model", "level"],
            buckets=SECONDS,
            registry=registry,
        )
        stages = Histogram(
            "tokenfold_stage_duration_seconds",
            "Time of a result spent in each stage.",
            ["task", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stage = cache(stages.labels)  # looked up once, as `_TaskCounters`
        images = Counter(
            "tokenfold_images",
            "Images, with their text if the task has one, that were run.",
            ["task"],
            registry=registry,
        )
        self._embedded = Counter(
            "tokenfold_embedded_images",
            "Images embedded once for several texts.",
            registry=registry,
        )
        self._texts = Counter(
            "tokenfold_texts",
            "Texts without an image that were run.",
            registry=registry,
        )
        self._batch = Histogram(
            "tokenfold_batch_size", "Items per run.", buckets=BATCHES, registry=registry
        )
        Gauge("tokenfold_queue_depth", "Waiting runs.", registry=registry).set_function(depth)
        tokens = Counter(
            "tokenfold_tokens",
            "Tokens of images, with their text if the task has one, that entered the first layer "
            "and left the last.",
            ["task", "kind"],
            registry=registry,
        )
        flops = Counter(
            "tokenfold_flops",
            "Multiply-accumulates spent, and saved by the reduction.",
            ["task", "kind"],
            registry=registry,
        )
        self._counters = cache(
            lambda task: _TaskCounters(
                images.labels(task),
                tokens.labels(task, "in"),
                tokens.labels(task, "out"),
                flops.labels(task, "spent"),
                flops.labels(task, "saved"),
            )
        )
        self._memory = Gauge(
            "tokenfold_model_memory_bytes",
            "Weights on disk (weights); growth of the process while the model is loaded and runs "
            "on every worker (peak); growth of the used memory of the GPU (gpu_peak).",
            ["model", "kind"],
            registry=registry,
        )

    @contextmanager
    def track(self, task: str) -> Iterator[Track]:
        """Count a request with its outcome."""
        track = Track()
        begun = time.perf_counter()
        try:
            yield track
        except RequestError as error:
            track.outcome = error.outcome
            raise
        except asyncio.CancelledError:
            track.outcome = "abandoned"
            raise
        except BaseException:
            track.outcome = "error"
            raise
        finally:
            self._requests.labels(task, track.model, track.level, track.outcome).inc()
            if track.outcome in ("ok", "partial"):
                self._duration.labels(task, track.model, track.level).observe(
                    time.perf_counter() - begun
                )

    def stages(self, task: Task, milliseconds: Mapping[Stage, float]) -> None:
        """Note the time that a result spent in each stage."""
        for stage, spent in milliseconds.items():
            self._stage(task, stage).observe(spent / 1000)

    def run(self, lane: Lane, items: Sequence[Works]) -> None:
        """Note a run, and the cost of each of its items."""
        self._batch.observe(len(items))
        counters = self._counters(lane.call.task)
        works = items[0] if len(items) == 1 else [work for item in items for work in item]
        embedding = sum(work.embedding for work in works)
        if lane.call.step == "read":
            self._texts.inc(len(items))
            counters.spent.inc(sum(work.flops for work in works))
            return
        if lane.call.step == "embed":
            self._embedded.inc(len(items))
            counters.spent.inc(embedding)
            return
        counters.images.inc(len(works))
        counters.tokens_in.inc(sum(work.tokens_in for work in works))
        counters.tokens_out.inc(sum(work.tokens_out for work in works))
        spent, full = sum(work.flops for work in works), sum(work.full for work in works)
        counters.spent.inc(spent - embedding if lane.call.step == "fuse" else spent)
        counters.saved.inc(full - spent)

    def memory(self, model: str, *, weights: int, peak: int, gpu_peak: int | None = None) -> None:
        """Note the memory of a model, in bytes."""
        self._memory.labels(model, "weights").set(weights)
        self._memory.labels(model, "peak").set(peak)
        if gpu_peak is not None:
            self._memory.labels(model, "gpu_peak").set(gpu_peak)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its media type, as the scraper accepts them."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
