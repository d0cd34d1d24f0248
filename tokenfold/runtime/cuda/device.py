"""What a session needs of CUDA, over NVIDIA's `cuda-bindings`: memory, copies, streams, events.

The first GPU that the process sees; CUDA_VISIBLE_DEVICES chooses another. Every function that
waits lets other Python threads run meanwhile.
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
    """A call of CUDA failed; the message says which, and what CUDA says about it."""


class MemoryInfo(NamedTuple):
    """Bytes of the GPU's memory that nobody uses, and all of them."""

    free: int
    total: int

    @property
    def used(self) -> int:
        """Bytes that somebody uses, whichever process."""
        return self.total - self.free


def missing() -> str | None:
    """Why this process has no GPU, or None where it has one."""
    if runtime is None:
        return "the package cuda-bindings is not installed: pip install 'tokenfold[gpu]'"
    try:
        found: int = _call("cudaGetDeviceCount")
    except CudaError as error:
        return f"no GPU can be used: {error}"
    return None if found else "no GPU was found"


def name() -> str:
    """The GPU's name, such as "NVIDIA H200".

    Raises:
        CudaError: there is no GPU.
    """
    raw: bytes = _call("cudaGetDeviceProperties", 0).name
    return raw.split(b"\0")[0].decode()


def architecture() -> str:
    """The GPU's compute capability, such as "sm_90".

    Raises:
        CudaError: there is no GPU.
    """
    found = _call("cudaGetDeviceProperties", 0)
    return f"sm_{found.major}{found.minor}"


def memory() -> MemoryInfo:
    """The GPU's memory, of all processes together.

    Raises:
        CudaError: there is no GPU.
    """
    free, total = _call("cudaMemGetInfo")
    return MemoryInfo(free, total)


class Held(Protocol):
    """Something of CUDA's that is to be given back."""

    def free(self) -> None:
        """Give it back. Nothing may use it, now or later."""
        ...


H = TypeVar("H", bound=Held)


def kept(thing: H, held: ExitStack) -> H:
    """The same thing, which `held` gives back."""
    held.callback(thing.free)
    return thing


class Memory:
    """Bytes on the GPU, not cleared."""

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes.

        Raises:
            CudaError: so many are not free.
        """
        self.size = size
        self.address: int = int(_call("cudaMalloc", max(size, 1)))

    def free(self) -> None:
        """Give it back. Nothing may use it, now or later."""
        _release("cudaFree", self.address)


class Pinned:
    """Bytes of the host that the GPU reads and writes by itself, so that copies are asynchronous.

    Attributes:
        bytes: a view of them; it must not outlive them.
    """

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes.

        Raises:
            CudaError: so many cannot be pinned.
        """
        self.size = size
        self.address: int = int(_call("cudaHostAlloc", max(size, 1), runtime.cudaHostAllocPortable))
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: Bytes = np.ctypeslib.as_array(raw)

    def free(self) -> None:
        """Give it back. Nothing may use it, now or later."""
        _release("cudaFreeHost", self.address)


class Event:
    """A point in a stream. To wait for it the thread sleeps, rather than spins."""

    def __init__(self) -> None:
        flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
        self.handle = _call("cudaEventCreateWithFlags", flags)

    def wait(self) -> None:
        """Until all is done that was in the stream when the event was last recorded.

        Raises:
            CudaError: some of it failed.
        """
        _call("cudaEventSynchronize", self.handle)

    def free(self) -> None:
        """Give it back."""
        _release("cudaEventDestroy", self.handle)


class Graph:
    """Recorded work of a stream, ready to be launched as one.

    Attributes:
        nodes: kernels, copies and the like in it.
    """

    def __init__(self, recorded: Any) -> None:
        """Make a recording executable, which then is no longer needed.

        Raises:
            CudaError: it cannot be, or it reads or writes the host's memory: what lay there while
                it was recorded would not lie there when it is launched.
        """
        try:
            _, count = _call("cudaGraphGetNodes", recorded, 0)
            nodes, self.nodes = _call("cudaGraphGetNodes", recorded, count) if count else ([], 0)
            for node in nodes:
                _refuse_host(node)
            self._handle = _call("cudaGraphInstantiate", recorded, 0)
        finally:
            _release("cudaGraphDestroy", recorded)

    def launch(self, stream: Stream) -> None:
        """Append all of it to a stream."""
        _call("cudaGraphLaunch", self._handle, stream.handle)

    def free(self) -> None:
        """Give it back. No launch may be under way."""
        _release("cudaGraphExecDestroy", self._handle)


class Stream:
    """Work of the GPU in order. Other streams, the default one included, do not wait for it."""

    def __init__(self) -> None:
        self.handle = _call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def upload(self, to: Memory, source: Pinned, size: int) -> None:
        """Copy the first `size` bytes to the GPU."""
        self._copy(to, source, size, "cudaMemcpyHostToDevice")

    def move(self, to: Memory, source: Memory, size: int) -> None:
        """Copy the first `size` bytes on the GPU."""
        self._copy(to, source, size, "cudaMemcpyDeviceToDevice")

    def download(self, to: Pinned, source: Memory, size: int) -> None:
        """Copy the first `size` bytes to the host."""
        self._copy(to, source, size, "cudaMemcpyDeviceToHost")

    def record(self, event: Event) -> None:
        """Let the event stand for all that is in the stream now."""
        _call("cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Let what is appended from now on start behind the event, of whatever stream."""
        _call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` appends to the stream, instead of doing it.

        Only this thread is bound by the rules of a recording, such as to allocate nothing.

        Raises:
            CudaError: `work` did what cannot be recorded.
            Exception: whatever else `work` raises. In no case the stream stays in recording.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError):
                _release("cudaGraphDestroy", _call("cudaStreamEndCapture", self.handle))
            raise
        return Graph(_call("cudaStreamEndCapture", self.handle))

    def wait(self) -> None:
        """Until all that is in the stream now is done.

        Raises:
            CudaError: some of it failed.
        """
        _call("cudaStreamSynchronize", self.handle)

    def free(self) -> None:
        """Give it back."""
        _release("cudaStreamDestroy", self.handle)

    def _copy(self, to: Memory | Pinned, source: Memory | Pinned, size: int, kind: str) -> None:
        if size > min(to.size, source.size):
            raise ValueError(f"no copy of {size} bytes from {source.size} to {to.size}")
        way = getattr(runtime.cudaMemcpyKind, kind)
        _call("cudaMemcpyAsync", to.address, source.address, size, way, self.handle)


def _refuse_host(node: Any) -> None:
    """Raise CudaError if a recorded node calls the host, or copies from or to its memory."""
    kinds = runtime.cudaGraphNodeType
    kind = _call("cudaGraphNodeGetType", node)
    if kind == kinds.cudaGraphNodeTypeHost:
        raise CudaError("what was recorded calls the host")
    if kind == kinds.cudaGraphNodeTypeMemcpy:
        copy = _call("cudaGraphMemcpyNodeGetParams", node)
        for end in (copy.srcPtr.ptr, copy.dstPtr.ptr):
            found = _call("cudaPointerGetAttributes", int(end)).type
            if found != runtime.cudaMemoryType.cudaMemoryTypeDevice:
                raise CudaError("what was recorded copies from or to the host's memory")


def _release(function: str, handle: Any) -> None:
    """Give something back. Where that fails, all of CUDA has, and the process's end does it."""
    with suppress(CudaError):
        _call(function, handle)


def _call(function: str, *arguments: Any) -> Any:
    """A function of the runtime's: what it returns behind its status.

    Raises:
        CudaError: the status says that it, or work from before it, failed.
    """
    status, *found = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        raise CudaError(f"{function}: {text.decode()} ({status.name})")
    return found[0] if len(found) == 1 else tuple(found)
