"""Runs of a graph at fixed addresses, recorded as CUDA graphs where possible.

A runtime takes milliseconds of host time to start the hundreds of kernels of a run; one call
launches a recording. A recording is valid for one batch size and one plan, because both decide
which kernels run on which addresses.

All runs of a runner, recorded or not, follow each other in one stream. Recordings may therefore
share memory: the memory was free again after each recording was made, and nothing else runs while
a recording does. With ONNX Runtime, this memory is the session's arena. The arena never returns
memory to CUDA (nothing asks it to shrink), so its addresses stay valid as long as the session
lives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import RowSpec
from tokenfold.runtime.cuda.device import ExecutableGraph, Memory, Stream, free_on_exit
from tokenfold.runtime.cuda.runner import DeviceTensor, Runner

logger = logging.getLogger(__name__)

# The first run of a batch size and a plan allocates memory and loads kernels, which cannot be
# recorded. The second run usually allocates nothing; but it may use another piece of the arena,
# so there is a third attempt.
_ATTEMPTS = 3


class _Recording(NamedTuple):
    """A recorded run, with the run it was recorded from, which must stay alive."""

    graph: ExecutableGraph
    run: Callable[[], None]


class RecordedRuns:
    """Runs of one runner whose inputs and outputs stay on the GPU. Not thread-safe.

    Attributes:
        image, outputs: memory that runs read and write; every batch starts at its first byte.
    """

    def __init__(
        self,
        runner: Runner,
        stream: Stream,
        image: RowSpec,
        outputs: Mapping[str, RowSpec],
        max_batch_size: int,
        stack: ExitStack,
    ) -> None:
        """Allocate memory for batches of up to `max_batch_size` items.

        Args:
            runner: works in `stream`; `image` is its only batched input.
            stack: frees the memory and the recordings when it closes.
        """
        self._runner = runner
        self._stream = stream
        self._recordings: dict[tuple[Plan, int], _Recording] = {}
        self._can_record = True
        self._image = DeviceTensor(image, free_on_exit(Memory(image.size * max_batch_size), stack))
        self._outputs = {
            name: DeviceTensor(spec, free_on_exit(Memory(spec.size * max_batch_size), stack))
            for name, spec in outputs.items()
        }
        self.image = self._image.memory
        self.outputs = {name: tensor.memory for name, tensor in self._outputs.items()}
        self._stack = stack

    @property
    def recorded(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    def start(self, plan: Plan, batch: int) -> None:
        """Append a run to the stream: its recording if there is one.

        Raises:
            CudaError, or an exception of the runner: the run could not be started.
        """
        recording = self._recordings.get((plan, batch))
        if recording is not None:
            recording.graph.launch(self._stream)
        else:
            self._bind(plan, batch, recorded=False)()

    def record(self, plan: Plan, batch: int) -> None:
        """Record a run, unless it is recorded already.

        If recording fails, log one warning and never try to record again.

        Raises:
            CudaError, or an exception of the runner: the run itself failed.
        """
        if (plan, batch) in self._recordings:
            return
        run = self._bind(plan, batch, recorded=self._can_record)
        for attempt in range(1, _ATTEMPTS + 1):
            run()
            self._stream.wait()
            if not self._can_record:
                return
            try:
                graph = free_on_exit(self._stream.capture(run), self._stack)
                self._recordings[plan, batch] = _Recording(graph, run)
                return
            # ONNX Runtime's exceptions have no common base class.
            except Exception as error:
                if attempt == _ATTEMPTS:
                    self._can_record = False
                    logger.warning(
                        "runs cannot be recorded as CUDA graphs, so they start more slowly: %s",
                        error,
                    )

    def _bind(self, plan: Plan, batch: int, *, recorded: bool) -> Callable[[], None]:
        return self._runner.bind(plan, batch, self._image, self._outputs, recorded=recorded)
