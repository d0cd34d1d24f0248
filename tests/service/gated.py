"""A server whose runs wait until the test opens a gate."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.service import standin
from tests.service.scheduling.backends.stub_kind import StubKind
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Call, Sample
from tokenfold.service.app import create_app


class Slow:
    """The real backend; its runs wait for `gate`."""

    def __init__(self, bundle: Bundle) -> None:
        self._inner = sessions.load(bundle)
        self.native = self._inner.native
        self.max_concurrent_runs = self._inner.max_concurrent_runs
        self.gate = threading.Event()
        self.gate.set()
        self.running = 0
        self.ran = 0
        self.calls: list[Call] = []
        self.error: BaseException | None = None

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        return self._inner.batch_size_for(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        self.running += 1
        self.gate.wait(20)
        self.running -= 1
        if self.error is not None:
            raise self.error
        self.ran += 1
        self.calls.append(call)
        return self._inner.run(samples, call, slots=slots)

    def close(self) -> None:
        self._inner.close()


class Gated:
    """A server that runs models on `Slow` backends."""

    def __init__(self, bundles: Path, **changes: Any) -> None:
        self.backends: list[Slow] = []
        self.app = create_app(
            standin.settings(bundles, workers=1, decoders=1, **changes),
            kinds=[StubKind("cpu", "cpu", self._load)],
        )

    def _load(self, bundle: Bundle) -> Slow:
        self.backends.append(Slow(bundle))
        return self.backends[-1]

    @property
    def backend(self) -> Slow:
        return self.backends[0]
