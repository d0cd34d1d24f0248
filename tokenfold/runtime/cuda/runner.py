"""The interface of runners, which execute a graph on the GPU in a single stream.

ONNX Runtime and TensorRT each have a runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import Array, RowSpec
from tokenfold.runtime.cuda.device import Memory

Feeds = Mapping[str, Array]


class DeviceTensor(NamedTuple):
    """GPU memory of an input or output; every batch starts at its first byte."""

    spec: RowSpec
    memory: Memory


class Runner(Protocol):
    """A loaded graph. Not thread-safe."""

    @property
    def native(self) -> bool:
        """Whether the compiled ops run, rather than their portable bodies."""
        ...

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Shape of each input; a dynamic size is a name instead of a number."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        ...

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Run the graph on host arrays, and return the named outputs as host arrays.

        Raises:
            Exception: the run failed.
        """
        ...

    def bind(
        self,
        plan: Plan,
        batch: int,
        image: DeviceTensor,
        outputs: Mapping[str, DeviceTensor],
        *,
        recorded: bool,
    ) -> Callable[[], None]:
        """Bind a run at fixed addresses, of a graph that takes images and optionally a plan.

        Args:
            recorded: whether the run will be recorded. A run that is not recorded may become
                invalid at the next call of `bind`.

        Returns:
            A function that appends the run to the stream without waiting. It may be called
            repeatedly. A recording of the run stays valid as long as the function is kept alive.
        """
        ...

    def free(self) -> None:
        """Free GPU resources. Nothing may run, now or later."""
        ...
