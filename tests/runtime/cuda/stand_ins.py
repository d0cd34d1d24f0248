"""What runs a graph where there is no GPU: what stands in for ONNX Runtime, or for TensorRT."""

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
from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.origin import EngineError, Origin
from tokenfold.runtime.tensorrt.runner import EngineRunner

Opener = Callable[[Stream], Runner]


class StandIn(Protocol):
    """One of them.

    Attributes:
        refuses: what it raises where a run cannot start.
    """

    refuses: type[Exception]

    def opener(self, **kind: Any) -> Opener:
        """What opens a graph; see `FakeSession` for its kinds."""
        ...

    @property
    def runs(self) -> int:
        """How often the last graph that was opened was told to run, recorded or not."""
        ...

    def weights(self, graph: CudaGraph) -> Callable[[], Any]:
        """What gives a graph's weights, until they are gone."""
        ...

    def sums(self, graph: CudaGraph, items: int) -> list[float]:
        """What the first items of a graph's last run have left in its memory."""
        ...


class OnnxStandIn:
    """For ONNX Runtime."""

    refuses: type[Exception] = AssertionError

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(session, "opened", self._opened)
        self._kind: dict[str, Any] = {}
        self._sessions: list[FakeSession] = []

    def opener(self, **kind: Any) -> Opener:
        self._kind = kind
        return partial(session.OnnxRunner, Path("model.onnx"))

    @property
    def runs(self) -> int:
        return self._sessions[-1].runs

    def weights(self, graph: CudaGraph) -> Callable[[], Any]:
        return weakref.ref(self._session(graph))

    def sums(self, graph: CudaGraph, items: int) -> list[float]:
        found: list[float] = self._session(graph)._shared[:items].tolist()
        return found

    def _opened(self, _: Path, stream: Stream, **__: Any) -> tuple[FakeSession, bool]:
        own = FakeSession(stream, **self._kind)
        # As long as its graph has it.
        self._sessions.append(weakref.proxy(own))
        return own, True

    @staticmethod
    def _session(graph: CudaGraph) -> Any:
        assert isinstance(graph._runner, session.OnnxRunner)
        return graph._runner._session


class EngineStandIn:
    """For TensorRT.

    Attributes:
        api: its module.
    """

    refuses: type[Exception] = EngineError

    def __init__(self, gpu: FakeRuntime) -> None:
        self.api = FakeApi(gpu)
        self.flavour = Flavour("tensorrt", self.api)

    def opener(self, plans: tuple[Plan, ...] = (), **kind: Any) -> Opener:
        """See `StandIn`.

        Args:
            plans: those that have an engine of their own.
        """
        origins = [fake_engine.origin(), *map(fake_engine.origin, plans)]
        return lambda stream: EngineRunner([self.engine(own, **kind) for own in origins], stream)

    def engine(self, own: Origin, **kind: Any) -> Engine:
        """An engine of images, loaded; see `fake_engine.described`."""
        return Engine(self.flavour, None, own, fake_engine.described(own, **kind).content)

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
