"""ONNX Runtime sessions on the GPU that work in a given stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tokenfold.bundle.workload import Plan
from tokenfold.runtime import libraries
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.runner import DeviceTensor, Feeds

PROVIDER = "CUDAExecutionProvider"


def missing() -> str | None:
    """Return the reason why this process cannot run graphs on a GPU; None if it can."""
    if (reason := device.missing()) is not None:
        return reason
    if (reason := _missing_provider()) is not None:
        return reason
    if libraries.find("cuda") is None:
        return "the ops are not compiled for CUDA: run make plugins-cuda"
    return None


def _missing_provider() -> str | None:
    if PROVIDER in ort.get_available_providers():
        return None
    return f"the installed onnxruntime has no {PROVIDER}: install onnxruntime-gpu instead"


def open_session(
    path: Path, stream: Stream, *, threads: int = 1, native: bool = True, profile: str | None = None
) -> tuple[ort.InferenceSession, bool]:
    """Load a graph to run on the GPU.

    Args:
        stream: the stream that all work is appended to; it must outlive the session.
        threads: threads per run, for the few nodes that stay on the CPU.
        native: whether to use the compiled ops if they are built.
        profile: path prefix of a profile with the provider of each node; see `end_profiling`.

    Returns:
        The session, and whether it uses the compiled ops.

    Raises:
        RuntimeError: ONNX Runtime cannot use the GPU.
    """
    if (reason := _missing_provider()) is not None:
        raise RuntimeError(reason)
    # Find CUDA libraries that are installed as Python packages rather than system-wide.
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # Only errors; its warnings are advice on the graph.
    # ONNX Runtime derives a memory pattern from one run and reuses it for the same input shapes.
    # Here, sizes depend on the plan as well; and the second run would allocate again, when it
    # should be recorded.
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    plugin = libraries.find("cuda") if native else None
    if plugin is not None:
        options.register_custom_ops_library(str(plugin))
    provider_options: dict[str, Any] = {
        "device_id": "0",
        "user_compute_stream": str(int(stream.handle)),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    session = ort.InferenceSession(
        path, options, providers=[(PROVIDER, provider_options), "CPUExecutionProvider"]
    )
    # ONNX Runtime falls back to the CPU without an error.
    if session.get_providers()[0] != PROVIDER:
        raise RuntimeError(
            f"ONNX Runtime could not load its {PROVIDER}; see its log for the reason"
        )
    session.disable_fallback()
    return session, plugin is not None


class OnnxRunner:
    """Runner of a graph in an ONNX Runtime session."""

    def __init__(
        self, path: Path, stream: Stream, *, threads: int = 1, native: bool = True
    ) -> None:
        """Load the graph; see `open_session`."""
        self._session, self.native = open_session(path, stream, threads=threads, native=native)
        self.inputs = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        self.outputs = [node.name for node in self._session.get_outputs()]
        self._options = asynchronous_options()

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """See `Runner.run`."""
        return list(self._session.run(list(names), dict(feeds)))

    def bind(
        self,
        plan: Plan,
        batch: int,
        image: DeviceTensor,
        outputs: Mapping[str, DeviceTensor],
        *,
        recorded: bool,  # noqa: ARG002
    ) -> Callable[[], None]:
        """See `Runner.bind`."""
        binding = self._session.io_binding()
        for bind, name, (spec, memory) in (
            (binding.bind_input, "image", image),
            *((binding.bind_output, name, tensor) for name, tensor in outputs.items()),
        ):
            bind(name, "cuda", 0, spec.dtype.type, [batch, *spec.shape], memory.address)
        if "plan" in self.inputs:
            # The plan stays on the CPU, where ONNX Runtime computes the sizes that depend on it.
            binding.bind_cpu_input("plan", np.asarray(plan, dtype=np.int64))

        def run() -> None:
            self._session.run_with_iobinding(binding, self._options)

        return run

    def free(self) -> None:
        """Do nothing: Python frees the session with its last reference."""


def asynchronous_options() -> ort.RunOptions:
    """Return options for runs that return when their work is in the stream, before it is done."""
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
