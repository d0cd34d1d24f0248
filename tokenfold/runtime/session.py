"""Sessions: the graphs of a bundle, loaded on a device. Independent of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime import hugepages
from tokenfold.runtime.graph import Array, Device, Feeds, Graph, open_engine, open_graph


class SessionOptions(NamedTuple):
    """Options for loading the graphs of a bundle; see `open_graph` and `open_engine`."""

    device: Device = "cpu"
    threads: int = 1
    native: bool = True
    engines: Path | None = None
    static: bool = True


class Output(NamedTuple):
    """Logits (B, classes) float32, and slots (B, N) int64 if they were requested."""

    logits: npt.NDArray[np.float32]
    slots: npt.NDArray[np.int64] | None


class BaseSession(ABC):
    """The graphs of a bundle: one copy of the weights, which any number of threads may use at once.

    Attributes:
        graph: the graph that takes images; `warm`, `resident` and `wait` refer to it.
        native: whether the compiled ops run in all graphs, rather than their portable bodies.
        max_batch_size: maximum items of one run; larger batches are split.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "cpu",
        threads: int = 1,
        native: bool = True,
        engines: Path | None = None,
        static: bool = True,
    ) -> None:
        """Load the graphs; see `open_graph` and `open_engine`.

        Raises:
            RuntimeError: the device is not available.
        """
        options = SessionOptions(device, threads, native, engines, static)
        self._graphs: list[Graph] = []
        try:
            for path in self._paths(bundle):
                self._graphs.append(_open(bundle, path, options))
        except BaseException:
            self.close()
            raise
        if device == "cpu":
            hugepages.collapse()
        self.graph = self._graphs[0]
        self.native = all(graph.native for graph in self._graphs)
        self.max_batch_size = self.graph.max_batch_size

    @staticmethod
    @abstractmethod
    def _paths(bundle: Bundle) -> Sequence[Path]:
        """Return the files of the graphs, the one that takes images first."""

    def warm(self, plans: Iterable[Plan]) -> None:
        """Prepare runs of images by these plans; on a GPU they are recorded.

        Raises:
            Exception: a run failed, for example for lack of memory; the session is then closed.
        """
        try:
            self.graph.warm(plans)
        except BaseException:
            self.close()
            raise

    def resident(self, images: Array, plan: Plan = ()) -> Callable[[], None]:
        """Return a function that starts a run without copies; see `CudaGraph.resident`."""
        return self.graph.resident(images, plan)

    def wait(self) -> None:
        """Wait until all runs that `resident` started are done."""
        self.graph.wait()

    def close(self) -> None:
        """Release GPU memory; later runs fail."""
        for graph in self._graphs:
            graph.close()


class Session(BaseSession):
    """The graph of an image classifier."""

    @staticmethod
    def _paths(bundle: Bundle) -> Sequence[Path]:
        return (bundle.model,)

    def run(
        self, images: npt.NDArray[np.uint8], plan: Sequence[int], *, slots: bool = False
    ) -> Output:
        """Classify a batch.

        Args:
            images: (B, H, W, 3) uint8, of the bundle's input size.
            plan: tokens to remove in each layer.
            slots: whether to return the composed slots too.
        """
        feeds: Feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
        names = ["logits", "slots"] if slots else ["logits"]
        outputs = self.graph.run(names, feeds)
        return Output(outputs[0], outputs[1] if slots else None)


def _open(bundle: Bundle, path: Path, options: SessionOptions) -> Graph:
    """Load a graph of a bundle on the device of the options."""
    size = bundle.manifest.preprocess.size
    if options.device == "tensorrt":
        return open_engine(
            bundle, path.name, size=size, engines=options.engines, static=options.static
        )
    return open_graph(
        path,
        device=options.device,
        size=size,
        threads=options.threads,
        native=options.native,
    )
