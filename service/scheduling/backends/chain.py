"""A chain of backends for one model: the next one takes over when one fails.

A run that raises is repeated on the next backend. If it succeeds there, the first backend was at
fault and is not used again. If it fails everywhere, the items were at fault, nothing changes, and
the caller gets the first error.

A better backend may be promoted to the front later, once its TensorRT engines are built.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenfold.bundle.bundle import Bundle
from tokenfold.inference.backend import Backend, Call, Sample
from tokenfold.runtime.machine import cores
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics

logger = logging.getLogger(__name__)


class _Link:
    """A link of the chain.

    Attributes:
        kind: the kind of backend.
        backend: the backend; None while it is not loaded.
        running: its runs in flight.
        left: whether it was replaced; it is closed after its last run.
        given_up: whether it has failed, or could not be loaded.
    """

    def __init__(self, kind: BackendKind, backend: Backend | None = None) -> None:
        self.kind = kind
        self.backend = backend
        self.running = 0
        self.left = False
        self.given_up = False

    def take_closable(self) -> Backend | None:
        """Return the backend to close now, if any. The caller holds the lock."""
        if not self.left or self.running:
            return None
        backend, self.backend = self.backend, None
        return backend


class BackendChain:
    """A chain of backends, one of which is in use. It is a `Backend` itself."""

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
        """Create a chain.

        Args:
            bundle: the bundle that the backends run.
            kind: kind of the first backend.
            backend: the first backend.
            rest: kinds that may take over, in order; each is loaded when it has to.
            metrics: where changes are counted.
            switched: called, in any thread, when another backend has taken over.
        """
        self._name = bundle.manifest.name
        self._bundle = bundle
        self._metrics = metrics
        self._switched = switched
        self._link = _Link(kind, backend)
        self._current = backend
        # The best first. It is replaced and never changed, because threads iterate over it.
        self._links = (self._link, *map(_Link, rest))
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        metrics.uses(self._name, kind.name)

    @property
    def kind(self) -> BackendKind:
        """The kind of the backend in use."""
        return self._link.kind

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
        link, backend = self._enter()
        try:
            return backend.run(samples, call, slots=slots)
        except Exception as error:
            first = error
        finally:
            self._exit(link)
        outputs = self._run_elsewhere(link, samples, call, slots, first)
        if outputs is None:
            raise first
        return outputs

    def promote(self, kind: BackendKind, backend: Backend) -> None:
        """Put a better backend, which has passed its self-test, in front of the chain.

        The backend that was in use is closed after its last run. It is the next to take over, and
        is loaded again then.
        """
        link = _Link(kind, backend)
        with self._lock:
            before = self._link
            self._link, self._current = link, backend
            self._links = (link, *self._links)
            before.left = True
            spent = before.take_closable()
            self._metrics.uses(self._name, kind.name, before=before.kind.name)
        logger.info("%s: %s takes over from %s", *(self._name, kind.name, before.kind.name))
        self._close(before.kind, spent)
        self._switched(self)

    def close(self) -> None:
        """See `Backend.close`."""
        for link in self._links:
            with self._lock:
                link.left = True
                spent = link.take_closable()
            self._close(link.kind, spent)

    def _run_elsewhere(
        self, failed: _Link, samples: Sequence[Sample], call: Call, slots: bool, error: Exception
    ) -> Sequence[Sample] | None:
        """Repeat a run on the other backends. Return None if it fails on all of them.

        Usually these are the ones behind the failed one, but a better one may have been promoted
        while it ran.
        """
        failing = [failed]
        for link in self._links:
            backend = None if link is failed else self._enter_other(link)
            if backend is None:
                continue
            try:
                outputs = _in_pieces(backend, samples, call, slots)
            except Exception:
                logger.exception("%s: a run failed on %s too", self._name, link.kind.name)
                failing.append(link)
            else:
                self._give_up(failing, link, error)
                return outputs
            finally:
                self._exit(link)
        return None

    def _enter(self) -> tuple[_Link, Backend]:
        with self._lock:
            self._link.running += 1
            return self._link, self._current

    def _enter_other(self, link: _Link) -> Backend | None:
        """Enter a backend that may not be in use; return None if it cannot be loaded."""
        # The first of several failing threads loads it, and the others wait.
        with self._loading:
            with self._lock:
                if link.given_up:
                    return None
                if link.backend is not None:
                    link.running += 1
                    return link.backend
            try:
                backend = link.kind.load(self._bundle)
            except Exception:
                with self._lock:
                    link.given_up = True
                logger.exception("%s: %s cannot be loaded", self._name, link.kind.name)
                self._metrics.failed(self._name, link.kind.name)
                return None
            with self._lock:
                # An earlier run of it may have failed meanwhile.
                link.backend, link.left = backend, link.given_up
                link.running += 1
                return backend

    def _exit(self, link: _Link) -> None:
        with self._lock:
            link.running -= 1
            spent = link.take_closable()
        self._close(link.kind, spent)

    def _give_up(self, failing: Sequence[_Link], working: _Link, error: Exception) -> None:
        """Give up the backends that failed where another one worked."""
        with self._lock:
            left = [link for link in failing if not link.given_up]
            for link in left:
                link.given_up = link.left = True
            # If not, another thread was first, or the failed backend was no longer in use.
            switched = self._link.given_up
            if switched:
                assert working.backend is not None  # this thread has not left it yet
                # It has just worked, whatever became of another run of it.
                working.left = working.given_up = False
                self._link, self._current = working, working.backend
                # Later, another thread may have given up this one too.
                self._metrics.uses(self._name, working.kind.name)
            spent = [(link.kind, link.take_closable()) for link in left]
        for link in left:
            logger.error(
                "%s: backend %s failed and is given up; %s takes over: %s",
                *(self._name, link.kind.name, working.kind.name, error),
                exc_info=error,
            )
            self._metrics.failed(self._name, link.kind.name)
        for kind, backend in spent:
            self._close(kind, backend)
        if switched:
            self._switched(self)

    def _close(self, kind: BackendKind, backend: Backend | None) -> None:
        """Close a backend without runs in flight, if there is one."""
        if backend is None:
            return
        try:
            backend.close()
        except Exception:
            # Closing may fail too on a device that has failed.
            logger.exception("%s: %s could not be closed", self._name, kind.name)


def _in_pieces(
    backend: Backend, samples: Sequence[Sample], call: Call, slots: bool
) -> list[Sample]:
    """Repeat a run of another backend in batches of this backend's size.

    The batches run concurrently: one after the other, the images of a GPU's batch would take a CPU
    longer than a request may take.
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
