"""Runs on a GPU that is not there, by whatever runs graphs there: lanes, padding, recordings,
threads, failures.
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
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.cuda.stand_ins import EngineStandIn, OnnxStandIn, StandIn
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device, program
from tokenfold.runtime.cuda.buckets import up_to
from tokenfold.runtime.cuda.device import CudaError
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.cuda.lanes import IN_FLIGHT, Array
from tokenfold.runtime.tensorrt.origin import EngineError

PLANS = ((0, 0), (1, 2), (3, 4))
MOST = 8


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """In place of CUDA. Whatever a test took is given back at its end."""
    own = FakeRuntime()
    monkeypatch.setattr(device, "runtime", own)
    yield own
    # But streams, where an error that is still there has their session in its traceback.
    assert set(+own.live) <= {"stream"}


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def runtime(
    request: pytest.FixtureRequest, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    """What runs graphs."""
    if request.param == "onnxruntime":
        yield OnnxStandIn(monkeypatch)
        return
    own = EngineStandIn(fake)
    yield own
    assert not own.api.problems


@pytest.fixture
def graph(fake: FakeRuntime, runtime: StandIn) -> Iterator[CudaGraph]:
    own = CudaGraph(runtime.opener(), max_batch_size=MOST)
    assert fake.live["stream"] == 2
    yield own
    own.close()


def drawn(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def check(own: CudaGraph, images: Array, plan: Plan) -> None:
    """A run gives what it should, whichever outputs are asked for."""
    feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
    if "input_ids" in own.inputs:
        feeds["input_ids"] = np.zeros((len(images), 5), dtype=np.int64)
    (logits,) = own.run(["logits"], feeds)
    np.testing.assert_array_equal(logits, fake_session.logits(images, plan))
    slots, again = own.run(["slots", "logits"], feeds)
    np.testing.assert_array_equal(slots, fake_session.slots(images, plan))
    np.testing.assert_array_equal(again, logits)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 9, 20])
@pytest.mark.parametrize("warm", [False, True])
def test_any_batch(graph: CudaGraph, count: int, warm: bool) -> None:
    if warm:
        graph.warm(PLANS[:1])
    for seed, plan in enumerate(PLANS):
        check(graph, drawn(count, seed), plan)


def test_what_is_warm_is_launched(graph: CudaGraph, fake: FakeRuntime, runtime: StandIn) -> None:
    graph.warm(PLANS[1:])
    assert graph.recorded == len(up_to(MOST)) * 2
    before = runtime.runs
    for plan in PLANS[1:]:
        for count in (1, 5, 8):
            check(graph, drawn(count), plan)
    assert runtime.runs == before
    assert fake.calls["cudaGraphLaunch"] == 12
    check(graph, drawn(3), PLANS[0])
    assert runtime.runs == before + 2
    graph.warm(PLANS)
    assert graph.recorded == len(up_to(MOST)) * 3


@pytest.mark.parametrize("warm", [False, True])
def test_threads_share_a_graph(graph: CudaGraph, warm: bool) -> None:
    if warm:
        graph.warm(PLANS[:2])

    def run(seed: int) -> None:
        check(graph, drawn(1 + seed % 9, seed), PLANS[seed % 3])

    with ThreadPoolExecutor(6) as pool:
        if not warm:  # and recordings are made meanwhile
            pool.submit(graph.warm, PLANS).result()
        list(pool.map(run, range(60)))


def test_images_are_copied_while_others_are_worked_on(graph: CudaGraph, fake: FakeRuntime) -> None:
    gate, jobs = threading.Event(), IN_FLIGHT + 2
    graph._work.handle.append(gate.wait)
    before = fake.calls["cudaMemcpyAsync"]
    with ThreadPoolExecutor(jobs) as pool:
        made = [pool.submit(check, graph, drawn(2, seed), PLANS[0]) for seed in range(jobs)]
        # Images in, on the GPU, and logits out, in each lane; the other runs wait for a lane.
        while fake.calls["cudaMemcpyAsync"] < before + 3 * IN_FLIGHT:
            threading.Event().wait(0.001)
        graph._copies.wait()
        assert fake.calls["cudaMemcpyAsync"] == before + 3 * IN_FLIGHT
        assert not any(job.done() for job in made)
        gate.set()
        for job in made:
            job.result()


FAILING = (
    "cudaMemcpyAsync",
    "cudaEventRecord",
    "cudaStreamWaitEvent",
    "cudaGraphLaunch",
    "cudaEventSynchronize",
)


@pytest.mark.parametrize("function", FAILING)
def test_a_failed_call_is_one_failed_run(
    graph: CudaGraph, fake: FakeRuntime, function: str
) -> None:
    graph.warm(PLANS[:1])
    for _ in range(2 * IN_FLIGHT):
        fake.failing[function] = 1
        with pytest.raises(CudaError, match=f"{function}: fake .*LaunchFailure"):
            check(graph, drawn(5), PLANS[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: check(graph, drawn(5, seed), PLANS[0]), range(8)))


def test_failures_of_some_threads_leave_others_alone(graph: CudaGraph, fake: FakeRuntime) -> None:
    graph.warm(PLANS[:2])
    failed = []

    def run(seed: int) -> None:
        if seed % 5 == 0:
            fake.failing[FAILING[seed % 4]] += 1
        try:
            check(graph, drawn(1 + seed % 9, seed), PLANS[seed % 3])
        except CudaError as error:
            failed.append(error)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(60)))
    assert 1 <= len(failed) <= 12
    fake.failing.clear()
    check(graph, drawn(8), PLANS[0])


def test_a_run_that_cannot_start(graph: CudaGraph, runtime: StandIn) -> None:
    for _ in range(2 * IN_FLIGHT):
        with pytest.raises(runtime.refuses):
            check(graph, drawn(2), (1, 2, 3))
    check(graph, drawn(2), PLANS[0])


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said of recordings. TensorRT itself says more."""
    return [record for record in caplog.records if record.name == program.__name__]


@pytest.mark.parametrize("grows", [1, 2, 3])
def test_a_run_that_still_takes_memory_is_recorded_later(
    runtime: StandIn, caplog: pytest.LogCaptureFixture, grows: int
) -> None:
    own = CudaGraph(runtime.opener(grows=grows), max_batch_size=1)
    own.warm(PLANS[:1])
    assert own.recorded == 1
    assert runtime.runs <= 5
    check(own, drawn(1), PLANS[0])
    assert not warnings(caplog)
    own.close()


@pytest.mark.parametrize("kind", [{"grows": 10**6}, {"host": True}])
def test_what_cannot_be_recorded_runs_all_the_same(
    runtime: StandIn, fake: FakeRuntime, caplog: pytest.LogCaptureFixture, kind: dict[str, Any]
) -> None:
    own = CudaGraph(runtime.opener(**kind), max_batch_size=MOST)
    own.warm(PLANS)
    assert own.recorded == 0
    check(own, drawn(5), PLANS[0])
    own.resident(drawn(2), PLANS[0])()
    (warning,) = warnings(caplog)
    assert warning.levelno == logging.WARNING
    assert "no CUDA graphs" in warning.getMessage()
    before = +fake.live
    for _ in range(2):
        own.warm(PLANS)
        own.resident(drawn(2), PLANS[0])()
    assert +fake.live == before
    own.close()


def test_repeated_runs_take_no_more_memory(graph: CudaGraph, fake: FakeRuntime) -> None:
    graph.warm(PLANS[:2])
    check(graph, drawn(20), PLANS[2])
    before = +fake.live
    for count in (1, 20, 5):
        graph.warm(PLANS[:2])
        for plan in PLANS:
            check(graph, drawn(count), plan)
        graph.resident(drawn(3), PLANS[1])()
    graph.wait()
    assert +fake.live == before


def test_a_graph_without_a_plan(fake: FakeRuntime, runtime: StandIn) -> None:
    own = CudaGraph(runtime.opener(plan=False), max_batch_size=2)
    own.warm([()])
    assert own.recorded == 2
    before = runtime.runs
    (logits,) = own.run(["logits"], {"image": drawn(3)})
    np.testing.assert_array_equal(logits, fake_session.logits(drawn(3), ()))
    assert runtime.runs == before
    own.close()
    assert not +fake.live


def test_images_of_other_sizes_run_without_lanes(runtime: StandIn) -> None:
    own = CudaGraph(runtime.opener(free=True), size=SHAPE[:2], max_batch_size=2)
    own.warm(PLANS)
    assert own.recorded == 6
    other = np.ones((3, 2, 5, 3), np.uint8)
    for images in (drawn(3), other):
        check(own, images, PLANS[0])
    with pytest.raises(ValueError, match="own size"):
        own.resident(other, PLANS[0])
    own.close()


@pytest.mark.parametrize("kind", [{"texts": True}, {"free": True}])
def test_graphs_that_take_more(runtime: StandIn, kind: dict[str, bool]) -> None:
    own = CudaGraph(runtime.opener(**kind), max_batch_size=2)
    own.warm(PLANS)
    assert own.recorded == 0
    check(own, drawn(3), PLANS[0])
    own.close()
    with pytest.raises(CudaError, match="closed"):
        check(own, drawn(3), PLANS[0])


def test_resident_runs(graph: CudaGraph, fake: FakeRuntime, runtime: StandIn) -> None:
    images = drawn(5)
    start = graph.resident(images, PLANS[1])
    before = fake.calls["cudaMemcpyAsync"]
    for _ in range(3):
        start()
    graph.wait()
    assert fake.calls["cudaMemcpyAsync"] == before
    assert fake.calls["cudaGraphLaunch"] == 3
    rows: Sequence[float] = fake_session.logits(images, PLANS[1])[:, 0].tolist()
    assert runtime.sums(graph, 5) == rows
    for count in (0, MOST + 1):
        with pytest.raises(ValueError, match="own size"):
            graph.resident(drawn(count), PLANS[1])


def test_a_closed_graph_ends_its_runs_first(runtime: StandIn) -> None:
    own = CudaGraph(runtime.opener(), max_batch_size=MOST)
    weights = runtime.weights(own)
    own.warm(PLANS[:1])
    start = own.resident(drawn(2), PLANS[0])
    done: list[int] = []

    def run(seed: int) -> NoReturn:
        while True:
            check(own, drawn(3, seed), PLANS[seed % 3])
            done.append(seed)

    def warm() -> NoReturn:
        while True:
            own.warm([(len(done), 0)])

    with ThreadPoolExecutor(5) as pool:
        made = [pool.submit(warm), *(pool.submit(run, seed) for seed in range(4))]
        while len(done) < 8:
            threading.Event().wait(0.001)
        own.close()
        for job in made:
            with pytest.raises(CudaError, match="closed"):
                job.result(10)
    for call in (start, own.wait):
        with pytest.raises(CudaError, match="closed"):
            call()
    assert own.recorded == 0
    own.close()
    assert weights() is None


def test_what_an_error_holds_keeps_its_stream(runtime: StandIn, fake: FakeRuntime) -> None:
    """A failed run is the reason to close, and its traceback has the runner in its frames."""
    own = CudaGraph(runtime.opener(), max_batch_size=MOST)
    weights = runtime.weights(own)
    with pytest.raises(runtime.refuses) as caught:
        check(own, drawn(2), (1, 2, 3))
    own.close()
    # A session has its weights as long as it is there; an engine gives them back.
    assert (weights() is None) == isinstance(runtime, EngineStandIn)
    assert +fake.live == {"stream": 2}
    del caught


def test_what_cannot_be_opened_leaves_nothing(fake: FakeRuntime) -> None:
    def broken(_: device.Stream) -> NoReturn:
        raise RuntimeError("no provider")

    with pytest.raises(RuntimeError, match="no provider"):
        CudaGraph(broken)
    assert not +fake.live


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"])
def test_not_enough_memory(runtime: StandIn, fake: FakeRuntime, function: str) -> None:
    fake.failing[function] = 1
    with pytest.raises((CudaError, EngineError), match=f"{function}|OutOfMemory"):
        CudaGraph(runtime.opener())


def test_not_enough_memory_for_some_of_it(runtime: StandIn, fake: FakeRuntime) -> None:
    own = CudaGraph(runtime.opener(), max_batch_size=MOST)
    opened = fake.live["device"]
    own.warm(PLANS[:1])
    warm = fake.live["device"]
    own.close()
    for blocks in range(opened):
        fake.blocks = blocks
        with pytest.raises((CudaError, EngineError), match=r"MemoryAllocation|OutOfMemory"):
            CudaGraph(runtime.opener(), max_batch_size=MOST)
        assert set(+fake.live) <= {"stream"}
    for blocks in range(opened, warm):
        fake.blocks = blocks
        own = CudaGraph(runtime.opener(), max_batch_size=MOST)
        with pytest.raises(EngineError, match="OutOfMemory"):
            own.warm(PLANS[:1])
        fake.blocks = None
        check(own, drawn(MOST), PLANS[0])
        own.close()
        assert set(+fake.live) <= {"stream"}
