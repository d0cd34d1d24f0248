"""A session of ONNX Runtime on the GPU, all of whose work is in a stream of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tokenfold.bundle.workload import Plan
from tokenfold.runtime import libraries
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.lanes import Array
from tokenfold.runtime.cuda.runner import Feeds, Place

PROVIDER = "CUDAExecutionProvider"


def missing() -> str | None:
    """Why this process cannot run a bundle's graphs on a GPU, or None where it can."""
    if (why := device.missing()) is not None:
        return why
    if (why := _without_provider()) is not None:
        return why
    if libraries.find("cuda") is None:
        return "the ops are not compiled for CUDA: make plugins-cuda"
    return None


def _without_provider() -> str | None:
    if PROVIDER in ort.get_available_providers():
        return None
    return f"this onnxruntime has no {PROVIDER}: install onnxruntime-gpu in its place"


def opened(
    path: Path, stream: Stream, *, threads: int = 1, native: bool = True, profile: str | None = None
) -> tuple[ort.InferenceSession, bool]:
    """A graph, loaded to run on the GPU, and whether its ops are the compiled ones.

    Args:
        stream: must outlive the session.
        threads: inside one run, for the few nodes that stay on the CPU.
        native: whether to use the compiled ops where they are built.
        profile: path prefix of a file that says which node ran where; see `end_profiling`.

    Raises:
        RuntimeError: ONNX Runtime cannot use the GPU.
    """
    if (why := _without_provider()) is not None:
        raise RuntimeError(why)
    # Finds the libraries of CUDA that come as packages, rather than with the system.
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are advice on the graph
    # A pattern is made of one run's sizes and kept for the input's shapes. Sizes depend on the plan
    # too; and the run after the first one would allocate anew, where it should be recorded.
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    library = libraries.find("cuda") if native else None
    if library is not None:
        options.register_custom_ops_library(str(library))
    choices: dict[str, Any] = {
        "device_id": "0",
        "user_compute_stream": str(int(stream.handle)),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    session = ort.InferenceSession(
        path, options, providers=[(PROVIDER, choices), "CPUExecutionProvider"]
    )
    # It falls back to the CPU without an error.
    if session.get_providers()[0] != PROVIDER:
        raise RuntimeError(f"ONNX Runtime could not load its {PROVIDER}; its log says why")
    session.disable_fallback()
    return session, library is not None


class OnnxRunner:
    """A graph in a session of ONNX Runtime; see `tokenfold.runtime.cuda.runner.Runner`."""

    def __init__(
        self, path: Path, stream: Stream, *, threads: int = 1, native: bool = True
    ) -> None:
        """Load the graph; see `opened`."""
        self._session, self.native = opened(path, stream, threads=threads, native=native)
        self.inputs = {given.name: tuple(given.shape) for given in self._session.get_inputs()}
        self.outputs = [given.name for given in self._session.get_outputs()]
        self._options = unsynchronised()

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """See `Runner`."""
        return list(self._session.run(list(names), dict(feeds)))

    def bound(
        self,
        plan: Plan,
        batch: int,
        image: Place,
        outputs: Mapping[str, Place],
        *,
        recorded: bool,  # noqa: ARG002
    ) -> Callable[[], None]:
        """See `Runner`."""
        binding = self._session.io_binding()
        for bind, name, (rows, memory) in (
            (binding.bind_input, "image", image),
            *((binding.bind_output, name, place) for name, place in outputs.items()),
        ):
            bind(name, "cuda", 0, rows.dtype.type, [batch, *rows.shape], memory.address)
        if "plan" in self.inputs:
            # It stays on the CPU, where all that depends on it is decided.
            binding.bind_cpu_input("plan", np.asarray(plan, dtype=np.int64))

        def run() -> None:
            self._session.run_with_iobinding(binding, self._options)

        return run

    def free(self) -> None:
        """Nothing to give back: the session goes with its last user."""


def unsynchronised() -> ort.RunOptions:
    """For runs that return once their work is in the stream, rather than done."""
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
