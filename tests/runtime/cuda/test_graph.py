"""Tests of graphs on a fake GPU with each fake backend: buffers, padding, recordings, threads,
failures.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import pytest

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_backends import FakeBackend, FakeOnnxRuntime, FakeTensorRT
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device, recordings
from tokenfold.runtime.cuda.buckets import buckets_up_to
from tokenfold.runtime.cuda.buffers import RUNS_IN_FLIGHT, Array
from tokenfold.runtime.cuda.device import CudaError
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.tensorrt.spec import EngineError

PLANS = ((0, 0), (1, 2), (3, 4))
MAX_BATCH = 8


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """Replace CUDA, and check at the end that all resources were freed."""
    runtime = FakeRuntime()
    monkeypatch.setattr(device, "runtime", runtime)
    yield runtime
    # Streams may remain, when the traceback of a living exception refers to their session.
    assert set(+runtime.live) <= {"stream"}


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def runtime(
    request: pytest.FixtureRequest, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeBackend]:
    """Run each test with both fake backends."""
    if request.param == "onnxruntime":
        yield FakeOnnxRuntime(monkeypatch)
        return
    tensorrt = FakeTensorRT(fake)
    yield tensorrt
    assert not tensorrt.api.problems


@pytest.fixture
def graph(fake: FakeRuntime, runtime: FakeBackend) -> Iterator[CudaGraph]:
    graph = CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
    assert fake.live["stream"] == 2
    yield graph
    graph.close()


def random_images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def check(graph: CudaGraph, images: Array, plan: Plan) -> None:
    """Check a run's results, for several selections of outputs."""
    feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
    if "input_ids" in graph.inputs:
        feeds["input_ids"] = np.zeros((len(images), 5), dtype=np.int64)
    (logits,) = graph.run(["logits"], feeds)
    np.testing.assert_array_equal(logits, fake_session.logits(images, plan))
    slots, again = graph.run(["slots", "logits"], feeds)
    np.testing.assert_array_equal(slots, fake_session.slots(images, plan))
    np.testing.assert_array_equal(again, logits)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 9, 20])
@pytest.mark.parametrize("warm", [False, True])
def test_results_for_any_batch_size(graph: CudaGraph, count: int, warm: bool) -> None:
    if warm:
        graph.warm(PLANS[:1])
    for seed, plan in enumerate(PLANS):
        check(graph, random_images(count, seed), plan)


def test_warmed_runs_are_launched_as_cuda_graphs(
    graph: CudaGraph, fake: FakeRuntime, runtime: FakeBackend
) -> None:
    graph.warm(PLANS[1:])
    assert graph.recorded == len(buckets_up_to(MAX_BATCH)) * 2
    before = runtime.runs
    for plan in PLANS[1:]:
        for count in (1, 5, 8):
            check(graph, random_images(count), plan)
    assert runtime.runs == before
    assert fake.calls["cudaGraphLaunch"] == 12
    check(graph, random_images(3), PLANS[0])
    assert runtime.runs == before + 2
    graph.warm(PLANS)
    assert graph.recorded == len(buckets_up_to(MAX_BATCH)) * 3


@pytest.mark.parametrize("warm", [False, True])
def test_concurrent_runs(graph: CudaGraph, warm: bool) -> None:
    if warm:
        graph.warm(PLANS[:2])

    def run(seed: int) -> None:
        check(graph, random_images(1 + seed % 9, seed), PLANS[seed % 3])

    with ThreadPoolExecutor(6) as pool:
        if not warm:  # Record while other threads run.
            pool.submit(graph.warm, PLANS).result()
        list(pool.map(run, range(60)))


def test_copies_overlap_the_previous_run(graph: CudaGraph, fake: FakeRuntime) -> None:
    gate, count = threading.Event(), RUNS_IN_FLIGHT + 2
    graph._compute_stream.handle.append(gate.wait)
    before = fake.calls["cudaMemcpyAsync"]
    with ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(check, graph, random_images(2, seed), PLANS[0]) for seed in range(count)
        ]
        # Each run in flight makes three copies: images to the GPU, images within the GPU, and
        # logits to the host. The other runs wait for buffers.
        while fake.calls["cudaMemcpyAsync"] < before + 3 * RUNS_IN_FLIGHT:
            threading.Event().wait(0.001)
        graph._copy_stream.wait()
        assert fake.calls["cudaMemcpyAsync"] == before + 3 * RUNS_IN_FLIGHT
        assert not any(job.done() for job in jobs)
        gate.set()
        for job in jobs:
            job.result()


FAILING = (
    "cudaMemcpyAsync",
    "cudaEventRecord",
    "cudaStreamWaitEvent",
    "cudaGraphLaunch",
    "cudaEventSynchronize",
)


@pytest.mark.parametrize("function", FAILING)
def test_a_failed_cuda_call_fails_one_run(
    graph: CudaGraph, fake: FakeRuntime, function: str
) -> None:
    graph.warm(PLANS[:1])
    for _ in range(2 * RUNS_IN_FLIGHT):
        fake.failing[function] = 1
        with pytest.raises(CudaError, match=f"{function}: fake .*LaunchFailure"):
            check(graph, random_images(5), PLANS[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: check(graph, random_images(5, seed), PLANS[0]), range(8)))


def test_failures_in_some_threads_do_not_affect_others(graph: CudaGraph, fake: FakeRuntime) -> None:
    graph.warm(PLANS[:2])
    failed = []

    def run(seed: int) -> None:
        if seed % 5 == 0:
            fake.failing[FAILING[seed % 4]] += 1
        try:
            check(graph, random_images(1 + seed % 9, seed), PLANS[seed % 3])
        except CudaError as error:
            failed.append(error)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(60)))
    assert 1 <= len(failed) <= 12
    fake.failing.clear()
    check(graph, random_images(8), PLANS[0])


def test_a_run_that_cannot_start_does_not_block_others(
    graph: CudaGraph, runtime: FakeBackend
) -> None:
    for _ in range(2 * RUNS_IN_FLIGHT):
        with pytest.raises(runtime.start_error):
            check(graph, random_images(2), (1, 2, 3))
    check(graph, random_images(2), PLANS[0])


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the warnings about recordings, without TensorRT's log messages."""
    return [record for record in caplog.records if record.name == recordings.__name__]


@pytest.mark.parametrize("grows", [1, 2, 3])
def test_recording_is_retried_after_an_allocation(
    runtime: FakeBackend, caplog: pytest.LogCaptureFixture, grows: int
) -> None:
    graph = CudaGraph(runtime.opener(grows=grows), max_batch_size=1)
    graph.warm(PLANS[:1])
    assert graph.recorded == 1
    assert runtime.runs <= 5
    check(graph, random_images(1), PLANS[0])
    assert not warnings(caplog)
    graph.close()


@pytest.mark.parametrize("options", [{"grows": 10**6}, {"host": True}])
def test_runs_work_when_recording_fails(
    runtime: FakeBackend,
    fake: FakeRuntime,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
) -> None:
    graph = CudaGraph(runtime.opener(**options), max_batch_size=MAX_BATCH)
    graph.warm(PLANS)
    assert graph.recorded == 0
    check(graph, random_images(5), PLANS[0])
    graph.resident(random_images(2), PLANS[0])()
    (warning,) = warnings(caplog)
    assert warning.levelno == logging.WARNING
    assert "cannot be recorded as CUDA graphs" in warning.getMessage()
    before = +fake.live
    for _ in range(2):
        graph.warm(PLANS)
        graph.resident(random_images(2), PLANS[0])()
    assert +fake.live == before
    graph.close()


def test_repeated_runs_allocate_nothing(graph: CudaGraph, fake: FakeRuntime) -> None:
    graph.warm(PLANS[:2])
    check(graph, random_images(20), PLANS[2])
    before = +fake.live
    for count in (1, 20, 5):
        graph.warm(PLANS[:2])
        for plan in PLANS:
            check(graph, random_images(count), plan)
        graph.resident(random_images(3), PLANS[1])()
    graph.wait()
    assert +fake.live == before


def test_graph_without_a_plan(fake: FakeRuntime, runtime: FakeBackend) -> None:
    graph = CudaGraph(runtime.opener(plan=False), max_batch_size=2)
    graph.warm([()])
    assert graph.recorded == 2
    before = runtime.runs
    (logits,) = graph.run(["logits"], {"image": random_images(3)})
    np.testing.assert_array_equal(logits, fake_session.logits(random_images(3), ()))
    assert runtime.runs == before
    graph.close()
    assert not +fake.live


def test_images_of_other_sizes_run_unrecorded(runtime: FakeBackend) -> None:
    graph = CudaGraph(runtime.opener(free=True), size=SHAPE[:2], max_batch_size=2)
    graph.warm(PLANS)
    assert graph.recorded == 6
    other = np.ones((3, 2, 5, 3), np.uint8)
    for images in (random_images(3), other):
        check(graph, images, PLANS[0])
    with pytest.raises(ValueError, match="usual size"):
        graph.resident(other, PLANS[0])
    graph.close()


@pytest.mark.parametrize("options", [{"texts": True}, {"free": True}])
def test_graphs_with_other_inputs_run_unrecorded(
    runtime: FakeBackend, options: dict[str, bool]
) -> None:
    graph = CudaGraph(runtime.opener(**options), max_batch_size=2)
    graph.warm(PLANS)
    assert graph.recorded == 0
    check(graph, random_images(3), PLANS[0])
    graph.close()
    with pytest.raises(CudaError, match="closed"):
        check(graph, random_images(3), PLANS[0])


def test_resident_runs_copy_nothing(
    graph: CudaGraph, fake: FakeRuntime, runtime: FakeBackend
) -> None:
    images = random_images(5)
    start = graph.resident(images, PLANS[1])
    before = fake.calls["cudaMemcpyAsync"]
    for _ in range(3):
        start()
    graph.wait()
    assert fake.calls["cudaMemcpyAsync"] == before
    assert fake.calls["cudaGraphLaunch"] == 3
    rows: Sequence[float] = fake_session.logits(images, PLANS[1])[:, 0].tolist()
    assert runtime.sums(graph, 5) == rows
    for count in (0, MAX_BATCH + 1):
        with pytest.raises(ValueError, match="usual size"):
            graph.resident(random_images(count), PLANS[1])


def test_close_waits_for_runs_in_flight(runtime: FakeBackend) -> None:
    graph = CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
    weights = runtime.weights(graph)
    graph.warm(PLANS[:1])
    start = graph.resident(random_images(2), PLANS[0])
    done: list[int] = []

    def run(seed: int) -> NoReturn:
        while True:
            check(graph, random_images(3, seed), PLANS[seed % 3])
            done.append(seed)

    def warm() -> NoReturn:
        while True:
            graph.warm([(len(done), 0)])

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(warm), *(pool.submit(run, seed) for seed in range(4))]
        while len(done) < 8:
            threading.Event().wait(0.001)
        graph.close()
        for job in jobs:
            with pytest.raises(CudaError, match="closed"):
                job.result(10)
    for call in (start, graph.wait):
        with pytest.raises(CudaError, match="closed"):
            call()
    assert graph.recorded == 0
    graph.close()
    assert weights() is None


def test_a_living_traceback_keeps_the_streams(runtime: FakeBackend, fake: FakeRuntime) -> None:
    """The graph is closed because a run failed, whose traceback refers to the runner."""
    graph = CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
    weights = runtime.weights(graph)
    with pytest.raises(runtime.start_error) as caught:
        check(graph, random_images(2), (1, 2, 3))
    graph.close()
    # A session keeps its weights while it is referenced; an engine is freed explicitly.
    assert (weights() is None) == isinstance(runtime, FakeTensorRT)
    assert +fake.live == {"stream": 2}
    del caught


def test_a_failed_open_frees_everything(fake: FakeRuntime) -> None:
    def broken(_: device.Stream) -> NoReturn:
        raise RuntimeError("no provider")

    with pytest.raises(RuntimeError, match="no provider"):
        CudaGraph(broken)
    assert not +fake.live


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"])
def test_failed_allocations(runtime: FakeBackend, fake: FakeRuntime, function: str) -> None:
    fake.failing[function] = 1
    with pytest.raises((CudaError, EngineError), match=f"{function}|OutOfMemory"):
        CudaGraph(runtime.opener())


def test_running_out_of_memory_at_any_allocation(runtime: FakeBackend, fake: FakeRuntime) -> None:
    graph = CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
    blocks_opened = fake.live["device"]
    graph.warm(PLANS[:1])
    blocks_warm = fake.live["device"]
    graph.close()
    for blocks in range(blocks_opened):
        fake.blocks = blocks
        with pytest.raises((CudaError, EngineError), match=r"MemoryAllocation|OutOfMemory"):
            CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
        assert set(+fake.live) <= {"stream"}
    for blocks in range(blocks_opened, blocks_warm):
        fake.blocks = blocks
        graph = CudaGraph(runtime.opener(), max_batch_size=MAX_BATCH)
        with pytest.raises(EngineError, match="OutOfMemory"):
            graph.warm(PLANS[:1])
        fake.blocks = None
        check(graph, random_images(MAX_BATCH), PLANS[0])
        graph.close()
        assert set(+fake.live) <= {"stream"}
