"""Graphs loaded for inference: the interface, the CPU implementation, and loaders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.machine import saturates
from tokenfold.runtime.native import onnxruntime as library

Device = Literal["cpu", "cuda", "tensorrt"]
"""Execution: ONNX Runtime on the CPU, ONNX Runtime on the GPU, or a TensorRT engine on the GPU."""

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Graph(Protocol):
    """A loaded graph, which any number of threads may run at once. See `cuda.graph`."""

    @property
    def native(self) -> bool:
        """Whether the compiled ops run, rather than their portable bodies."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Maximum items of one run; larger batches are split."""
        ...

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Shape of each input; a dynamic dimension has a name instead of a number."""
        ...

    @property
    def recorded(self) -> int:
        """Number of recorded runs, each of which one call launches with all of its kernels."""
        ...

    def run(self, names: Sequence[str], feeds: Feeds, /) -> list[Any]:
        """Run a batch and return the outputs with these names."""
        ...

    def warm(self, plans: Iterable[Plan], /) -> None:
        """Prepare runs of these plans."""
        ...

    def resident(self, images: Array, plan: Plan = (), /) -> Callable[[], None]:
        """Return a function that starts a run without copies; see `CudaGraph.resident`."""
        ...

    def wait(self) -> None:
        """Wait until all started runs are done."""
        ...

    def close(self) -> None:
        """Release GPU memory."""
        ...


class CpuGraph:
    """A graph loaded in ONNX Runtime on the CPU; see `Graph`."""

    max_batch_size = sys.maxsize
    recorded = 0

    def __init__(self, path: Path, *, threads: int = 1, native: bool = True) -> None:
        """Load the graph; see `open_graph`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only; the warnings are advice on the graph
        if saturates():
            # Makes the weights unsigned, which is nearly half as fast, so only where needed.
            options.add_session_config_entry("session.x64quantprecision", "1")
        plugin = library.find() if native else None
        if plugin is not None:
            options.register_custom_ops_library(str(plugin))
        self.native = plugin is not None
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs: Mapping[str, Sequence[int | str]] = {
            tensor.name: tuple(tensor.shape) for tensor in self._session.get_inputs()
        }

    def run(self, names: Sequence[str], feeds: Feeds, /) -> list[Any]:
        """Run a batch and return the outputs with these names."""
        outputs: list[Any] = self._session.run(names, feeds)
        return outputs

    def warm(self, _: Iterable[Plan], /) -> None:
        """Do nothing: the CPU needs no preparation."""

    def resident(self, images: Array, plan: Plan = (), /) -> Callable[[], None]:
        """Return a function that runs a batch; the CPU needs no copies."""
        feeds: dict[str, Array] = {"image": images}
        if "plan" in self.inputs:
            feeds["plan"] = np.asarray(plan, dtype=np.int64)
        names = [tensor.name for tensor in self._session.get_outputs()]

        def start() -> None:
            self._session.run(names, feeds)

        return start

    def wait(self) -> None:
        """Do nothing: a run is done when it returns."""

    def close(self) -> None:
        """Do nothing: there is no GPU memory to release."""


def open_graph(
    path: Path,
    *,
    device: library.Device = "cpu",
    size: tuple[int, int] | None = None,
    threads: int = 1,
    native: bool = True,
) -> Graph:
    """Load a graph in ONNX Runtime.

    Args:
        size: (height, width) of most images in pixels, for a graph that takes several sizes.
        threads: threads inside one run. On a CPU, concurrent one-thread runs are faster than fewer
            runs with more threads.
        native: whether to use the compiled ops if they are built.

    Raises:
        RuntimeError: the device is not available; see `tokenfold.runtime.cuda.session.missing`.
    """
    if device == "cpu":
        return CpuGraph(path, threads=threads, native=native)
    # Imported only here, because not every machine has their packages.
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
    """Load a graph of a bundle as a TensorRT engine.

    Args:
        graph: file name of the graph.
        size: see `open_graph`.
        engines: folder with the engines of all bundles; None for the user's default folder.
        static: whether to use engines for a single plan each where they exist.

    Raises:
        RuntimeError: see `tokenfold.runtime.tensorrt.runtime.opener`.
    """
    from tokenfold.runtime.cuda.graph import CudaGraph
    from tokenfold.runtime.tensorrt import engines as kept
    from tokenfold.runtime.tensorrt import runtime

    opener = runtime.opener(bundle, graph, engines or kept.folder(), static=static)
    return CudaGraph(opener, size=size)
