"""CUDA's functions as they are called here: what they fail with, and what is never recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import CudaError, Event, Memory, Pinned, Stream

SIZE = 8


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    own = FakeRuntime()
    monkeypatch.setattr(device, "runtime", own)
    return own


@pytest.fixture
def stream(fake: FakeRuntime) -> Iterator[Stream]:
    """Whatever else a test makes it gives back itself."""
    own = Stream()
    yield own
    own.free()
    assert not +fake.live


def test_a_gpu(fake: FakeRuntime) -> None:
    assert device.missing() is None
    assert device.name() == "Fake GPU"
    assert device.memory() == (3, 5)
    fake.failing["cudaGetDeviceCount"] = 1
    assert str(device.missing()).startswith("no GPU can be used: cudaGetDeviceCount: fake")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
    assert device.missing() == "no GPU was found"
    monkeypatch.setattr(device, "runtime", None)
    assert "cuda-bindings" in str(device.missing())


def test_bytes_go_to_the_gpu_and_back(stream: Stream) -> None:
    to, back = Pinned(SIZE), Pinned(SIZE)
    one, other, event = Memory(SIZE), Memory(SIZE), Event()
    to.bytes[:] = np.arange(SIZE)
    stream.upload(one, to, SIZE)
    stream.move(other, one, SIZE)
    stream.download(back, other, SIZE - 1)
    stream.record(event)
    event.wait()
    assert back.bytes.tolist() == [*range(SIZE - 1), 255]
    for copy, into, source in ((stream.upload, one, to), (stream.move, one, other)):
        with pytest.raises(ValueError, match="no copy of 9 bytes from 8 to 8"):
            copy(into, source, SIZE + 1)  # type: ignore[arg-type]
    for held in (to, back, one, other, event):
        held.free()


def test_nothing_is_a_size_too(stream: Stream) -> None:
    stream.wait()
    pinned, memory = Pinned(0), Memory(0)
    assert pinned.bytes.size == 0
    pinned.free()
    memory.free()


def test_one_stream_waits_for_another(stream: Stream) -> None:
    other, event = Stream(), Event()
    source, target = Pinned(SIZE), Memory(SIZE)
    for _ in range(20):
        source.bytes[:] = 3
        stream.upload(target, source, SIZE)
        stream.record(event)
        other.wait_for(event)
        other.download(source, target, SIZE)
        other.wait()
        assert source.bytes.tolist() == [3] * SIZE
    for held in (event, source, target, other):
        held.free()


def test_recorded_work_is_done_when_it_is_launched(stream: Stream) -> None:
    source, one, other = Pinned(SIZE), Memory(SIZE), Memory(SIZE)
    graph = stream.capture(lambda: stream.move(other, one, SIZE))
    assert graph.nodes == 1
    source.bytes[:] = 7
    stream.upload(one, source, SIZE)
    graph.launch(stream)
    stream.download(source, other, SIZE)
    stream.wait()
    assert source.bytes.tolist() == [7] * SIZE
    empty = stream.capture(lambda: None)
    assert empty.nodes == 0
    for held in (source, one, other, graph, empty):
        held.free()


def test_copies_of_the_hosts_memory_are_not_recorded(stream: Stream) -> None:
    host, gpu = Pinned(SIZE), Memory(SIZE)
    for work in (lambda: stream.upload(gpu, host, 1), lambda: stream.download(host, gpu, 1)):
        with pytest.raises(CudaError, match="the host's memory"):
            stream.capture(work)
    with pytest.raises(CudaError, match="calls the host"):
        stream.capture(lambda: stream.handle.append(lambda: None, kind="host"))
    host.free()
    gpu.free()


def test_a_recording_that_fails_leaves_the_stream_as_it_was(stream: Stream) -> None:
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


def test_what_cannot_be_given_back_is_left(stream: Stream, fake: FakeRuntime) -> None:
    memory = Memory(SIZE)
    fake.failing["cudaFree"] = 1
    memory.free()
    memory.free()
    stream.wait()
