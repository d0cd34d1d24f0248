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
            "1 for the backend that runs a model, 0 for one that did, or that was given up.",
            ["model", "backend"],
            registry=registry,
        )
        self._built = Gauge(
            "tokenfold_engine_build_progress",
            "Of engines that were not built when the server started: the share of it that is "
            "done; nothing of those that are given up. What runs the model says whether they are "
            "in use.",
            ["model", "backend"],
            registry=registry,
        )

    def failed(self, model: str, backend: str) -> None:
        """Note that a backend was given up."""
        self._failures.labels(model, backend).inc()
        self._used.labels(model, backend).set(0)

    def uses(self, model: str, backend: str, *, before: str | None = None) -> None:
        """Note what runs a model now, and what did before."""
        self._failures.labels(model, backend)  # from now on it is there to be watched
        if before is not None:
            self._used.labels(model, before).set(0)
        self._used.labels(model, backend).set(1)

    def built(self, model: str, backend: str, done: float) -> None:
        """Note how much of a model's engines is built, 0 to 1."""
        self._built.labels(model, backend).set(done)

    def unbuilt(self, model: str, backend: str) -> None:
        """Note that a model's engines will not come into use: their progress is none any more."""
        self._built.remove(model, backend)
