"""A second backend for tests: real sessions that accept batches and fail on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from tests.service.scheduling.backends.stub_kind import StubKind
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Call, Sample

MAX_BATCH = 4


class Second:
    """Backend of one model.

    Attributes:
        fails: returns whether a run of the given samples raises an error.
        wrong: error added to logits and embeddings.
        ran: batch sizes of the started runs.
        closed: number of calls of `close`.
    """

    def __init__(self, bundle: Bundle, fails: Callable[[Sequence[Sample]], bool]) -> None:
        self._inner = sessions.load(bundle)
        self.native = self._inner.native
        self.max_concurrent_runs = 2
        self.fails = fails
        self.wrong = 0.0
        self.ran: list[int] = []
        self.running = 0
        self.max_running = 0
        self.closed = 0
        self._lock = threading.Lock()

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, MAX_BATCH)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        assert not self.closed
        with self._lock:
            self.ran.append(len(samples))
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            if self.fails(samples):
                raise RuntimeError("the device is gone")
            outputs = self._inner.run(samples, call, slots=slots)
        finally:
            with self._lock:
                self.running -= 1
        return [
            {
                name: value + self.wrong if name in ("logits", "vector") else value
                for name, value in sample.items()
            }
            for sample in outputs
        ]

    def close(self) -> None:
        assert not self.running
        self.closed += 1


class Seconds:
    """Backend kind that creates `Second` backends.

    Attributes:
        made: created backends, one per loaded bundle.
    """

    def __init__(self, name: str = "cuda", *, device: str = "cuda") -> None:
        self.made: list[Second] = []
        self.fails: Callable[[Sequence[Sample]], bool] = lambda _: False
        self.wrong = 0.0
        self.error: Exception | None = None
        self.loaded = 0
        self.kind = StubKind(name, "cuda" if device == "cuda" else "cpu", self._load)

    def _load(self, bundle: Bundle) -> Second:
        self.loaded += 1
        if self.error is not None:
            raise self.error
        backend = Second(bundle, lambda samples: self.fails(samples))
        backend.wrong = self.wrong
        self.made.append(backend)
        return backend


def is_dark(sample: Sample) -> bool:
    """Whether a sample has a black image, which tests use to make runs fail."""
    return "image" in sample and not np.asarray(sample["image"]).any()
