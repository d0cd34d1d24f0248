"""Fakes of ONNX Runtime and TensorRT that run graphs without a GPU, behind one interface."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import FakeSession
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import FakeApi
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import session
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.cuda.runner import Runner
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.runner import EngineRunner
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec
from tokenfold.runtime.tensorrt.variant import TensorRTVariant

RunnerOpener = Callable[[Stream], Runner]


class FakeBackend(Protocol):
    """A fake backend.

    Attributes:
        start_error: exception raised when a run cannot start.
    """

    start_error: type[Exception]

    def opener(self, **options: Any) -> RunnerOpener:
        """Return a function that opens a graph; see `FakeSession` for the options."""
        ...

    @property
    def runs(self) -> int:
        """Number of runs of the last opened graph that were started or recorded."""
        ...

    def weights(self, graph: CudaGraph) -> Callable[[], Any]:
        """Return a weak reference to the object that holds a graph's weights."""
        ...

    def sums(self, graph: CudaGraph, items: int) -> list[float]:
        """Return the pixel sums that a graph's last run left in its working memory."""
        ...


class FakeOnnxRuntime:
    """Fake of ONNX Runtime."""

    start_error: type[Exception] = AssertionError

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(session, "open_session", self._open_session)
        self._options: dict[str, Any] = {}
        self._sessions: list[FakeSession] = []

    def opener(self, **options: Any) -> RunnerOpener:
        self._options = options
        return partial(session.OnnxRunner, Path("model.onnx"))

    @property
    def runs(self) -> int:
        return self._sessions[-1].runs

    def weights(self, graph: CudaGraph) -> Callable[[], Any]:
        return weakref.ref(self._session(graph))

    def sums(self, graph: CudaGraph, items: int) -> list[float]:
        sums: list[float] = self._session(graph)._shared[:items].tolist()
        return sums

    def _open_session(self, _: Path, stream: Stream, **__: Any) -> tuple[FakeSession, bool]:
        fake_session = FakeSession(stream, **self._options)
        # A proxy, so that only the graph keeps the session alive.
        self._sessions.append(weakref.proxy(fake_session))
        return fake_session, True

    @staticmethod
    def _session(graph: CudaGraph) -> Any:
        assert isinstance(graph._runner, session.OnnxRunner)
        return graph._runner._session


class FakeTensorRT:
    """Fake of TensorRT.

    Attributes:
        api: fake of its Python module.
    """

    start_error: type[Exception] = EngineError

    def __init__(self, gpu: FakeRuntime) -> None:
        self.api = FakeApi(gpu)
        self.variant = TensorRTVariant("tensorrt", self.api)

    def opener(self, plans: tuple[Plan, ...] = (), **options: Any) -> RunnerOpener:
        """See `FakeBackend.opener`.

        Args:
            plans: plans that have a separate engine.
        """
        specs = [fake_engine.engine_spec(), *map(fake_engine.engine_spec, plans)]
        return lambda stream: EngineRunner([self.engine(spec, **options) for spec in specs], stream)

    def engine(self, spec: EngineSpec, **options: Any) -> Engine:
        """Load an engine that takes images; see `fake_engine.describe`."""
        return Engine(self.variant, None, spec, fake_engine.describe(spec, **options).content)

    @property
    def runs(self) -> int:
        return self.api.calls["execute_async_v3"]

    def weights(self, graph: CudaGraph) -> Callable[[], Any]:
        assert isinstance(graph._runner, EngineRunner)
        return weakref.ref(graph._runner._engine._engine)

    def sums(self, graph: CudaGraph, items: int) -> list[float]:
        assert isinstance(graph._runner, EngineRunner)
        memory = graph._runner._work
        raw = (ctypes.c_int64 * items).from_address(memory.address)
        return list(raw)
