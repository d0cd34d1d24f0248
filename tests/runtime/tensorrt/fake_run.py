"""A run of the TensorRT that stands in: two pieces of a fake stream's work."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_engine import Description
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.lanes import Array

if TYPE_CHECKING:
    from tests.runtime.tensorrt.fake_api import FakeApi


class Span(NamedTuple):
    """Memory."""

    address: int
    size: int


def _noted(work: Callable[[FakeRun], None]) -> Callable[[FakeRun], None]:
    """What goes wrong in a stream is a problem, and no end of the stream."""

    @wraps(work)
    def done(own: FakeRun) -> None:
        try:
            own.check()
            work(own)
        except Exception as error:
            own.api.problems.append(str(error))

    return done


class FakeRun:
    """What a run was started with. First sums come into the memory that contexts share, in between
    others may write there, and then they come out.

    Attributes:
        recorded: whether it is part of a CUDA graph.
    """

    def __init__(
        self,
        api: FakeApi,
        context: Any,
        description: Description,
        plan: Plan,
        spans: Mapping[str, Span],
        shapes: Mapping[str, tuple[int, ...]],
        memory: Span | None,
    ) -> None:
        self.api = api
        self.recorded = False
        # A graph, unlike Python, keeps no context alive.
        self._context = weakref.ref(context)
        self._description = description
        self._plan = plan
        self._spans, self._shapes = spans, shapes
        self._memory = memory if description.memory else None
        self._sums = np.zeros(0, np.int64)

    def check(self) -> None:
        """That everything is still there.

        Raises:
            ValueError: it is not.
        """
        if self._context() is None:
            raise ValueError("a run has lost its context")
        for span in (*self._spans.values(), *([self._memory] if self._memory else [])):
            if self.api.gpu.room(span.address) < span.size:
                raise ValueError("a run has lost its memory")

    @_noted
    def gather(self) -> None:
        """Sum each item."""
        sums = sum(
            self._view(name, one.dtype).reshape(self._shapes[name][0], -1).sum(1, dtype=np.float64)
            for name, one in self._description.inputs.items()
            if isinstance(one.shape[0], str)
        )
        self._sums = np.asarray(sums).astype(np.int64)
        if self._memory is not None:
            self.api.workers[self._memory.address] = self
            room = self._room(self._memory)
            room[:] = -1
            room[: len(self._sums)] = self._sums

    @_noted
    def scatter(self) -> None:
        """Make outputs of what is there now."""
        if self._memory is not None:
            if self.api.workers.pop(self._memory.address, None) is not self:
                raise ValueError("two runs work in the same memory")
            self._sums = self._room(self._memory)[: len(self._sums)].copy()
        for name, one in self._description.outputs.items():
            self._view(name, one.dtype)[:] = fake_engine.output(
                name, one, self._sums, self._plan, self._shapes[name]
            )

    def _view(self, name: str, dtype: str) -> Array:
        return _at(self._spans[name]).view(dtype).reshape(self._shapes[name])

    def _room(self, memory: Span) -> npt.NDArray[np.int64]:
        return _at(memory)[: memory.size // 8 * 8].view(np.int64)


def _at(span: Span) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * span.size).from_address(span.address))
