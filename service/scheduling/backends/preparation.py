"""Build TensorRT engines in the background, then switch to them.

Another backend runs the model meanwhile. The engines take over once they pass the self-test; if the
build or the test fails, nothing changes. If no other backend may run the model, its engines are
built before the server is ready.
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
from tokenfold.service.scheduling.backends import selection
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.backends.status import EngineStatus

logger = logging.getLogger(__name__)


class _Build:
    """The build of a model's engines.

    Attributes:
        bundle: the bundle.
        kind: the kind of backend that needs them.
        alone: whether no other backend may run the model meanwhile.
        tenths: tenths of the build that the log has reported.
        status: its state.
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
        """The names of the model and of the backend."""
        return self.status.model, self.status.backend

    def now(self, **changes: Any) -> None:
        """Change the status. It is replaced as a whole, because other threads read it."""
        self.status = self.status.model_copy(update=changes)


class Preparation:
    """The builds, and the thread that runs them one after the other."""

    def __init__(self, metrics: BackendMetrics) -> None:
        self._metrics = metrics
        self._builds: list[_Build] = []
        self._chains: Mapping[str, BackendChain] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    @property
    def statuses(self) -> list[EngineStatus]:
        """The status of every build."""
        return [self._status(build) for build in self._builds]

    def survey(self, bundle: Bundle, kinds: Sequence[BackendKind]) -> list[BackendKind]:
        """Return the kinds that run a bundle at first, in order.

        If a better kind needs engines, their build is planned. If every kind needs engines, the
        result is the first kind, and `before` builds its engines.

        Args:
            bundle: the bundle.
            kinds: kinds that can run the bundle, the best first; 1 or more.

        Raises:
            Exception: of the last kind, if no kind can tell what it needs.
        """
        name = bundle.manifest.name
        ready: list[BackendKind] = []
        better: BackendKind | None = None
        for index, kind in enumerate(kinds):
            try:
                missing = kind.unprepared(bundle)
            except Exception as error:
                if index + 1 == len(kinds) and better is None and not ready:
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
        self._builds.append(_Build(bundle, better, alone=not ready))
        self._metrics.built(name, better.name, 0.0)
        return ready or [better]

    @contextlib.contextmanager
    def before(self, bundle: Bundle) -> Iterator[None]:
        """Build the engines that a bundle cannot be loaded without; the context loads it.

        Raises:
            BuildError: the build failed.
            StoppedError: the server is shutting down.
        """
        build = next(
            (build for build in self._builds if build.alone and build.bundle is bundle), None
        )
        with contextlib.nullcontext() if build is None else self._prepared(build):
            yield

    def start(self, chains: Mapping[str, BackendChain]) -> None:
        """Start the other builds in the background.

        Args:
            chains: the backends of each model by its name.
        """
        self._chains = chains
        if not all(build.alone for build in self._builds):
            self._thread.start()

    def stop(self) -> None:
        """Give up unfinished builds. From any thread; `join` waits for the end."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end. Return whether it has come."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        for build in self._builds:
            if build.alone:
                continue
            try:
                with self._prepared(build):
                    self._promote(build)
            except StoppedError:
                logger.info("engines given up: the server is shutting down")
                for left in self._builds:
                    if left.status.state != "serving":
                        self._metrics.unbuilt(*left.names)
                return
            except Exception:
                continue  # it has been reported; other builds may succeed

    def _promote(self, build: _Build) -> None:
        backend = selection.tested(build.bundle, build.kind)
        if self._stopping.is_set():
            backend.close()
            raise StoppedError
        self._chains[build.status.model].promote(build.kind, backend)

    @contextlib.contextmanager
    def _prepared(self, build: _Build) -> Iterator[None]:
        """Build a model's engines; the context tests them and brings them into use."""
        begun = time.perf_counter()
        if self._stopping.is_set():
            raise StoppedError
        logger.info("%s: engines for backend %s are being built", *build.names)
        build.now(state="building")
        try:
            build.kind.prepare(
                build.bundle, lambda progress: self._report(build, progress), self._stopping
            )
            seconds = round(time.perf_counter() - begun, 3)
            logger.info(
                "%s: engines for backend %s are built", *build.names, extra={"seconds": seconds}
            )
            self._metrics.built(*build.names, 1.0)
            build.now(state="testing", done=1.0, engine=None, phase=None)
            yield
        except StoppedError:
            raise
        except Exception as error:
            # Without another backend the server ends, and reports the error itself.
            if not build.alone:
                self._passed_over(build.status.model, build.kind, error)
            self._metrics.unbuilt(*build.names)
            why = str(error) or type(error).__name__
            build.now(state="failed", why=why, engine=None, phase=None)
            raise
        build.now(state="serving")

    def _report(self, build: _Build, progress: Progress) -> None:
        # The progress must not decrease when the next engine starts.
        done = max(build.status.done, progress.done)
        self._metrics.built(*build.names, done)
        build.now(done=done, engine=progress.engine, phase=progress.phase)
        tenths = int(done * 10)
        if tenths > build.tenths:
            build.tenths = tenths
            logger.info(
                "%s: engines for backend %s are built to %d %%",
                *(*build.names, 10 * tenths),
                extra={"engine": progress.engine, "phase": progress.phase},
            )

    def _passed_over(self, model: str, kind: BackendKind, error: Exception) -> None:
        self._metrics.failed(model, kind.name)
        logger.error("%s: backend %s is not used: %s", model, kind.name, error, exc_info=error)

    def _status(self, build: _Build) -> EngineStatus:
        status = build.status
        chain = self._chains.get(status.model)
        if status.state != "serving" or chain is None or chain.kind is build.kind:
            return status
        why = "it failed while serving; the log says more"
        return status.model_copy(update={"state": "failed", "why": why})
