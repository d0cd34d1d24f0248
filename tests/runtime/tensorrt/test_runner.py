"""Tests of the runner of engines. Tests of what all runners share are in
tests/runtime/cuda/test_graph.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_backends import FakeTensorRT
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import DynamicShapesKernelSpecializationStrategy
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.buckets import buckets_up_to
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.profiles import BATCH_RANGES
from tokenfold.runtime.tensorrt.runner import EngineRunner
from tokenfold.runtime.tensorrt.spec import EngineError

PLANS = ((0, 0), (1, 2), (3, 4))
MAX_BATCH = 8


@pytest.fixture
def stream(gpu: FakeRuntime) -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.free()
    assert not +gpu.live


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def feeds(pixels: Array, plan: Plan, **more: Array) -> Mapping[str, Array]:
    return {"image": pixels, "plan": np.asarray(plan, dtype=np.int64), **more}


def check(runner: CudaGraph | EngineRunner, pixels: Array, plan: Plan, **more: Array) -> None:
    """Check the results of a run."""
    logits, slots = runner.run(["logits", "slots"], feeds(pixels, plan, **more))
    np.testing.assert_array_equal(logits, fake_session.logits(pixels, plan))
    np.testing.assert_array_equal(slots, fake_session.slots(pixels, plan))


def open_runner(tensorrt: FakeTensorRT, stream: Stream, **options: Any) -> EngineRunner:
    runner = tensorrt.opener(**options)(stream)
    assert isinstance(runner, EngineRunner)
    return runner


def test_inputs_and_outputs(tensorrt: FakeTensorRT, stream: Stream) -> None:
    runner = open_runner(tensorrt, stream, free=True, texts=True)
    assert runner.inputs == {
        "image": ("batch", "image_1", "image_2", 3),
        "plan": (2,),
        "input_ids": ("batch", "input_ids_1"),
    }
    assert list(runner.outputs) == ["logits", "slots"]
    assert not runner.native
    runner.free()


def test_unrecorded_runs_share_one_context_per_profile(
    tensorrt: FakeTensorRT, stream: Stream
) -> None:
    runner = open_runner(tensorrt, stream)
    for count in (1, 2, 5, 1, 32, 33, 100, 128, 2, 1):
        for plan in PLANS:
            check(runner, images(count), plan)
    assert tensorrt.api.live["context"] == len(BATCH_RANGES)
    assert tensorrt.api.calls["set_optimization_profile_async"] == len(BATCH_RANGES) - 1
    runner.free()


def test_every_recording_has_its_own_context(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    graph = CudaGraph(tensorrt.opener(), max_batch_size=MAX_BATCH)
    before = tensorrt.api.live["context"]
    graph.warm(PLANS)
    assert (
        tensorrt.api.live["context"] - before == graph.recorded == 3 * len(buckets_up_to(MAX_BATCH))
    )
    # Runs of other plans use other contexts, and do not change those of recordings.
    for seed, plan in enumerate([*PLANS, (9, 9), *PLANS]):
        check(graph, images(5, seed), plan)
    graph.close()
    assert not +tensorrt.api.live
    assert not +gpu.live


def test_recordings_wait_for_kernels_of_their_shapes(tensorrt: FakeTensorRT) -> None:
    """TensorRT for RTX first runs kernels for all shapes, which a recording would keep."""
    tensorrt.api.DynamicShapesKernelSpecializationStrategy = (
        DynamicShapesKernelSpecializationStrategy
    )
    graph = CudaGraph(tensorrt.opener(), max_batch_size=2)
    graph.warm([(1, 2)])
    images = np.zeros((1, *SHAPE), np.uint8)
    # A run with a custom plan is not recorded, so it does not wait.
    graph.run(["logits"], {"image": images, "plan": np.asarray((2, 1))})
    assert graph.recorded == 2
    assert tensorrt.api.calls["context EAGER"] == 2
    assert tensorrt.api.calls["create_execution_context"] > 2
    graph.close()


def test_no_contexts_are_created_when_recording_fails(tensorrt: FakeTensorRT) -> None:
    graph = CudaGraph(tensorrt.opener(host=True), max_batch_size=MAX_BATCH)
    graph.warm(PLANS)
    contexts = tensorrt.api.calls["create_execution_context"]
    graph.warm(PLANS)
    for count in (1, 5, 20):
        check(graph, images(count), PLANS[0])
    assert tensorrt.api.calls["create_execution_context"] == contexts
    graph.close()


def test_engines_share_working_memory(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    graph = CudaGraph(tensorrt.opener(plans=PLANS[1:]), max_batch_size=MAX_BATCH)
    size = gpu.block_size(graph._runner._work.address)  # type: ignore[attr-defined]
    assert size == 8 * 128
    graph.close()


@pytest.mark.parametrize("warm", [False, True])
def test_a_static_engine_is_used_for_its_plan(tensorrt: FakeTensorRT, warm: bool) -> None:
    """The static engine uses another plan number, which identifies its results."""
    description = fake_engine.describe(fake_engine.engine_spec(PLANS[1]))
    marked = description.model_copy(update={"plan": (7, 7)})
    engines = [
        tensorrt.engine(fake_engine.engine_spec()),
        Engine(tensorrt.variant, None, fake_engine.engine_spec(PLANS[1]), marked.content),
    ]
    graph = CudaGraph(lambda stream: EngineRunner(engines, stream), max_batch_size=MAX_BATCH)
    if warm:
        graph.warm(PLANS)
    check(graph, images(5), PLANS[0])
    check(graph, images(5), PLANS[2])
    (logits,) = graph.run(["logits"], feeds(images(5), PLANS[1]))
    np.testing.assert_array_equal(logits, fake_session.logits(images(5), (7, 7)))
    graph.close()


def test_static_engines_of_all_plans(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    graph = CudaGraph(tensorrt.opener(plans=PLANS), max_batch_size=MAX_BATCH)
    for warm in (False, True):
        for seed, plan in enumerate([*PLANS, (5, 6)]):
            for count in (1, 5, 20):
                check(graph, images(count, seed), plan)
        if not warm:
            graph.warm(PLANS)
    assert tensorrt.api.live["engine"] == 4
    graph.close()
    assert not +gpu.live


@pytest.mark.parametrize(
    ("pixels", "plan", "message"),
    [
        (images(2, shape=(10, 4, 3)), PLANS[1], "takes image of 2 to 32 x 1 to 9 x 1 to 9 x 3 to"),
        (images(200, shape=(2, 2, 3)), PLANS[1], "runs 1 to 128 items at a time, not 200"),
        (images(0), PLANS[1], "runs 1 to 128 items at a time, not 0"),
        (images(2), (1, -2), r"takes counts of 0 to 1000000, not \(1, -2\)"),
        (images(2), (1,), "takes a plan of 2 counts, not 1"),
        (images(2), (), "takes a plan of 2 counts, not 0"),
    ],
)
def test_runs_reject_sizes_and_plans_out_of_range(
    tensorrt: FakeTensorRT, pixels: Array, plan: tuple[int, ...], message: str
) -> None:
    graph = CudaGraph(tensorrt.opener(free=True), size=SHAPE[:2], max_batch_size=MAX_BATCH)
    started = tensorrt.runs
    with pytest.raises(EngineError, match=message):
        graph.run(["logits"], feeds(pixels, plan))
    assert tensorrt.runs == started
    for other in (images(3), images(3, shape=(9, 1, 3))):
        check(graph, other, PLANS[1])
    graph.close()


def test_graph_with_texts(tensorrt: FakeTensorRT) -> None:
    graph = CudaGraph(tensorrt.opener(texts=True), max_batch_size=MAX_BATCH)
    for length in (1, 6):
        ids = np.ones((3, length), np.int64)
        (logits,) = graph.run(["logits"], feeds(images(3), PLANS[1], input_ids=ids))
        alone = fake_session.logits(images(3), PLANS[1])
        np.testing.assert_array_equal(logits, alone + np.array([length, 0]))
    for ids, message in (
        (np.ones((3, 7), np.int64), "takes input_ids of 2 to 32 x 1 to 6, not"),
        (
            np.ones((2, 3), np.int64),
            "the shapes of the inputs do not match: .*sizes of one name differ",
        ),
    ):
        with pytest.raises(EngineError, match=message):
            graph.run(["logits"], feeds(images(3), PLANS[1], input_ids=ids))
    with pytest.raises(TypeError, match="Cannot cast"):
        graph.run(["logits"], feeds(images(3) / 255, PLANS[1], input_ids=ids))
    check(graph, np.asfortranarray(images(3)), PLANS[1], input_ids=np.zeros((3, 2), np.int32))
    graph.close()


def test_a_plan_without_effect(tensorrt: FakeTensorRT) -> None:
    """TensorRT then reads the plan from GPU memory."""
    graph = CudaGraph(tensorrt.opener(unused=True), max_batch_size=MAX_BATCH)
    graph.warm(PLANS[:1])
    for count in (1, 5, 20):
        for plan in PLANS:
            (logits,) = graph.run(["logits"], feeds(images(count), plan))
            np.testing.assert_array_equal(logits, fake_session.logits(images(count), ()))
    graph.close()


def test_an_engine_without_working_memory(tensorrt: FakeTensorRT) -> None:
    graph = CudaGraph(tensorrt.opener(memory=0), max_batch_size=MAX_BATCH)
    graph.warm(PLANS[:1])
    for plan in PLANS[:2]:
        check(graph, images(5), plan)
    graph.close()


def test_buffers_grow_with_the_batch(
    tensorrt: FakeTensorRT, gpu: FakeRuntime, stream: Stream
) -> None:
    runner = open_runner(tensorrt, stream)
    check(runner, images(1), PLANS[1])
    before = +gpu.live
    for count in (5, 20, 3, 20, 1):
        check(runner, images(count, count), PLANS[1])
    runner.free()
    # Later batches need one more context, for another profile.
    assert before == {"device": 3 + 3, "host": 3, "stream": 1}


@pytest.mark.parametrize(
    "function", ["execute_async_v3", "set_tensor_address", "set_input_shape", "infer_shapes"]
)
def test_a_failed_run_waits_for_its_copies(
    tensorrt: FakeTensorRT, stream: Stream, function: str
) -> None:
    """Otherwise the next run would overwrite or free buffers that copies still read."""
    runner = open_runner(tensorrt, stream)
    check(runner, images(1), PLANS[0])
    gate = threading.Event()
    stream.handle.append(gate.wait)
    tensorrt.api.failing[function] = 1
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(runner.run, ["logits"], feeds(images(1), PLANS[0]))
        assert not gate.wait(0.05)
        assert not job.done()
        gate.set()
        with pytest.raises(EngineError, match=f"{function}: .* failure"):
            job.result(10)
    check(runner, images(20), PLANS[0])
    runner.free()


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"])
def test_cuda_failures(
    tensorrt: FakeTensorRT, gpu: FakeRuntime, stream: Stream, function: str
) -> None:
    runner = open_runner(tensorrt, stream)
    check(runner, images(1), PLANS[0])
    for count in (2, 3):
        gpu.failing[function] = 1
        with pytest.raises((device.CudaError, EngineError), match=f"{function}|OutOfMemory"):
            check(runner, images(count), PLANS[0])
    for count in (1, 3):
        check(runner, images(count), PLANS[0])
    runner.free()


def test_failures_while_recording(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    graph = CudaGraph(tensorrt.opener(), max_batch_size=1)
    before = +gpu.live
    for function in ("create_execution_context", "set_input_shape", "execute_async_v3"):
        tensorrt.api.failing[function] = 1
        with pytest.raises(EngineError, match=f"{function}: .* failure"):
            graph.warm(PLANS[:1])
        assert +gpu.live == before
    graph.warm(PLANS[:1])
    assert graph.recorded == 1
    check(graph, images(3), PLANS[0])
    graph.close()
    assert not +gpu.live


def test_graphs_are_independent(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    one, other = (CudaGraph(tensorrt.opener(), max_batch_size=MAX_BATCH) for _ in range(2))
    one.warm(PLANS[:2])

    def run(seed: int) -> None:
        check((one, other)[seed % 2], images(1 + seed % 9, seed), PLANS[seed % 3])

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(run, seed) for seed in range(40)]
        other.warm(PLANS[1:])
        for job in jobs:
            job.result()
    one.close()
    check(other, images(9), PLANS[2])
    again = CudaGraph(tensorrt.opener(), max_batch_size=MAX_BATCH)
    check(again, images(9), PLANS[2])
    for graph in (other, again):
        graph.close()
    assert not +tensorrt.api.live
    assert not +gpu.live
