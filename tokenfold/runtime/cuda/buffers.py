"""Buffers on the host and on the GPU for runs in flight.

Each run in flight has its own buffers, so that one run's copies overlap another run's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.runtime.cuda.device import (
    CudaError,
    Event,
    Memory,
    PinnedMemory,
    Stream,
    free_on_exit,
)

RUNS_IN_FLIGHT = 2
"""While one run works, the images of the next are copied. A third run would only wait longer."""

Array = npt.NDArray[Any]


class RowSpec(NamedTuple):
    """Shape (without the batch dimension) and element type of one item of an input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes per row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class RunBuffers:
    """Buffers for one run of up to `max_batch_size` items.

    Attributes:
        staging: GPU memory that receives the images while the graph may still read earlier ones.
        arrived: event recorded when the images are in `staging`.
        done: event recorded when the outputs are on the host.
    """

    def __init__(
        self, image: RowSpec, outputs: Mapping[str, RowSpec], max_batch_size: int, stack: ExitStack
    ) -> None:
        """Allocate the buffers, which are freed when `stack` closes."""
        self._image = image
        self._outputs = dict(outputs)
        self._pixels = free_on_exit(PinnedMemory(image.size * max_batch_size), stack)
        self.staging = free_on_exit(Memory(image.size * max_batch_size), stack)
        self._results = {
            name: free_on_exit(PinnedMemory(spec.size * max_batch_size), stack)
            for name, spec in outputs.items()
        }
        self.arrived = free_on_exit(Event(), stack)
        self.done = free_on_exit(Event(), stack)

    def upload(self, images: Array, stream: Stream) -> int:
        """Start to copy images (B, ...) to `staging`, and return their number of bytes."""
        size = self._image.size * len(images)
        np.copyto(self._pixels.bytes[:size].reshape(images.shape), images)
        stream.upload(self.staging, self._pixels, size)
        stream.record(self.arrived)
        return size

    def download(self, name: str, source: Memory, items: int, stream: Stream) -> None:
        """Start to copy output `name` of the first `items` items to the host."""
        stream.download(self._results[name], source, self._outputs[name].size * items)

    def result(self, name: str, items: int) -> Array:
        """Return a copy of output `name`, (items, ...); its download must have ended."""
        spec = self._outputs[name]
        raw = self._results[name].bytes[: spec.size * items]
        return raw.view(spec.dtype).reshape(items, *spec.shape).copy()


class BufferPool:
    """The buffers of a graph, each lent to one run at a time."""

    def __init__(
        self, image: RowSpec, outputs: Mapping[str, RowSpec], max_batch_size: int, stack: ExitStack
    ) -> None:
        """Allocate buffers for runs of up to `max_batch_size` items, freed when `stack` closes."""
        # None tells waiting callers that the pool is closed.
        self._idle: SimpleQueue[RunBuffers | None] = SimpleQueue()
        for _ in range(RUNS_IN_FLIGHT):
            self._idle.put(RunBuffers(image, outputs, max_batch_size, stack))

    @contextmanager
    def borrow(self) -> Iterator[RunBuffers]:
        """Lend buffers, once some are idle.

        When the context ends, with or without an error, no copy that uses the buffers may be in
        progress.

        Raises:
            CudaError: the pool is closed.
        """
        buffers = self._idle.get()
        if buffers is None:
            self._idle.put(None)
            raise CudaError("the graph was closed")
        try:
            yield buffers
        finally:
            self._idle.put(buffers)

    def close(self) -> None:
        """Wait until all buffers are returned. Later calls of `borrow` fail."""
        for _ in range(RUNS_IN_FLIGHT):
            self._idle.get()
        self._idle.put(None)
