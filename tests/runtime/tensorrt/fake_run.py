"""Runs of the fake TensorRT: two work items in a fake stream."""

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
from tokenfold.runtime.cuda.buffers import Array

if TYPE_CHECKING:
    from tests.runtime.tensorrt.fake_api import FakeApi


class Span(NamedTuple):
    """A range of memory: its address and its size in bytes."""

    address: int
    size: int


def _record_problems(work: Callable[[FakeRun], None]) -> Callable[[FakeRun], None]:
    """Wrap a work item so that its exceptions become problems and do not end the stream."""

    @wraps(work)
    def wrapper(run: FakeRun) -> None:
        try:
            run.check()
            work(run)
        except Exception as error:
            run.api.problems.append(str(error))

    return wrapper


class FakeRun:
    """A started run.

    `gather` writes the sums to the working memory that contexts share, and `scatter` reads them
    back. Between the two, a concurrent run would overwrite them.

    Attributes:
        recorded: whether the run is part of a CUDA graph.
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
        # Weak, because a CUDA graph does not keep a context alive.
        self._context = weakref.ref(context)
        self._description = description
        self._plan = plan
        self._spans, self._shapes = spans, shapes
        self._memory = memory if description.memory else None
        self._sums = np.zeros(0, np.int64)

    def check(self) -> None:
        """Check that the context and all memory still exist.

        Raises:
            ValueError: something was freed.
        """
        if self._context() is None:
            raise ValueError("a run has lost its context")
        for span in (*self._spans.values(), *([self._memory] if self._memory else [])):
            if self.api.gpu.block_size(span.address) < span.size:
                raise ValueError("a run has lost its memory")

    @_record_problems
    def gather(self) -> None:
        """Sum the inputs of each item."""
        sums = sum(
            self._view(name, tensor.dtype)
            .reshape(self._shapes[name][0], -1)
            .sum(1, dtype=np.float64)
            for name, tensor in self._description.inputs.items()
            if isinstance(tensor.shape[0], str)
        )
        self._sums = np.asarray(sums).astype(np.int64)
        if self._memory is not None:
            self.api.workers[self._memory.address] = self
            working_memory = self._view_memory(self._memory)
            working_memory[:] = -1
            working_memory[: len(self._sums)] = self._sums

    @_record_problems
    def scatter(self) -> None:
        """Write the outputs, from the sums in working memory."""
        if self._memory is not None:
            if self.api.workers.pop(self._memory.address, None) is not self:
                raise ValueError("two runs work in the same memory")
            self._sums = self._view_memory(self._memory)[: len(self._sums)].copy()
        for name, tensor in self._description.outputs.items():
            self._view(name, tensor.dtype)[:] = fake_engine.output(
                name, tensor, self._sums, self._plan, self._shapes[name]
            )

    def _view(self, name: str, dtype: str) -> Array:
        return _bytes_at(self._spans[name]).view(dtype).reshape(self._shapes[name])

    def _view_memory(self, memory: Span) -> npt.NDArray[np.int64]:
        return _bytes_at(memory)[: memory.size // 8 * 8].view(np.int64)


def _bytes_at(span: Span) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * span.size).from_address(span.address))
