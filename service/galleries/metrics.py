"""What Prometheus is told of galleries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

By = Literal["text", "image", "id"]

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class GalleryMetrics:
    """How large galleries are, and how long it takes to search and to fill them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._images = Gauge(
            "tokenfold_gallery_images", "Images of a gallery.", ["gallery"], registry=registry
        )
        self._search = Histogram(
            "tokenfold_gallery_search_duration_seconds",
            "Of searches that were answered, embedding and ranking again included.",
            ["by"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._ingest = Histogram(
            "tokenfold_gallery_ingest_duration_seconds",
            "Of requests that add images, from their body to the disk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._ingested = Counter(
            "tokenfold_gallery_ingested_images",
            "Images sent to galleries, by what became of them.",
            ["status"],
            registry=registry,
        )
        self._known: set[str] = set()

    def sizes(self, images: Mapping[str, int]) -> None:
        """Note the images of every gallery there is."""
        for gone in self._known - set(images):
            self.gone(gone)
        for gallery, count in images.items():
            self.size(gallery, count)

    def size(self, gallery: str, images: int) -> None:
        """Note the images of one gallery."""
        self._known.add(gallery)
        self._images.labels(gallery).set(images)

    def gone(self, gallery: str) -> None:
        """A gallery was deleted."""
        if gallery in self._known:
            self._known.discard(gallery)
            self._images.remove(gallery)

    def searched(self, by: By, seconds: float) -> None:
        """Note a search that was answered."""
        self._search.labels(by).observe(seconds)

    def ingested(self, statuses: Iterable[str], seconds: float) -> None:
        """Note a request that added images.

        Args:
            statuses: of its images: added, replaced, unchanged or failed.
        """
        self._ingest.observe(seconds)
        for status in statuses:
            self._ingested.labels(status).inc()
