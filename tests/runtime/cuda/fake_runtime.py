"""Fake of `cuda.bindings.runtime` for machines without a GPU.

A stream is a thread that does its work in order, but late. "GPU" memory is host memory, and a
recording is a list of work items. Code that forgets to wait therefore reads or writes wrong bytes.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

Work = Callable[[], None]

ALIGNMENT = 256
"""Alignment of all allocations, in bytes."""


class Error(IntEnum):
    """Subset of cudaError_t."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorLaunchFailure = 719  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Stream:
    """A fake stream, which executes work in order and slightly late, or records it in capture mode.

    Attributes:
        recording: nodes recorded so far; None outside capture mode.
        recorder: identifier of the thread that started the capture.
        invalidated: whether a call that capture forbids has invalidated the recording.
    """

    def __init__(self, seed: int) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._random = random.Random(seed)
        self.recording: list[Any] | None = None
        self.recorder = 0
        self.invalidated = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __int__(self) -> int:
        return id(self)

    def append(self, work: Work, *, kind: str = "kernel", ends: tuple[int, ...] = ()) -> None:
        """Append work, or record it in capture mode.

        Args:
            ends: source and destination address of a copy.
        """
        if self.recording is not None:
            self.recording.append(SimpleNamespace(work=work, kind=kind, ends=ends))
        else:
            self._work.put(work)

    def done(self) -> threading.Event:
        """Return an event that is set when all work in the stream now is done."""
        event = threading.Event()
        self._work.put(event.set)
        return event

    def stop(self) -> None:
        self._work.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._random.random() < 0.3:
                time.sleep(self._random.random() * 1e-3)
            work()


class FakeRuntime:
    """Fake of the functions that `tokenfold.runtime.cuda.device` calls.

    Attributes:
        calls: number of calls per function.
        failing: number of upcoming calls that fail, per function.
        blocks: number of allocations that fit in the GPU's memory; None for no limit.
        live: number of resources not freed yet, by kind.
    """

    cudaError_t = Error  # noqa: N815
    cudaHostAllocPortable = 1  # noqa: N815
    cudaEventBlockingSync, cudaEventDisableTiming = 1, 2  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaGraphNodeType = SimpleNamespace(  # noqa: N815
        cudaGraphNodeTypeHost="host", cudaGraphNodeTypeMemcpy="copy"
    )
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice="device")  # noqa: N815

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.calls: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        self.blocks: int | None = None
        self.live: Counter[str] = Counter()
        self._streams: list[Stream] = []
        self._blocks: dict[int, tuple[Any, str, int]] = {}

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if not callable(attribute) or not name.startswith("cuda") or name == "cudaError_t":
            return attribute

        def counted_call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if self.failing[name]:
                self.failing[name] -= 1
                return (Error.cudaErrorLaunchFailure,)
            return attribute(*arguments)

        return counted_call

    def kind(self, address: int) -> str:
        """Return the kind of memory at an address: "device" or "host"."""
        return self._blocks[address][1]

    def block_size(self, address: int) -> int:
        """Return the size of the block at an address in bytes; 0 if there is no block."""
        block = self._blocks.get(address)
        return 0 if block is None else block[2]

    def stream(self, number: int) -> Stream:
        """Return the stream with this handle."""
        (stream,) = (stream for stream in self._streams if int(stream) == number)
        return stream

    def cudaGetErrorString(self, status: Error) -> Any:  # noqa: N802
        return Error.cudaSuccess, f"fake {status.name}".encode()

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return Error.cudaSuccess, self.devices

    def cudaGetDeviceProperties(self, _: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake GPU\0\0", major=9, minor=0)

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return Error.cudaSuccess, 3, 5

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        for stream in self._streams:
            if stream.recording is not None and stream.recorder == threading.get_ident():
                stream.invalidated = True
                return (Error.cudaErrorStreamCaptureUnsupported,)
        if self.blocks is not None and self.live["device"] >= self.blocks:
            return (Error.cudaErrorMemoryAllocation,)
        return self._allocate(size, "device")

    def cudaHostAlloc(self, size: int, _: int) -> Any:  # noqa: N802
        return self._allocate(size, "host")

    def _allocate(self, size: int, kind: str) -> Any:
        # Filled with ones, because zeros would be plausible results of memory never written.
        block = ctypes.create_string_buffer(b"\xff" * (size + ALIGNMENT))
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self._blocks[address] = (block, kind, size)
        self.live[kind] += 1
        return Error.cudaSuccess, address

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self._blocks[address]
        self.live["device"] -= 1
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        del self._blocks[address]
        self.live["host"] -= 1
        return (Error.cudaSuccess,)

    def cudaPointerGetAttributes(self, address: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, SimpleNamespace(type=self.kind(address))

    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, size: int, kind: int, stream: Stream
    ) -> Any:
        ends = {1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}[kind]
        assert (self.kind(to), self.kind(source)) == ends
        stream.append(lambda: _copy(to, source, size), kind="copy", ends=(source, to))
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self._streams.append(Stream(len(self._streams)))
        self.live["stream"] += 1
        return Error.cudaSuccess, self._streams[-1]

    def cudaStreamDestroy(self, stream: Stream) -> Any:  # noqa: N802
        stream.stop()
        self._streams.remove(stream)
        self.live["stream"] -= 1
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Stream) -> Any:  # noqa: N802
        if stream.recording is not None:
            stream.invalidated = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        assert stream.done().wait(10)
        return (Error.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: Stream, event: Any, _: int) -> Any:  # noqa: N802
        reached = event.reached
        stream.append(lambda: _wait(reached))
        return (Error.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaEventBlockingSync | self.cudaEventDisableTiming
        self.live["event"] += 1
        event = SimpleNamespace(reached=threading.Event())
        event.reached.set()
        return Error.cudaSuccess, event

    def cudaEventDestroy(self, _: Any) -> Any:  # noqa: N802
        self.live["event"] -= 1
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: Any, stream: Stream) -> Any:  # noqa: N802
        event.reached = threading.Event()
        stream.append(event.reached.set)
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: Any) -> Any:  # noqa: N802
        _wait(event.reached)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> Any:  # noqa: N802
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream.recording is None
        stream.recording, stream.recorder, stream.invalidated = [], threading.get_ident(), False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> Any:  # noqa: N802
        assert stream.recorder == threading.get_ident()
        recording, stream.recording = stream.recording, None
        if stream.invalidated:
            return Error.cudaErrorStreamCaptureInvalidated, None
        self.live["recording"] += 1
        return Error.cudaSuccess, recording

    def cudaGraphDestroy(self, recording: list[Any]) -> Any:  # noqa: N802
        for node in recording:
            del node.work
        self.live["recording"] -= 1
        return (Error.cudaSuccess,)

    def cudaGraphGetNodes(self, recording: list[Any], count: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, recording[:count], len(recording)

    def cudaGraphNodeGetType(self, node: Any) -> Any:  # noqa: N802
        return Error.cudaSuccess, node.kind

    def cudaGraphMemcpyNodeGetParams(self, node: Any) -> Any:  # noqa: N802
        source, to = (SimpleNamespace(ptr=end) for end in node.ends)
        return Error.cudaSuccess, SimpleNamespace(srcPtr=source, dstPtr=to)

    def cudaGraphInstantiate(self, recording: list[Any], _: int) -> Any:  # noqa: N802
        self.live["graph"] += 1
        return Error.cudaSuccess, [node.work for node in recording]

    def cudaGraphLaunch(self, graph: list[Work], stream: Stream) -> Any:  # noqa: N802
        for work in graph:
            stream.append(work)
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: list[Work]) -> Any:  # noqa: N802
        graph.clear()
        self.live["graph"] -= 1
        return (Error.cudaSuccess,)


def _copy(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


def _wait(reached: threading.Event) -> None:
    assert reached.wait(10)
