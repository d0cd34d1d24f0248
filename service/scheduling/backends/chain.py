"""A model's backend, and those that take over when it fails.

A run that raises is run again on the next backend. If that works, the fault was the backend's: it
is left for good. If it fails everywhere, the fault is the items', and nothing changes. Either way
they are answered as if there had been the other backend alone.

A better backend may be added while it runs: one whose engines had to be built first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.machine import cores
from tokenfold.service.scheduling.backends.backend import Backend, Call, Sample
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics

logger = logging.getLogger(__name__)


class _Stage:
    """A backend in its place.

    Attributes:
        backend: None as long as it is not loaded.
        running: runs on their way.
        left: not in use any more: it is closed as soon as nothing runs on it.
        given_up: left for good, or it could not be loaded.
    """

    def __init__(self, kind: BackendKind, backend: Backend | None = None) -> None:
        self.kind = kind
        self.backend = backend
        self.running = 0
        self.left = False
        self.given_up = False

    def spent(self) -> Backend | None:
        """What is to be closed of it now. For whoever holds the lock."""
        if not self.left or self.running:
            return None
        backend, self.backend = self.backend, None
        return backend


class BackendChain:
    """A chain of backends, of which one is in use; see `Backend`."""

    def __init__(
        self,
        bundle: Bundle,
        kind: BackendKind,
        backend: Backend,
        rest: Sequence[BackendKind] = (),
        *,
        metrics: BackendMetrics,
        switched: Callable[[BackendChain], None] = lambda _: None,
    ) -> None:
        """Args:
        kind, backend: what runs the bundle first.
        rest: what may take over, in order; loaded when it has to.
        switched: called, in whatever thread, when another backend has taken over.
        """
        self._name = bundle.manifest.name
        self._bundle = bundle
        self._metrics = metrics
        self._switched = switched
        self._stage = _Stage(kind, backend)
        self._current = backend
        # The best first. It is replaced, never changed: threads go through it.
        self._stages = (self._stage, *map(_Stage, rest))
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        metrics.uses(self._name, kind.name)

    @property
    def kind(self) -> BackendKind:
        """What runs it now."""
        return self._stage.kind

    @property
    def native(self) -> bool:
        """See `Backend.native`."""
        return self._current.native

    @property
    def max_concurrent_runs(self) -> int | None:
        """See `Backend.max_concurrent_runs`."""
        return self._current.max_concurrent_runs

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        """See `Backend.batch_size_for`."""
        return self._current.batch_size_for(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        stage, backend = self._enter()
        try:
            return backend.run(samples, call, slots=slots)
        except Exception as error:
            first = error
        finally:
            self._exit(stage)
        found = self._elsewhere(stage, samples, call, slots, first)
        if found is None:
            raise first
        return found

    def promote(self, kind: BackendKind, backend: Backend) -> None:
        """Let a better backend run the bundle from now on, one that has passed its self-test.

        What was in use is closed when its last run has ended. It is the next to take over, and
        loaded again then.
        """
        stage = _Stage(kind, backend)
        with self._lock:
            before = self._stage
            self._stage, self._current = stage, backend
            self._stages = (stage, *self._stages)
            before.left = True
            spent = before.spent()
            self._metrics.uses(self._name, kind.name, before=before.kind.name)
        logger.info("%s: %s takes over from %s", *(self._name, kind.name, before.kind.name))
        self._close(before.kind, spent)
        self._switched(self)

    def close(self) -> None:
        """See `Backend.close`."""
        for stage in self._stages:
            with self._lock:
                stage.left = True
                spent = stage.spent()
            self._close(stage.kind, spent)

    def _elsewhere(
        self, failed: _Stage, samples: Sequence[Sample], call: Call, slots: bool, error: Exception
    ) -> Sequence[Sample] | None:
        """The same run on the others; None if there are none, or it fails there too.

        Most often on those that come after. But while it ran, a better one may have come.
        """
        failing = [failed]
        for stage in self._stages:
            backend = None if stage is failed else self._enter_other(stage)
            if backend is None:
                continue
            try:
                found = _in_pieces(backend, samples, call, slots)
            except Exception:
                logger.exception("%s: a run failed on %s too", self._name, stage.kind.name)
                failing.append(stage)
            else:
                self._give_up(failing, stage, error)
                return found
            finally:
                self._exit(stage)
        return None

    def _enter(self) -> tuple[_Stage, Backend]:
        with self._lock:
            self._stage.running += 1
            return self._stage, self._current

    def _enter_other(self, stage: _Stage) -> Backend | None:
        """A backend that may not be in use, loaded; None if it is given up, or cannot be loaded."""
        # The first of several failing threads loads it, the others wait for that.
        with self._loading:
            with self._lock:
                if stage.given_up:
                    return None
                if stage.backend is not None:
                    stage.running += 1
                    return stage.backend
            try:
                backend = stage.kind.load(self._bundle)
            except Exception:
                stage.given_up = True
                logger.exception("%s: %s cannot be loaded", self._name, stage.kind.name)
                self._metrics.failed(self._name, stage.kind.name)
                return None
            with self._lock:
                # A run that it had before may have failed meanwhile.
                stage.backend, stage.left = backend, stage.given_up
                stage.running += 1
                return backend

    def _exit(self, stage: _Stage) -> None:
        with self._lock:
            stage.running -= 1
            spent = stage.spent()
        self._close(stage.kind, spent)

    def _give_up(self, failing: Sequence[_Stage], working: _Stage, error: Exception) -> None:
        """Leave for good what has failed where another one worked."""
        with self._lock:
            left = [stage for stage in failing if not stage.given_up]
            for stage in left:
                stage.given_up = stage.left = True
            # Else another thread was first, or what failed was in use no more.
            switched = self._stage.given_up
            if switched:
                assert working.backend is not None  # this thread is still in it
                # It has just worked, whatever another run of it has come to.
                working.left = working.given_up = False
                self._stage, self._current = working, working.backend
                # Not later: by then another thread may have left this one too.
                self._metrics.uses(self._name, working.kind.name)
            spent = [(stage.kind, stage.spent()) for stage in left]
        for stage in left:
            logger.error(
                "%s: backend %s failed and is given up; %s takes over: %s",
                *(self._name, stage.kind.name, working.kind.name, error),
                exc_info=error,
            )
            self._metrics.failed(self._name, stage.kind.name)
        for kind, backend in spent:
            self._close(kind, backend)
        if switched:
            self._switched(self)

    def _close(self, kind: BackendKind, backend: Backend | None) -> None:
        """Give back what a backend holds, if there is one, in which nothing runs."""
        if backend is None:
            return
        try:
            backend.close()
        except Exception:
            # Of a device that has failed, giving things back may fail as well.
            logger.exception("%s: %s could not be closed", self._name, kind.name)


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
        size = max(1, backend.batch_size_for(call, len(samples)))
        pieces.append(samples[:size])
        samples = samples[size:]
    with ThreadPoolExecutor(backend.max_concurrent_runs or cores()) as pool:
        return [output for outputs in pool.map(run, pieces) for output in outputs]
