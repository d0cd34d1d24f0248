"""Running graphs in ONNX Runtime, and an image classifier's in particular. No torch in here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime import hugepages, libraries
from tokenfold.runtime.machine import saturates

Device = Literal["cpu", "cuda", "tensorrt"]
"""What runs a graph: ONNX Runtime on the CPU or on the GPU, or an engine of TensorRT there."""

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Graph(Protocol):
    """A graph, loaded to run; from any number of threads at once. See `cuda.graph`."""

    @property
    def native(self) -> bool:
        """Whether the compiled ops run, rather than their portable bodies."""
        ...

    @property
    def most(self) -> int:
        """Items of one run; more are run in pieces."""
        ...

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """The shape of each; a size that is free has a name instead of a number."""
        ...

    @property
    def recorded(self) -> int:
        """How many runs are recorded, so that one call launches all of their kernels."""
        ...

    def run(self, names: Sequence[str], feeds: Feeds, /) -> list[Any]:
        """The outputs of these names."""
        ...

    def warm(self, plans: Iterable[Plan], /) -> None:
        """Prepare runs of these plans."""
        ...

    def resident(self, images: Array, plan: Plan = (), /) -> Callable[[], None]:
        """A run that copies nothing; see `CudaGraph.resident`."""
        ...

    def wait(self) -> None:
        """Until all runs that were started are done."""
        ...

    def close(self) -> None:
        """Give back what is on a GPU."""
        ...


class CpuGraph:
    """A graph, loaded to run on the CPU; see `Graph`."""

    most = sys.maxsize
    recorded = 0

    def __init__(self, path: Path, *, threads: int = 1, native: bool = True) -> None:
        """Load the graph; see `open_graph`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; its warnings are advice on the graph
        if saturates():
            # Unsigned weights then; nearly half as fast, so not where it is not needed.
            options.add_session_config_entry("session.x64quantprecision", "1")
        library = libraries.native_ops().path if native else None
        if library is not None:
            options.register_custom_ops_library(str(library))
        self.native = library is not None
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs: Mapping[str, Sequence[int | str]] = {
            given.name: tuple(given.shape) for given in self._session.get_inputs()
        }

    def run(self, names: Sequence[str], feeds: Feeds, /) -> list[Any]:
        """The outputs of these names."""
        found: list[Any] = self._session.run(names, feeds)
        return found

    def warm(self, _: Iterable[Plan], /) -> None:
        """Nothing to prepare."""

    def resident(self, images: Array, plan: Plan = (), /) -> Callable[[], None]:
        """A run: on a CPU everything is where it is."""
        feeds: dict[str, Array] = {"image": images}
        if "plan" in self.inputs:
            feeds["plan"] = np.asarray(plan, dtype=np.int64)
        names = [given.name for given in self._session.get_outputs()]

        def start() -> None:
            self._session.run(names, feeds)

        return start

    def wait(self) -> None:
        """A run is done when it returns."""

    def close(self) -> None:
        """Nothing to give back."""


def open_graph(
    path: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    size: tuple[int, int] | None = None,
    threads: int = 1,
    native: bool = True,
) -> Graph:
    """A graph, loaded to run.

    Args:
        size: (height, width) of most images, in pixels, for a graph that takes several.
        threads: inside one run. On a CPU, one-thread runs side by side beat wider ones.
        native: whether to use the compiled ops where they are built and can be loaded.

    Raises:
        RuntimeError: there is no such device; see `tokenfold.runtime.cuda.session.missing`.
    """
    if device == "cpu":
        return CpuGraph(path, threads=threads, native=native)
    # Only here: their packages are not on every machine.
    from tokenfold.runtime.cuda.graph import CudaGraph
    from tokenfold.runtime.cuda.session import OnnxRunner

    return CudaGraph(partial(OnnxRunner, path, threads=threads, native=native), size=size)


def open_engine(
    bundle: Bundle,
    graph: str,
    *,
    size: tuple[int, int],
    engines: Path | None = None,
    static: bool = True,
) -> Graph:
    """A graph of a bundle as TensorRT's engine, loaded to run.

    Args:
        size: see `open_graph`.
        engines: the folder of the engines of all bundles; None for a user's own.
        static: whether engines of one plan each are taken for it where they are there.

    Raises:
        RuntimeError: see `tokenfold.runtime.tensorrt.runtime.opener`.
    """
    from tokenfold.runtime.cuda.graph import CudaGraph
    from tokenfold.runtime.tensorrt import engines as kept
    from tokenfold.runtime.tensorrt import runtime

    opener = runtime.opener(bundle, graph, engines or kept.folder(), static=static)
    return CudaGraph(opener, size=size)


class Opening(NamedTuple):
    """How the graphs of a bundle are opened; see `open_graph` and `open_engine`."""

    device: Device = "cpu"
    threads: int = 1
    native: bool = True
    engines: Path | None = None
    static: bool = True


class Output(NamedTuple):
    """Logits (B, classes) float32, and slots (B, N) int64 where they were asked for."""

    logits: npt.NDArray[np.float32]
    slots: npt.NDArray[np.int64] | None


class BaseSession:
    """The graph of a bundle that takes images, loaded on a device.

    Attributes:
        graph: what runs.
        native: whether the compiled ops run, rather than their portable bodies.
        most: items of one run; more are run in pieces.
    """

    def __init__(self, path: Path, bundle: Bundle, opening: Opening) -> None:
        """Load the graph."""
        self._bundle, self._opening = bundle, opening
        self.graph = self._opened(path)
        self.native = self.graph.native
        self.most = self.graph.most

    def warm(self, plans: Iterable[Plan]) -> None:
        """Prepare runs of images by these plans: on a GPU they are recorded.

        Raises:
            Exception: a run failed, for want of memory perhaps; then all is closed.
        """
        try:
            self.graph.warm(plans)
        except BaseException:
            self.close()
            raise

    def resident(self, images: Array, plan: Plan = ()) -> Callable[[], None]:
        """A run to measure, that copies nothing; see `CudaGraph.resident`."""
        return self.graph.resident(images, plan)

    def wait(self) -> None:
        """Until all runs that `resident` started are done."""
        self.graph.wait()

    def close(self) -> None:
        """Give back what is on a GPU; later runs fail."""
        self.graph.close()

    def _opened(self, path: Path) -> Graph:
        device, threads, native, engines, static = self._opening
        size = self._bundle.manifest.preprocess.size
        if device == "tensorrt":
            return open_engine(self._bundle, path.name, size=size, engines=engines, static=static)
        return open_graph(path, device=device, size=size, threads=threads, native=native)

    def _another(self, path: Path) -> Graph:
        """One more graph; where it cannot be loaded, the first one is given back."""
        try:
            return self._opened(path)
        except BaseException:
            self.graph.close()
            raise


class Session(BaseSession):
    """A bundle's graph in one session: one copy of the weights, any number of threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        native: bool = True,
        device: Device = "cpu",
        engines: Path | None = None,
        static: bool = True,
    ) -> None:
        """Load the graph; see `open_graph` and `open_engine`."""
        super().__init__(bundle.model, bundle, Opening(device, threads, native, engines, static))
        if device == "cpu":
            hugepages.collapse()

    def run(
        self, images: npt.NDArray[np.uint8], plan: Sequence[int], *, slots: bool = False
    ) -> Output:
        """Run a batch.

        Args:
            images: (B, H, W, 3) uint8, of the bundle's input size.
            plan: tokens each layer removes.
            slots: whether to return the composed slots too.
        """
        feeds: Feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
        names = ["logits", "slots"] if slots else ["logits"]
        found = self.graph.run(names, feeds)
        return Output(found[0], found[1] if slots else None)
