"""Prometheus metrics of the backends."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class BackendMetrics:
    """Metrics of the backend of each model, and of backends that failed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failures = Counter(
            "tokenfold_backend_failures",
            "Backends given up for a model: at the start, or after a run that succeeded on the "
            "next backend.",
            ["model", "backend"],
            registry=registry,
        )
        self._used = Gauge(
            "tokenfold_model_backend",
            "1 for the backend that runs a model, 0 for a backend that was replaced or given up.",
            ["model", "backend"],
            registry=registry,
        )
        self._built = Gauge(
            "tokenfold_engine_build_progress",
            "Fraction of the build that is done, for engines that were not built at the start. "
            "Builds that were given up are removed.",
            ["model", "backend"],
            registry=registry,
        )

    def failed(self, model: str, backend: str) -> None:
        """Note that a backend was given up."""
        self._failures.labels(model, backend).inc()
        self._used.labels(model, backend).set(0)

    def uses(self, model: str, backend: str, *, before: str | None = None) -> None:
        """Note the backend that runs a model, and the one before it."""
        self._failures.labels(model, backend)  # the series exists from now on
        if before is not None:
            self._used.labels(model, before).set(0)
        self._used.labels(model, backend).set(1)

    def built(self, model: str, backend: str, done: float) -> None:
        """Note the progress of building a model's engines, 0 to 1."""
        self._built.labels(model, backend).set(done)

    def unbuilt(self, model: str, backend: str) -> None:
        """Note that a model's engines will not come into use, and remove their progress."""
        self._built.remove(model, backend)
