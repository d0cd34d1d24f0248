"""A graph at fixed addresses: run by its runner, or launched as a recording of such a run.

A runtime takes milliseconds of host time to start the hundreds of kernels of a run; a recording is
started by one call. It holds for the batch and the plan that it was made with, since both decide
which kernels run, on what addresses.

All runs of a runner, recorded or not, follow each other in one stream. That is why recordings may
share memory: it was free again when each had been made, and while one runs nothing else does. Of
ONNX Runtime it is the session's arena, which never gives memory back (nothing asks it to shrink),
so the addresses stay good as long as the session lives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.device import Graph, Memory, Stream, kept
from tokenfold.runtime.cuda.lanes import Rows
from tokenfold.runtime.cuda.runner import Place, Runner

logger = logging.getLogger(__name__)

# The first run of a batch and a plan takes memory from CUDA, and loads kernels. The next finds all
# of it there; but which piece of the arena it takes may differ, so there is another attempt.
_ATTEMPTS = 3


class _Recording(NamedTuple):
    """A run as a CUDA graph, and what it was recorded from, which is kept for it."""

    graph: Graph
    run: Callable[[], None]


class Program:
    """One runner's runs with inputs and outputs that stay on the GPU. Not for threads to share.

    Attributes:
        image, outputs: where runs read and write; any batch starts at their first byte.
    """

    def __init__(
        self,
        runner: Runner,
        stream: Stream,
        image: Rows,
        outputs: Mapping[str, Rows],
        most: int,
        held: ExitStack,
    ) -> None:
        """Take memory for batches of up to `most` items.

        Args:
            runner: works in `stream`, and its batched input is `image` alone.
            held: gives everything back.
        """
        self._runner = runner
        self._stream = stream
        self._recorded: dict[tuple[Plan, int], _Recording] = {}
        self._records = True
        self._image = Place(image, kept(Memory(image.size * most), held))
        self._outputs = {
            name: Place(rows, kept(Memory(rows.size * most), held))
            for name, rows in outputs.items()
        }
        self.image = self._image.memory
        self.outputs = {name: place.memory for name, place in self._outputs.items()}
        self._held = held

    @property
    def recorded(self) -> int:
        """How many recordings there are."""
        return len(self._recorded)

    def start(self, plan: Plan, batch: int) -> None:
        """Append a run to the stream: the recording where there is one.

        Raises:
            CudaError, or what the runner raises: the run failed to start.
        """
        recording = self._recorded.get((plan, batch))
        if recording is not None:
            recording.graph.launch(self._stream)
        else:
            self._bound(plan, batch, recorded=False)()

    def record(self, plan: Plan, batch: int) -> None:
        """Make a recording. Where none can be made, say so once, and run without from then on.

        Raises:
            CudaError, or what the runner raises: the run itself failed.
        """
        if (plan, batch) in self._recorded:
            return
        run = self._bound(plan, batch, recorded=self._records)
        for attempt in range(1, _ATTEMPTS + 1):
            run()
            self._stream.wait()
            if not self._records:
                return
            try:
                graph = kept(self._stream.capture(run), self._held)
                self._recorded[plan, batch] = _Recording(graph, run)
                return
            # ONNX Runtime's errors have no base of their own.
            except Exception as error:
                if attempt == _ATTEMPTS:
                    self._records = False
                    logger.warning("no CUDA graphs, so runs start more slowly: %s", error)

    def _bound(self, plan: Plan, batch: int, *, recorded: bool) -> Callable[[], None]:
        return self._runner.bound(plan, batch, self._image, self._outputs, recorded=recorded)
