"""Tests of the CUDA wrappers: copies, errors, and work that must not be recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import CudaError, Event, Memory, PinnedMemory, Stream

SIZE = 8


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(device, "runtime", runtime)
    return runtime


@pytest.fixture
def stream(fake: FakeRuntime) -> Iterator[Stream]:
    """Create a stream, and check at the end that the test freed all other resources."""
    stream = Stream()
    yield stream
    stream.free()
    assert not +fake.live


def test_gpu_properties(fake: FakeRuntime) -> None:
    assert device.missing() is None
    assert device.name() == "Fake GPU"
    assert device.memory() == (3, 5)
    fake.failing["cudaGetDeviceCount"] = 1
    assert str(device.missing()).startswith("no GPU can be used: cudaGetDeviceCount: fake")


def test_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
    assert device.missing() == "no GPU was found"
    monkeypatch.setattr(device, "runtime", None)
    assert "cuda-bindings" in str(device.missing())


def test_copies_to_on_and_from_the_gpu(stream: Stream) -> None:
    source, result = PinnedMemory(SIZE), PinnedMemory(SIZE)
    first, second, event = Memory(SIZE), Memory(SIZE), Event()
    source.bytes[:] = np.arange(SIZE)
    stream.upload(first, source, SIZE)
    stream.copy_on_device(second, first, SIZE)
    stream.download(result, second, SIZE - 1)
    stream.record(event)
    event.wait()
    assert result.bytes.tolist() == [*range(SIZE - 1), 255]
    for copy, origin in ((stream.upload, source), (stream.copy_on_device, second)):
        with pytest.raises(ValueError, match="cannot copy 9 bytes from a buffer of 8 to one of 8"):
            copy(first, origin, SIZE + 1)  # type: ignore[arg-type]
    for resource in (source, result, first, second, event):
        resource.free()


def test_empty_allocations(stream: Stream) -> None:
    stream.wait()
    pinned, memory = PinnedMemory(0), Memory(0)
    assert pinned.bytes.size == 0
    pinned.free()
    memory.free()


def test_a_stream_waits_for_an_event_of_another(stream: Stream) -> None:
    other, event = Stream(), Event()
    source, target = PinnedMemory(SIZE), Memory(SIZE)
    for _ in range(20):
        source.bytes[:] = 3
        stream.upload(target, source, SIZE)
        stream.record(event)
        other.wait_for(event)
        other.download(source, target, SIZE)
        other.wait()
        assert source.bytes.tolist() == [3] * SIZE
    for resource in (event, source, target, other):
        resource.free()


def test_recorded_work_is_executed_at_each_launch(stream: Stream) -> None:
    source, first, second = PinnedMemory(SIZE), Memory(SIZE), Memory(SIZE)
    graph = stream.capture(lambda: stream.copy_on_device(second, first, SIZE))
    assert graph.nodes == 1
    source.bytes[:] = 7
    stream.upload(first, source, SIZE)
    graph.launch(stream)
    stream.download(source, second, SIZE)
    stream.wait()
    assert source.bytes.tolist() == [7] * SIZE
    empty = stream.capture(lambda: None)
    assert empty.nodes == 0
    for resource in (source, first, second, graph, empty):
        resource.free()


def test_recordings_must_not_access_the_host(stream: Stream) -> None:
    host, gpu = PinnedMemory(SIZE), Memory(SIZE)
    for work in (lambda: stream.upload(gpu, host, 1), lambda: stream.download(host, gpu, 1)):
        with pytest.raises(CudaError, match="the host's memory"):
            stream.capture(work)
    with pytest.raises(CudaError, match="calls the host"):
        stream.capture(lambda: stream.handle.append(lambda: None, kind="host"))
    host.free()
    gpu.free()


def test_a_failed_recording_leaves_the_stream_usable(stream: Stream) -> None:
    def allocates() -> None:
        Memory(SIZE)

    def swallows() -> None:
        with pytest.raises(CudaError):
            stream.wait()

    def raises() -> None:
        raise KeyError("mine")

    with pytest.raises(CudaError, match="cudaMalloc: fake"):
        stream.capture(allocates)
    with pytest.raises(CudaError, match=r"cudaStreamEndCapture: fake .*Invalidated"):
        stream.capture(swallows)
    with pytest.raises(KeyError, match="mine"):
        stream.capture(raises)
    stream.wait()
    stream.capture(lambda: None).free()


def test_errors_of_free_are_ignored(stream: Stream, fake: FakeRuntime) -> None:
    memory = Memory(SIZE)
    fake.failing["cudaFree"] = 1
    memory.free()
    memory.free()
    stream.wait()
