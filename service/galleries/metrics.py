"""Prometheus metrics of galleries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

QueryKind = Literal["text", "image", "id"]

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class GalleryMetrics:
    """Sizes of galleries, and durations of searches and of adding images."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._images = Gauge(
            "tokenfold_gallery_images", "Images in a gallery.", ["gallery"], registry=registry
        )
        self._search = Histogram(
            "tokenfold_gallery_search_duration_seconds",
            "Duration of successful searches, including embedding and reranking.",
            ["by"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._ingest = Histogram(
            "tokenfold_gallery_ingest_duration_seconds",
            "Duration of requests that add images, from reading the body to writing to disk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._ingested = Counter(
            "tokenfold_gallery_ingested_images",
            "Images sent to galleries, by result.",
            ["status"],
            registry=registry,
        )
        self._reported: set[str] = set()

    def sizes(self, images: Mapping[str, int]) -> None:
        """Set the number of images of all galleries; forget the others."""
        for removed in self._reported - set(images):
            self.forget(removed)
        for gallery, count in images.items():
            self.size(gallery, count)

    def size(self, gallery: str, images: int) -> None:
        """Set the number of images of one gallery."""
        self._reported.add(gallery)
        self._images.labels(gallery).set(images)

    def forget(self, gallery: str) -> None:
        """Forget a deleted gallery."""
        if gallery in self._reported:
            self._reported.discard(gallery)
            self._images.remove(gallery)

    def searched(self, kind: QueryKind, seconds: float) -> None:
        """Record a successful search."""
        self._search.labels(kind).observe(seconds)

    def ingested(self, statuses: Iterable[str], seconds: float) -> None:
        """Record a request that added images.

        Args:
            statuses: status of each image: added, replaced, unchanged or failed.
        """
        self._ingest.observe(seconds)
        for status in statuses:
            self._ingested.labels(status).inc()
