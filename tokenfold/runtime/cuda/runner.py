"""What runs a graph on the GPU: ONNX Runtime or TensorRT, all of whose work is in one stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.device import Memory
from tokenfold.runtime.cuda.lanes import Array, Rows

Feeds = Mapping[str, Array]


class Place(NamedTuple):
    """Where an input or an output is on the GPU: any batch starts at the first byte."""

    rows: Rows
    memory: Memory


class Runner(Protocol):
    """A graph, loaded. Not for threads to share."""

    @property
    def native(self) -> bool:
        """Whether the compiled ops run, rather than their portable bodies."""
        ...

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """The shape of each; a size that is free has a name instead of a number."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Their names."""
        ...

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """The outputs of these names, from host to host.

        Raises:
            Exception: the run failed.
        """
        ...

    def bound(
        self,
        plan: Plan,
        batch: int,
        image: Place,
        outputs: Mapping[str, Place],
        *,
        recorded: bool,
    ) -> Callable[[], None]:
        """A run at fixed addresses of a graph that takes images and perhaps a plan.

        Args:
            recorded: whether it is to be recorded. Else another call of `bound` may end its use.

        Returns:
            What appends the run to the stream, and does not wait. It may be called again; and what
            a recording of it needs stays as it is as long as this is kept.
        """
        ...

    def free(self) -> None:
        """Give back what it holds on the GPU. Nothing runs, and nothing will."""
        ...
