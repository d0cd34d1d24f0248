"""CUDA memory, copies, streams and events, through NVIDIA's `cuda-bindings`.

All calls use the first GPU that the process sees; CUDA_VISIBLE_DEVICES selects another one. Every
function that waits releases the GIL, so other Python threads run meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

try:
    from cuda.bindings import runtime
except ImportError:
    runtime = None

Bytes = npt.NDArray[np.uint8]


class CudaError(RuntimeError):
    """A CUDA call failed. The message names the function and the CUDA error."""


class MemoryInfo(NamedTuple):
    """Free and total GPU memory, in bytes."""

    free: int
    total: int

    @property
    def used(self) -> int:
        """Memory used by all processes together, in bytes."""
        return self.total - self.free


def missing() -> str | None:
    """Return the reason why this process cannot use a GPU; None if it can."""
    if runtime is None:
        return "the package cuda-bindings is not installed: pip install 'tokenfold[gpu]'"
    try:
        count: int = _call("cudaGetDeviceCount")
    except CudaError as error:
        return f"no GPU can be used: {error}"
    return None if count else "no GPU was found"


def name() -> str:
    """Return the GPU's name, such as "NVIDIA H200".

    Raises:
        CudaError: there is no GPU.
    """
    raw: bytes = _call("cudaGetDeviceProperties", 0).name
    return raw.split(b"\0")[0].decode()


def architecture() -> str:
    """Return the GPU's compute capability, such as "sm_90".

    Raises:
        CudaError: there is no GPU.
    """
    properties = _call("cudaGetDeviceProperties", 0)
    return f"sm_{properties.major}{properties.minor}"


def memory() -> MemoryInfo:
    """Return the GPU's free and total memory, counting all processes.

    Raises:
        CudaError: there is no GPU.
    """
    free, total = _call("cudaMemGetInfo")
    return MemoryInfo(free, total)


class Resource(Protocol):
    """A CUDA resource that must be freed."""

    def free(self) -> None:
        """Free the resource. Nothing may use it, now or later."""
        ...


R = TypeVar("R", bound=Resource)


def free_on_exit(resource: R, stack: ExitStack) -> R:
    """Return `resource`, after registering it to be freed when `stack` closes."""
    stack.callback(resource.free)
    return resource


class Memory:
    """Uninitialised memory on the GPU."""

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes.

        Raises:
            CudaError: the GPU has less free memory.
        """
        self.size = size
        self.address: int = int(_call("cudaMalloc", max(size, 1)))

    def free(self) -> None:
        """Free the memory. Nothing may use it, now or later."""
        _release("cudaFree", self.address)


class PinnedMemory:
    """Page-locked host memory, which makes copies to and from the GPU asynchronous.

    Attributes:
        bytes: NumPy view of the memory; it must not be used after `free`.
    """

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes.

        Raises:
            CudaError: so much memory cannot be page-locked.
        """
        self.size = size
        self.address: int = int(_call("cudaHostAlloc", max(size, 1), runtime.cudaHostAllocPortable))
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: Bytes = np.ctypeslib.as_array(raw)

    def free(self) -> None:
        """Free the memory. Nothing may use it, now or later."""
        _release("cudaFreeHost", self.address)


class Event:
    """A point in a stream. A waiting thread sleeps instead of spinning."""

    def __init__(self) -> None:
        flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
        self.handle = _call("cudaEventCreateWithFlags", flags)

    def wait(self) -> None:
        """Wait for all work that was in the stream when the event was last recorded.

        Raises:
            CudaError: some of that work failed.
        """
        _call("cudaEventSynchronize", self.handle)

    def free(self) -> None:
        """Free the event."""
        _release("cudaEventDestroy", self.handle)


class ExecutableGraph:
    """An instantiated CUDA graph: recorded work of a stream that one call launches.

    Attributes:
        nodes: number of kernels, copies and other operations.
    """

    def __init__(self, recorded: Any) -> None:
        """Instantiate a captured graph, and destroy the capture.

        Raises:
            CudaError: CUDA cannot instantiate the graph; or the graph reads or writes host memory,
                whose content would differ between the recording and a launch.
        """
        try:
            _, count = _call("cudaGraphGetNodes", recorded, 0)
            nodes, self.nodes = _call("cudaGraphGetNodes", recorded, count) if count else ([], 0)
            for node in nodes:
                _check_no_host_access(node)
            self._handle = _call("cudaGraphInstantiate", recorded, 0)
        finally:
            _release("cudaGraphDestroy", recorded)

    def launch(self, stream: Stream) -> None:
        """Append the recorded work to a stream."""
        _call("cudaGraphLaunch", self._handle, stream.handle)

    def free(self) -> None:
        """Free the graph. No launch may be in progress."""
        _release("cudaGraphExecDestroy", self._handle)


class Stream:
    """A CUDA stream. It does not synchronise with other streams, not even the default one."""

    def __init__(self) -> None:
        self.handle = _call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def upload(self, to: Memory, source: PinnedMemory, size: int) -> None:
        """Start to copy the first `size` bytes from the host to the GPU."""
        self._copy(to, source, size, "cudaMemcpyHostToDevice")

    def copy_on_device(self, to: Memory, source: Memory, size: int) -> None:
        """Start to copy the first `size` bytes within the GPU's memory."""
        self._copy(to, source, size, "cudaMemcpyDeviceToDevice")

    def download(self, to: PinnedMemory, source: Memory, size: int) -> None:
        """Start to copy the first `size` bytes from the GPU to the host."""
        self._copy(to, source, size, "cudaMemcpyDeviceToHost")

    def record(self, event: Event) -> None:
        """Record `event` behind all work that is in the stream now."""
        _call("cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Make work that is appended from now on wait for `event`, which may be in any stream."""
        _call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def capture(self, work: Callable[[], None]) -> ExecutableGraph:
        """Record what `work` appends to the stream, instead of executing it.

        Only the calling thread is bound by the rules of stream capture, such as not allocating.
        Capture mode ends in any case, also when `work` raises.

        Raises:
            CudaError: `work` did something that cannot be recorded.
            Exception: any other exception of `work`.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError):
                _release("cudaGraphDestroy", _call("cudaStreamEndCapture", self.handle))
            raise
        return ExecutableGraph(_call("cudaStreamEndCapture", self.handle))

    def wait(self) -> None:
        """Wait for all work that is in the stream now.

        Raises:
            CudaError: some of that work failed.
        """
        _call("cudaStreamSynchronize", self.handle)

    def free(self) -> None:
        """Free the stream."""
        _release("cudaStreamDestroy", self.handle)

    def _copy(
        self, to: Memory | PinnedMemory, source: Memory | PinnedMemory, size: int, direction: str
    ) -> None:
        if size > min(to.size, source.size):
            raise ValueError(
                f"cannot copy {size} bytes from a buffer of {source.size} to one of {to.size} bytes"
            )
        kind = getattr(runtime.cudaMemcpyKind, direction)
        _call("cudaMemcpyAsync", to.address, source.address, size, kind, self.handle)


def _check_no_host_access(node: Any) -> None:
    """Check that a recorded node neither calls the host nor copies from or to its memory.

    Raises:
        CudaError: the node does.
    """
    kinds = runtime.cudaGraphNodeType
    kind = _call("cudaGraphNodeGetType", node)
    if kind == kinds.cudaGraphNodeTypeHost:
        raise CudaError("the recorded work calls the host, which a CUDA graph may not do here")
    if kind == kinds.cudaGraphNodeTypeMemcpy:
        copy = _call("cudaGraphMemcpyNodeGetParams", node)
        for end in (copy.srcPtr.ptr, copy.dstPtr.ptr):
            memory_type = _call("cudaPointerGetAttributes", int(end)).type
            if memory_type != runtime.cudaMemoryType.cudaMemoryTypeDevice:
                raise CudaError(
                    "the recorded work copies from or to the host's memory, "
                    "whose content may change before a launch"
                )


def _release(function: str, handle: Any) -> None:
    """Free a resource, ignoring errors: if this fails, CUDA is broken until the process ends."""
    with suppress(CudaError):
        _call(function, handle)


def _call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime, and return what follows the status in its result.

    Raises:
        CudaError: the status reports that this call, or earlier asynchronous work, failed.
    """
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        raise CudaError(f"{function}: {text.decode()} ({status.name})")
    return results[0] if len(results) == 1 else tuple(results)
