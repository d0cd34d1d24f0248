"""What Prometheus scrapes. One object owns one registry: several apps can live in a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

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
from tokenfold.inference.work import Works
from tokenfold.service.galleries.metrics import GalleryMetrics
from tokenfold.service.gpus import GpuCollector
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.queue import Lane

Stage = Literal["decode", "queue", "infer", "post"]

UNKNOWN = "unknown"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)

# A second series for each counter that says when it was created, and which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Track:
    """What is learnt of a request on its way. The labels come from known names only.

    Attributes:
        outcome: ok, partial (some items failed), invalid, rejected, expired, abandoned, error.
    """

    def __init__(self) -> None:
        self.model = UNKNOWN
        self.level = UNKNOWN
        self.outcome = "ok"


class _Done(NamedTuple):
    """What runs of one task are counted by: to look it up each time takes longer than to count."""

    images: Counter
    tokens_in: Counter
    tokens_out: Counter
    spent: Counter
    saved: Counter


class Metrics:
    """Every metric of a server.

    Attributes:
        galleries: those of galleries.
        backends: those of backends.
    """

    def __init__(self, depth: Callable[[], int]) -> None:
        """Args:
        depth: runs that wait, asked at each scrape.
        """
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(GpuCollector())
        self.galleries = GalleryMetrics(registry)
        self.backends = BackendMetrics(registry)
        self._requests = Counter(
            "tokenfold_requests",
            "Requests, by how they ended.",
            ["task", "model", "level", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "tokenfold_request_duration_seconds",
            "From the request's first byte to its answer, of requests that were answered.",
            ["task", "model", "level"],
            buckets=SECONDS,
            registry=registry,
        )
        stages = Histogram(
            "tokenfold_stage_duration_seconds",
            "Time of a result in each stage.",
            ["task", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stage = cache(stages.labels)  # as `_Done`: looked up once
        images = Counter(
            "tokenfold_images",
            "Images, each with its text where the task has one, that went through a model.",
            ["task"],
            registry=registry,
        )
        self._embedded = Counter(
            "tokenfold_embedded_images",
            "Images that were embedded once for several texts.",
            registry=registry,
        )
        self._texts = Counter(
            "tokenfold_texts",
            "Texts without an image that went through a model.",
            registry=registry,
        )
        self._batch = Histogram(
            "tokenfold_batch_size", "Items of a run.", buckets=BATCHES, registry=registry
        )
        Gauge("tokenfold_queue_depth", "Runs that wait.", registry=registry).set_function(depth)
        tokens = Counter(
            "tokenfold_tokens",
            "Tokens of images, each with its text where the task has one, that entered the first "
            "layer and left the last.",
            ["task", "kind"],
            registry=registry,
        )
        flops = Counter(
            "tokenfold_flops",
            "Multiply-accumulates done, and not done thanks to the reduction.",
            ["task", "kind"],
            registry=registry,
        )
        self._done = cache(
            lambda task: _Done(
                images.labels(task),
                tokens.labels(task, "in"),
                tokens.labels(task, "out"),
                flops.labels(task, "spent"),
                flops.labels(task, "saved"),
            )
        )
        self._memory = Gauge(
            "tokenfold_model_memory_bytes",
            "Weights on disk; growth of the process by loading the model and running its levels on "
            "every worker at once; and on a GPU of the GPU's used memory.",
            ["model", "kind"],
            registry=registry,
        )

    @contextmanager
    def track(self, task: str) -> Iterator[Track]:
        """Count a request, however it ends."""
        found = Track()
        begun = time.perf_counter()
        try:
            yield found
        except RequestError as error:
            found.outcome = error.outcome
            raise
        except asyncio.CancelledError:
            found.outcome = "abandoned"
            raise
        except BaseException:
            found.outcome = "error"
            raise
        finally:
            self._requests.labels(task, found.model, found.level, found.outcome).inc()
            if found.outcome in ("ok", "partial"):
                self._duration.labels(task, found.model, found.level).observe(
                    time.perf_counter() - begun
                )

    def stages(self, task: Task, seconds: Mapping[Stage, float]) -> None:
        """Note how long a result spent in each stage."""
        for stage, spent in seconds.items():
            self._stage(task, stage).observe(spent)

    def run(self, lane: Lane, items: Sequence[Works]) -> None:
        """Note a run, and what it costs for each of its items."""
        self._batch.observe(len(items))
        done = self._done(lane.call.task)
        works = items[0] if len(items) == 1 else [work for item in items for work in item]
        embedding = sum(work.embedding for work in works)
        if lane.call.step == "read":
            self._texts.inc(len(items))
            done.spent.inc(sum(work.flops for work in works))
            return
        if lane.call.step == "embed":
            self._embedded.inc(len(items))
            done.spent.inc(embedding)
            return
        done.images.inc(len(works))
        done.tokens_in.inc(sum(work.tokens_in for work in works))
        done.tokens_out.inc(sum(work.tokens_out for work in works))
        spent, full = sum(work.flops for work in works), sum(work.full for work in works)
        done.spent.inc(spent - embedding if lane.call.step == "fuse" else spent)
        done.saved.inc(full - spent)

    def memory(self, model: str, *, weights: int, peak: int, gpu_peak: int | None = None) -> None:
        """Note a model's bytes."""
        self._memory.labels(model, "weights").set(weights)
        self._memory.labels(model, "peak").set(peak)
        if gpu_peak is not None:
            self._memory.labels(model, "gpu_peak").set(gpu_peak)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its media type, as the scraper accepts them."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
