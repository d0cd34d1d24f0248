"""Backends that are better than what runs a model, once something is built that they need.

Whatever can run a model without that does so meanwhile. What is built passes the self-test, as at
the start, and takes over; or it fails, and nothing changes. Where nothing else may run a model, it
is built before the server is ready.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt.process import Progress, StoppedError
from tokenfold.service.scheduling.backends import choice
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.backends.status import EngineStatus

logger = logging.getLogger(__name__)


class _Job:
    """A model's engines.

    Attributes:
        alone: whether nothing else may run the model meanwhile.
        tenths: of the building that the log knows of.
    """

    def __init__(self, bundle: Bundle, kind: BackendKind, *, alone: bool) -> None:
        self.bundle = bundle
        self.kind = kind
        self.alone = alone
        self.tenths = 0
        self.status = EngineStatus(
            model=bundle.manifest.name, backend=kind.name, state="waiting", done=0.0
        )

    @property
    def names(self) -> tuple[str, str]:
        """Of the model and of the backend."""
        return self.status.model, self.status.backend

    def now(self, **changes: Any) -> None:
        """Change its status, which is replaced as a whole: threads look at it."""
        self.status = self.status.model_copy(update=changes)


class Preparation:
    """What is to be built, and the thread that does it, one model after the other."""

    def __init__(self, metrics: BackendMetrics) -> None:
        self._metrics = metrics
        self._jobs: list[_Job] = []
        self._running: Mapping[str, BackendChain] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    @property
    def statuses(self) -> list[EngineStatus]:
        """Of every model that was not prepared when the server started."""
        return [self._status(job) for job in self._jobs]

    def survey(self, bundle: Bundle, kinds: Sequence[BackendKind]) -> list[BackendKind]:
        """Those of `kinds` that are to run a bundle at first, in order.

        If one before them has something to be built, that is noted. If all have, it is the first,
        and `before` builds that.

        Args:
            kinds: that can run the bundle; 1 or more.

        Raises:
            Exception: of the last kind, if it cannot be learnt of any what there is to be built.
        """
        name = bundle.manifest.name
        ready: list[BackendKind] = []
        better: BackendKind | None = None
        for at, kind in enumerate(kinds):
            try:
                missing = kind.unprepared(bundle)
            except Exception as error:
                if at + 1 == len(kinds) and better is None and not ready:
                    raise
                self._passed_over(name, kind, error)
                continue
            if not missing:
                ready.append(kind)
            elif better is None and not ready:
                better = kind
                logger.info(
                    "%s: backend %s is not used yet: its engines are not built",
                    *(name, kind.name),
                    extra={"engines": list(missing)},
                )
        if better is None:
            return ready
        self._jobs.append(_Job(bundle, better, alone=not ready))
        self._metrics.built(name, better.name, 0.0)
        return ready or [better]

    @contextlib.contextmanager
    def before(self, bundle: Bundle) -> Iterator[None]:
        """Build what a bundle cannot be loaded without; inside, it is loaded.

        Raises:
            BuildError: that failed.
            StoppedError: the server shuts down.
        """
        job = next((job for job in self._jobs if job.alone and job.bundle is bundle), None)
        with contextlib.nullcontext() if job is None else self._prepared(job):
            yield

    def start(self, running: Mapping[str, BackendChain]) -> None:
        """Build the others in the background.

        Args:
            running: what runs each model meanwhile, by the model's name.
        """
        self._running = running
        if not all(job.alone for job in self._jobs):
            self._thread.start()

    def stop(self) -> None:
        """Give up what is not built yet; from any thread, at any time. `join` waits for the end."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end, for some seconds. Whether it has come."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        for job in self._jobs:
            if job.alone:
                continue
            try:
                with self._prepared(job):
                    self._promote(job)
            except StoppedError:
                logger.info("engines given up: the server is shutting down")
                for left in self._jobs:
                    if left.status.state != "serving":
                        self._metrics.unbuilt(*left.names)
                return
            except Exception:
                continue  # which is told; the others may be in better luck

    def _promote(self, job: _Job) -> None:
        backend = choice.tested(job.bundle, job.kind)
        if self._stopping.is_set():
            backend.close()
            raise StoppedError
        self._running[job.status.model].promote(job.kind, backend)

    @contextlib.contextmanager
    def _prepared(self, job: _Job) -> Iterator[None]:
        """Build a model's engines; inside, they are tested and brought into use."""
        begun = time.perf_counter()
        if self._stopping.is_set():
            raise StoppedError
        logger.info("%s: engines for backend %s are being built", *job.names)
        job.now(state="building")
        try:
            job.kind.prepare(job.bundle, lambda found: self._told(job, found), self._stopping)
            seconds = round(time.perf_counter() - begun, 3)
            logger.info(
                "%s: engines for backend %s are built", *job.names, extra={"seconds": seconds}
            )
            self._metrics.built(*job.names, 1.0)
            job.now(state="testing", done=1.0, engine=None, phase=None)
            yield
        except StoppedError:
            raise
        except Exception as error:
            # Where there is no other the server ends, and says so itself.
            if not job.alone:
                self._passed_over(job.status.model, job.kind, error)
            self._metrics.unbuilt(*job.names)
            why = str(error) or type(error).__name__
            job.now(state="failed", why=why, engine=None, phase=None)
            raise
        job.now(state="serving")

    def _told(self, job: _Job, found: Progress) -> None:
        # Another engine's beginning sets nothing back.
        done = max(job.status.done, found.done)
        self._metrics.built(*job.names, done)
        job.now(done=done, engine=found.engine, phase=found.phase)
        tenths = int(done * 10)
        if tenths > job.tenths:
            job.tenths = tenths
            logger.info(
                "%s: engines for backend %s are built to %d %%",
                *(*job.names, 10 * tenths),
                extra={"engine": found.engine, "phase": found.phase},
            )

    def _passed_over(self, model: str, kind: BackendKind, error: Exception) -> None:
        self._metrics.failed(model, kind.name)
        logger.error("%s: backend %s is not used: %s", model, kind.name, error, exc_info=error)

    def _status(self, job: _Job) -> EngineStatus:
        status = job.status
        runs = self._running.get(status.model)
        if status.state != "serving" or runs is None or runs.kind is job.kind:
            return status
        why = "it failed while it served; the log says more"
        return status.model_copy(update={"state": "failed", "why": why})
