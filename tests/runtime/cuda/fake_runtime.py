"""Stands in for `cuda.bindings.runtime` where there is no GPU.

Streams are threads that do their work in order but late, memory of the "GPU" is the host's, and a
recording is a list of work. So what forgets to wait for something reads or writes the wrong bytes.
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
"""Bytes, of all memory."""


class Error(IntEnum):
    """Some of cudaError_t."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorLaunchFailure = 719  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Stream:
    """Does its work in order, a little late. While it records, work is kept instead."""

    def __init__(self, seed: int) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._random = random.Random(seed)
        self.recording: list[Any] | None = None
        self.recorder = 0
        self.spoilt = False
        self.failed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __int__(self) -> int:
        return id(self)

    def append(self, work: Work, *, kind: str = "kernel", ends: tuple[int, ...] = ()) -> None:
        """Work to do once all before it is done."""
        if self.recording is not None:
            self.recording.append(SimpleNamespace(work=work, kind=kind, ends=ends))
        else:
            self._work.put(work)

    def done(self) -> threading.Event:
        """Set once all that is in the stream now is done."""
        reached = threading.Event()
        self._work.put(reached.set)
        return reached

    def stop(self) -> None:
        self._work.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._random.random() < 0.3:
                time.sleep(self._random.random() * 1e-3)
            work()


class FakeRuntime:
    """The functions that `tokenfold.runtime.cuda.device` calls.

    Attributes:
        calls: how often each was called.
        failing: functions that fail, and how many times.
        blocks: of memory that the GPU has room for; None for any number.
        live: what was allocated or created and not given back, by what made it.
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
        self._made: dict[int, str] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not callable(found) or not name.startswith("cuda") or name == "cudaError_t":
            return found

        def called(*arguments: Any) -> Any:
            self.calls[name] += 1
            if self.failing[name]:
                self.failing[name] -= 1
                return (Error.cudaErrorLaunchFailure,)
            return found(*arguments)

        return called

    def kind(self, address: int) -> str:
        """Where the block at an address is."""
        return self._blocks[address][1]

    def room(self, address: int) -> int:
        """Bytes of the block at an address; 0 where there is none, any more."""
        block = self._blocks.get(address)
        return 0 if block is None else block[2]

    def stream(self, number: int) -> Stream:
        """The stream that a library knows by its number."""
        (found,) = (stream for stream in self._streams if int(stream) == number)
        return found

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
                stream.spoilt = True
                return (Error.cudaErrorStreamCaptureUnsupported,)
        if self.blocks is not None and self.live["device"] >= self.blocks:
            return (Error.cudaErrorMemoryAllocation,)
        return self._allocated(size, "device")

    def cudaHostAlloc(self, size: int, _: int) -> Any:  # noqa: N802
        return self._allocated(size, "host")

    def _allocated(self, size: int, kind: str) -> Any:
        # Full of ones: what was never written is no plausible zero.
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
        own = {1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}[kind]
        assert (self.kind(to), self.kind(source)) == own
        stream.append(lambda: _move(to, source, size), kind="copy", ends=(source, to))
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
            stream.spoilt = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        assert stream.done().wait(10)
        return (Error.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: Stream, event: Any, _: int) -> Any:  # noqa: N802
        reached = event.reached
        stream.append(lambda: _reach(reached))
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
        _reach(event.reached)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> Any:  # noqa: N802
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream.recording is None
        stream.recording, stream.recorder, stream.spoilt = [], threading.get_ident(), False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> Any:  # noqa: N802
        assert stream.recorder == threading.get_ident()
        recording, stream.recording = stream.recording, None
        if stream.spoilt:
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


def _move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


def _reach(reached: threading.Event) -> None:
    assert reached.wait(10)
