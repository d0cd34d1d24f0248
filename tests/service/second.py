"""A second backend to choose from: real sessions that take batches, and fail on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from tests.service.scheduling.backends.stub_kind import StubKind
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Call, Sample

MOST = 4


class Second:
    """One model's.

    Attributes:
        fails: whether a run of these samples raises.
        wrong: what is added to its logits and vectors.
        ran: batch sizes of the runs that were begun.
        closed: how often.
    """

    def __init__(self, bundle: Bundle, fails: Callable[[Sequence[Sample]], bool]) -> None:
        self._inner = sessions.load(bundle)
        self.native = self._inner.native
        self.max_concurrent_runs = 2
        self.fails = fails
        self.wrong = 0.0
        self.ran: list[int] = []
        self.running = 0
        self.most_running = 0
        self.closed = 0
        self._lock = threading.Lock()

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, MOST)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        assert not self.closed
        with self._lock:
            self.ran.append(len(samples))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if self.fails(samples):
                raise RuntimeError("the device is gone")
            found = self._inner.run(samples, call, slots=slots)
        finally:
            with self._lock:
                self.running -= 1
        return [
            {
                name: value + self.wrong if name in ("logits", "vector") else value
                for name, value in sample.items()
            }
            for sample in found
        ]

    def close(self) -> None:
        assert not self.running
        self.closed += 1


class Seconds:
    """A kind that makes them, and how they are made.

    Attributes:
        made: one for each bundle that was loaded.
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
        made = Second(bundle, lambda samples: self.fails(samples))
        made.wrong = self.wrong
        self.made.append(made)
        return made


def is_dark(sample: Sample) -> bool:
    """Whether it has a black image: items to fail by."""
    return "image" in sample and not np.asarray(sample["image"]).any()
