"""What Prometheus is told of backends."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class BackendMetrics:
    """Which backend runs each model, and which ones failed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failures = Counter(
            "tokenfold_backend_failures",
            "Times that a backend was given up for a model: at the start, or when a run failed "
            "that went well on the next one.",
            ["model", "backend"],
            registry=registry,
        )
        self._used = Gauge(
            "tokenfold_model_backend",
            "1 for the backend that runs a model, 0 for one that was given up.",
            ["model", "backend"],
            registry=registry,
        )

    def failed(self, model: str, backend: str) -> None:
        """Note that a backend was given up."""
        self._failures.labels(model, backend).inc()
        self._used.labels(model, backend).set(0)

    def uses(self, model: str, backend: str) -> None:
        """Note what runs a model now."""
        self._failures.labels(model, backend)  # from now on it is there to be watched
        self._used.labels(model, backend).set(1)
