"""Engines as what runs a graph. What they have in common with ONNX Runtime is in
tests/cuda/test_graph.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.cuda.stand_ins import EngineStandIn
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import DynamicShapesKernelSpecializationStrategy
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.buckets import up_to
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.cuda.lanes import Array
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.origin import EngineError
from tokenfold.runtime.tensorrt.profiles import BATCHES
from tokenfold.runtime.tensorrt.runner import EngineRunner

PLANS = ((0, 0), (1, 2), (3, 4))
MOST = 8


@pytest.fixture
def stream(gpu: FakeRuntime) -> Iterator[Stream]:
    own = Stream()
    yield own
    own.free()
    assert not +gpu.live


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def feeds(given: Array, plan: Plan, **more: Array) -> Mapping[str, Array]:
    return {"image": given, "plan": np.asarray(plan, dtype=np.int64), **more}


def check(own: CudaGraph | EngineRunner, given: Array, plan: Plan, **more: Array) -> None:
    logits, slots = own.run(["logits", "slots"], feeds(given, plan, **more))
    np.testing.assert_array_equal(logits, fake_session.logits(given, plan))
    np.testing.assert_array_equal(slots, fake_session.slots(given, plan))


def runner(tensorrt: EngineStandIn, stream: Stream, **kind: Any) -> EngineRunner:
    own = tensorrt.opener(**kind)(stream)
    assert isinstance(own, EngineRunner)
    return own


def test_what_it_takes_and_gives(tensorrt: EngineStandIn, stream: Stream) -> None:
    own = runner(tensorrt, stream, free=True, texts=True)
    assert own.inputs == {
        "image": ("batch", "image_1", "image_2", 3),
        "plan": (2,),
        "input_ids": ("batch", "input_ids_1"),
    }
    assert list(own.outputs) == ["logits", "slots"]
    assert not own.native
    own.free()


def test_every_profile_has_one_context_for_what_is_not_recorded(
    tensorrt: EngineStandIn, stream: Stream
) -> None:
    own = runner(tensorrt, stream)
    for count in (1, 2, 5, 1, 32, 33, 100, 128, 2, 1):
        for plan in PLANS:
            check(own, images(count), plan)
    assert tensorrt.api.live["context"] == len(BATCHES)
    assert tensorrt.api.calls["set_optimization_profile_async"] == len(BATCHES) - 1
    own.free()


def test_every_recording_has_a_context(tensorrt: EngineStandIn, gpu: FakeRuntime) -> None:
    own = CudaGraph(tensorrt.opener(), max_batch_size=MOST)
    before = tensorrt.api.live["context"]
    own.warm(PLANS)
    assert tensorrt.api.live["context"] - before == own.recorded == 3 * len(up_to(MOST))
    # Contexts of other plans come and go, or are shared, and leave those as they are.
    for seed, plan in enumerate([*PLANS, (9, 9), *PLANS]):
        check(own, images(5, seed), plan)
    own.close()
    assert not +tensorrt.api.live
    assert not +gpu.live


def test_what_is_recorded_waits_for_kernels_of_its_shapes(tensorrt: EngineStandIn) -> None:
    """TensorRT for RTX runs others first, and a recording would keep them."""
    tensorrt.api.DynamicShapesKernelSpecializationStrategy = (
        DynamicShapesKernelSpecializationStrategy
    )
    own = CudaGraph(tensorrt.opener(), max_batch_size=2)
    own.warm([(1, 2)])
    images = np.zeros((1, *SHAPE), np.uint8)
    # What comes with a plan of its own is not to wait.
    own.run(["logits"], {"image": images, "plan": np.asarray((2, 1))})
    assert own.recorded == 2
    assert tensorrt.api.calls["context EAGER"] == 2
    assert tensorrt.api.calls["create_execution_context"] > 2
    own.close()


def test_without_recordings_nothing_has_a_context_of_its_own(tensorrt: EngineStandIn) -> None:
    own = CudaGraph(tensorrt.opener(host=True), max_batch_size=MOST)
    own.warm(PLANS)
    made = tensorrt.api.calls["create_execution_context"]
    own.warm(PLANS)
    for count in (1, 5, 20):
        check(own, images(count), PLANS[0])
    assert tensorrt.api.calls["create_execution_context"] == made
    own.close()


def test_memory_to_work_in_is_there_once(tensorrt: EngineStandIn, gpu: FakeRuntime) -> None:
    own = CudaGraph(tensorrt.opener(plans=PLANS[1:]), max_batch_size=MOST)
    room = gpu.room(own._runner._work.address)  # type: ignore[attr-defined]
    assert room == 8 * 128
    own.close()


@pytest.mark.parametrize("warm", [False, True])
def test_a_plan_of_its_own_engine(tensorrt: EngineStandIn, warm: bool) -> None:
    """Which is told from the one for all plans by the number it makes of it."""
    fixed = fake_engine.described(fake_engine.origin(PLANS[1]))
    other = fixed.model_copy(update={"plan": (7, 7)})
    engines = [
        tensorrt.engine(fake_engine.origin()),
        Engine(tensorrt.flavour, None, fake_engine.origin(PLANS[1]), other.content),
    ]
    own = CudaGraph(lambda stream: EngineRunner(engines, stream), max_batch_size=MOST)
    if warm:
        own.warm(PLANS)
    check(own, images(5), PLANS[0])
    check(own, images(5), PLANS[2])
    (logits,) = own.run(["logits"], feeds(images(5), PLANS[1]))
    np.testing.assert_array_equal(logits, fake_session.logits(images(5), (7, 7)))
    own.close()


def test_engines_of_single_plans(tensorrt: EngineStandIn, gpu: FakeRuntime) -> None:
    own = CudaGraph(tensorrt.opener(plans=PLANS), max_batch_size=MOST)
    for warm in (False, True):
        for seed, plan in enumerate([*PLANS, (5, 6)]):
            for count in (1, 5, 20):
                check(own, images(count, seed), plan)
        if not warm:
            own.warm(PLANS)
    assert tensorrt.api.live["engine"] == 4
    own.close()
    assert not +gpu.live


@pytest.mark.parametrize(
    ("given", "plan", "said"),
    [
        (images(2, shape=(10, 4, 3)), PLANS[1], "takes image of 2 to 32 x 1 to 9 x 1 to 9 x 3 to"),
        (images(200, shape=(2, 2, 3)), PLANS[1], "runs 1 to 128 items at a time, not 200"),
        (images(0), PLANS[1], "runs 1 to 128 items at a time, not 0"),
        (images(2), (1, -2), r"takes counts of 0 to 1000000, not \(1, -2\)"),
        (images(2), (1,), "a plan of this network has 2 counts, not 1"),
        (images(2), (), "a plan of this network has 2 counts, not 0"),
    ],
)
def test_out_of_range(
    tensorrt: EngineStandIn, given: Array, plan: tuple[int, ...], said: str
) -> None:
    own = CudaGraph(tensorrt.opener(free=True), size=SHAPE[:2], max_batch_size=MOST)
    started = tensorrt.runs
    with pytest.raises(EngineError, match=said):
        own.run(["logits"], feeds(given, plan))
    assert tensorrt.runs == started
    for other in (images(3), images(3, shape=(9, 1, 3))):
        check(own, other, PLANS[1])
    own.close()


def test_texts(tensorrt: EngineStandIn) -> None:
    own = CudaGraph(tensorrt.opener(texts=True), max_batch_size=MOST)
    for length in (1, 6):
        ids = np.ones((3, length), np.int64)
        (logits,) = own.run(["logits"], feeds(images(3), PLANS[1], input_ids=ids))
        alone = fake_session.logits(images(3), PLANS[1])
        np.testing.assert_array_equal(logits, alone + np.array([length, 0]))
    for ids, said in (
        (np.ones((3, 7), np.int64), "takes input_ids of 2 to 32 x 1 to 6, not"),
        (np.ones((2, 3), np.int64), "does not go together: .*sizes of one name differ"),
    ):
        with pytest.raises(EngineError, match=said):
            own.run(["logits"], feeds(images(3), PLANS[1], input_ids=ids))
    with pytest.raises(TypeError, match="Cannot cast"):
        own.run(["logits"], feeds(images(3) / 255, PLANS[1], input_ids=ids))
    check(own, np.asfortranarray(images(3)), PLANS[1], input_ids=np.zeros((3, 2), np.int32))
    own.close()


def test_a_plan_that_nothing_depends_on(tensorrt: EngineStandIn) -> None:
    """It is no shape then, and has to be on the GPU all the same."""
    own = CudaGraph(tensorrt.opener(unused=True), max_batch_size=MOST)
    own.warm(PLANS[:1])
    for count in (1, 5, 20):
        for plan in PLANS:
            (logits,) = own.run(["logits"], feeds(images(count), plan))
            np.testing.assert_array_equal(logits, fake_session.logits(images(count), ()))
    own.close()


def test_an_engine_that_needs_no_memory_to_work_in(tensorrt: EngineStandIn) -> None:
    own = CudaGraph(tensorrt.opener(memory=0), max_batch_size=MOST)
    own.warm(PLANS[:1])
    for plan in PLANS[:2]:
        check(own, images(5), plan)
    own.close()


def test_buffers_grow_to_the_largest(
    tensorrt: EngineStandIn, gpu: FakeRuntime, stream: Stream
) -> None:
    own = runner(tensorrt, stream)
    check(own, images(1), PLANS[1])
    before = +gpu.live
    for count in (5, 20, 3, 20, 1):
        check(own, images(count, count), PLANS[1])
    own.free()
    # A context more, for another profile.
    assert before == {"device": 3 + 3, "host": 3, "stream": 1}


@pytest.mark.parametrize(
    "function", ["execute_async_v3", "set_tensor_address", "set_input_shape", "infer_shapes"]
)
def test_a_failed_run_leaves_nothing_under_way(
    tensorrt: EngineStandIn, stream: Stream, function: str
) -> None:
    """Or the next would write where its copies still read, or give that back."""
    own = runner(tensorrt, stream)
    check(own, images(1), PLANS[0])
    gate = threading.Event()
    stream.handle.append(gate.wait)
    tensorrt.api.failing[function] = 1
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(own.run, ["logits"], feeds(images(1), PLANS[0]))
        assert not gate.wait(0.05)
        assert not job.done()
        gate.set()
        with pytest.raises(EngineError, match=f"{function}: .* failure"):
            job.result(10)
    check(own, images(20), PLANS[0])
    own.free()


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"])
def test_failures_of_cuda(
    tensorrt: EngineStandIn, gpu: FakeRuntime, stream: Stream, function: str
) -> None:
    own = runner(tensorrt, stream)
    check(own, images(1), PLANS[0])
    for count in (2, 3):
        gpu.failing[function] = 1
        with pytest.raises((device.CudaError, EngineError), match=f"{function}|OutOfMemory"):
            check(own, images(count), PLANS[0])
    for count in (1, 3):
        check(own, images(count), PLANS[0])
    own.free()


def test_failures_while_it_records(tensorrt: EngineStandIn, gpu: FakeRuntime) -> None:
    own = CudaGraph(tensorrt.opener(), max_batch_size=1)
    before = +gpu.live
    for function in ("create_execution_context", "set_input_shape", "execute_async_v3"):
        tensorrt.api.failing[function] = 1
        with pytest.raises(EngineError, match=f"{function}: .* failure"):
            own.warm(PLANS[:1])
        assert +gpu.live == before
    own.warm(PLANS[:1])
    assert own.recorded == 1
    check(own, images(3), PLANS[0])
    own.close()
    assert not +gpu.live


def test_two_graphs_in_one_process(tensorrt: EngineStandIn, gpu: FakeRuntime) -> None:
    one, other = (CudaGraph(tensorrt.opener(), max_batch_size=MOST) for _ in range(2))
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
    again = CudaGraph(tensorrt.opener(), max_batch_size=MOST)
    check(again, images(9), PLANS[2])
    for graph in (other, again):
        graph.close()
    assert not +tensorrt.api.live
    assert not +gpu.live
