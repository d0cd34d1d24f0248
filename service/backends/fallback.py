"""A model's backend, and those that take over when it fails.

A run that raises is run again on the next backend. If that works, the fault was the backend's: it
is left for good. If it fails everywhere, the fault is the items', and nothing changes. Either way
they are answered as if there had been the other backend alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from export.bundle import Bundle
from service.backends.backend import Backend, Call, Sample
from service.backends.kinds import Kind
from service.backends.metrics import BackendMetrics
from service.settings import cores

logger = logging.getLogger(__name__)


class _Stage:
    """A backend in its place.

    Attributes:
        backend: None as long as it is not loaded.
        running: runs on their way.
        broken: whether it could not be loaded.
    """

    def __init__(self, kind: Kind, backend: Backend | None = None) -> None:
        self.kind = kind
        self.backend = backend
        self.running = 0
        self.broken = False


class Fallback:
    """A chain of backends, of which one is in use; see `Backend`."""

    def __init__(
        self,
        bundle: Bundle,
        kind: Kind,
        backend: Backend,
        rest: Sequence[Kind] = (),
        *,
        metrics: BackendMetrics,
        switched: Callable[[Fallback], None] = lambda _: None,
    ) -> None:
        """Args:
        kind, backend: what runs the bundle first.
        rest: what may take over, in order; loaded when it has to.
        switched: called, in the worker, when another backend has taken over.
        """
        self._name = bundle.manifest.name
        self._bundle = bundle
        self._metrics = metrics
        self._switched = switched
        self._stages = [_Stage(kind, backend), *map(_Stage, rest)]
        self._at = 0
        self._current = backend
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        metrics.uses(self._name, kind.name)

    @property
    def kind(self) -> Kind:
        """What runs it now."""
        return self._stages[self._at].kind

    @property
    def native(self) -> bool:
        """See `Backend.native`."""
        return self._current.native

    @property
    def at_once(self) -> int | None:
        """See `Backend.at_once`."""
        return self._current.at_once

    def take(self, call: Call, waiting: int, /) -> int:
        """See `Backend.take`."""
        return self._current.take(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        at, backend = self._enter()
        try:
            return backend.run(samples, call, slots=slots)
        except Exception as error:
            first = error
        finally:
            self._exit(at)
        found = self._elsewhere(at, samples, call, slots, first)
        if found is None:
            raise first
        return found

    def close(self) -> None:
        """See `Backend.close`."""
        for stage in self._stages[self._at :]:
            self._close(stage)

    def _elsewhere(
        self, failed: int, samples: Sequence[Sample], call: Call, slots: bool, error: Exception
    ) -> Sequence[Sample] | None:
        """The same run on what comes after; None if there is nothing, or it fails there too."""
        for at in range(failed + 1, len(self._stages)):
            backend = self._enter_later(at)
            if backend is None:
                continue
            try:
                found = _in_pieces(backend, samples, call, slots)
            except Exception:
                kind = self._stages[at].kind
                logger.exception("%s: a run failed on %s too", self._name, kind.name)
                continue
            finally:
                self._exit(at)
            self._move(at, error)
            return found
        return None

    def _enter(self) -> tuple[int, Backend]:
        with self._lock:
            self._stages[self._at].running += 1
            return self._at, self._current

    def _enter_later(self, at: int) -> Backend | None:
        """A backend that is not in use, loaded; None if it is left, or cannot be loaded."""
        stage = self._stages[at]
        # The first of several failing threads loads it, the others wait for that.
        with self._loading:
            if stage.backend is None and not stage.broken and at > self._at:
                try:
                    stage.backend = stage.kind.load(self._bundle)
                except Exception:
                    stage.broken = True
                    logger.exception("%s: %s cannot be loaded", self._name, stage.kind.name)
                    self._metrics.failed(self._name, stage.kind.name)
        with self._lock:
            if at < self._at or stage.backend is None:
                return None
            stage.running += 1
            return stage.backend

    def _exit(self, at: int) -> None:
        stage = self._stages[at]
        with self._lock:
            stage.running -= 1
            last = at < self._at and not stage.running
        if last:
            self._close(stage)

    def _move(self, to: int, error: Exception) -> None:
        """Leave what is in use, for good."""
        with self._lock:
            if self._at >= to:
                return  # another thread was first
            left, taken = self._stages[self._at : to], self._stages[to]
            assert taken.backend is not None  # it has just run
            self._at, self._current = to, taken.backend
            idle = [stage for stage in left if not stage.running]
            # Not later: by then another thread may have left this one too.
            self._metrics.uses(self._name, taken.kind.name)
        for stage in left:
            logger.error(
                "%s: backend %s failed and is given up; %s takes over: %s",
                *(self._name, stage.kind.name, taken.kind.name, error),
                exc_info=error,
            )
            if not stage.broken:  # which was counted
                self._metrics.failed(self._name, stage.kind.name)
        for stage in idle:
            self._close(stage)
        self._switched(self)

    def _close(self, stage: _Stage) -> None:
        """Give back what a stage holds, in which nothing runs."""
        with self._lock:
            backend, stage.backend = stage.backend, None
        if backend is None:
            return
        try:
            backend.close()
        except Exception:
            # Of a device that has failed, giving things back may fail as well.
            logger.exception("%s: %s could not be closed", self._name, stage.kind.name)


def _in_pieces(
    backend: Backend, samples: Sequence[Sample], call: Call, slots: bool
) -> list[Sample]:
    """A run that was made for another backend, in as many as this one likes.

    They run side by side: one after the other, those of a GPU's batch would take a CPU longer than
    a request may.
    """

    def run(piece: Sequence[Sample]) -> list[Sample]:
        outputs = backend.run(piece, call, slots=slots)
        return [output for _, output in zip(piece, outputs, strict=True)]

    pieces: list[Sequence[Sample]] = []
    while samples:
        size = max(1, backend.take(call, len(samples)))
        pieces.append(samples[:size])
        samples = samples[size:]
    with ThreadPoolExecutor(backend.at_once or cores()) as pool:
        return [output for outputs in pool.map(run, pieces) for output in outputs]
