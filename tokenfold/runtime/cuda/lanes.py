"""Lanes: what one run in flight holds on the host and on the GPU. Two overlap copies and work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.runtime.cuda.device import CudaError, Event, Memory, Pinned, Stream, kept

IN_FLIGHT = 2
"""While one run works, the images of the next are copied. A third would only wait longer."""

Array = npt.NDArray[Any]


class Rows(NamedTuple):
    """Rows of an input or an output: one item's shape, without the batch, and its element type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Lane:
    """Memory for one run of up to `most` items.

    Attributes:
        staging: where images arrive on the GPU, while the graph may still read those before them.
        arrived: recorded when they have.
        done: recorded when the outputs are on the host.
    """

    def __init__(
        self, image: Rows, outputs: Mapping[str, Rows], most: int, held: ExitStack
    ) -> None:
        """Take memory, which `held` gives back."""
        self._image = image
        self._outputs = dict(outputs)
        self._pixels = kept(Pinned(image.size * most), held)
        self.staging = kept(Memory(image.size * most), held)
        self._found = {name: kept(Pinned(rows.size * most), held) for name, rows in outputs.items()}
        self.arrived = kept(Event(), held)
        self.done = kept(Event(), held)

    def send(self, images: Array, stream: Stream) -> int:
        """Start to copy images (B, ...) to `staging`; returns their bytes."""
        size = self._image.size * len(images)
        np.copyto(self._pixels.bytes[:size].reshape(images.shape), images)
        stream.upload(self.staging, self._pixels, size)
        stream.record(self.arrived)
        return size

    def fetch(self, name: str, source: Memory, items: int, stream: Stream) -> None:
        """Start to copy an output of the first `items` items to the host."""
        stream.download(self._found[name], source, self._outputs[name].size * items)

    def found(self, name: str, items: int) -> Array:
        """A copy of that output, (items, ...), once it is there."""
        rows = self._outputs[name]
        raw = self._found[name].bytes[: rows.size * items]
        return raw.view(rows.dtype).reshape(items, *rows.shape).copy()


class Lanes:
    """The lanes of a graph, each taken by one run at a time."""

    def __init__(
        self, image: Rows, outputs: Mapping[str, Rows], most: int, held: ExitStack
    ) -> None:
        """Take memory for runs of up to `most` items, which `held` gives back."""
        # None once they are closed, for whoever waits.
        self._idle: SimpleQueue[Lane | None] = SimpleQueue()
        for _ in range(IN_FLIGHT):
            self._idle.put(Lane(image, outputs, most, held))

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """A lane, once one is idle. At the end nothing may be under way in it, whatever happened.

        Raises:
            CudaError: they are closed.
        """
        lane = self._idle.get()
        if lane is None:
            self._idle.put(None)
            raise CudaError("the graph was closed")
        try:
            yield lane
        finally:
            self._idle.put(lane)

    def close(self) -> None:
        """Return once no run has a lane. Runs that come later fail."""
        for _ in range(IN_FLIGHT):
            self._idle.get()
        self._idle.put(None)
