"""Tests of engines and contexts with a fake TensorRT: results, and errors that give the reason."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_backends import FakeTensorRT
from tests.runtime.cuda.fake_runtime import ALIGNMENT, FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import Severity
from tokenfold.runtime.cuda.device import Memory, PinnedMemory, Stream
from tokenfold.runtime.tensorrt import variant
from tokenfold.runtime.tensorrt.engine import Context, Engine, EngineRejectedError, TensorInfo
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.profiles import BATCH_RANGES
from tokenfold.runtime.tensorrt.spec import EngineError

PLAN = (3, 4)


class LoadedEngine:
    """An engine, with memory for the tensors of a few images."""

    def __init__(self, engine: Engine, items: int) -> None:
        self.engine, self.items = engine, items
        self.stream = Stream()
        self.work = Memory(engine.context_memory)
        self.image, self.logits, self.slots = Memory(1024), Memory(1024), Memory(1024)
        self.pixels, self.result = PinnedMemory(1024), PinnedMemory(1024)
        self.images = np.arange(items * 48, dtype=np.uint8).reshape(items, *SHAPE)
        self.pixels.bytes[: self.images.size] = self.images.reshape(-1)

    def context(self) -> Context:
        profile = self.engine.profile_index(self.items)
        return self.engine.create_context(profile, self.work.address, self.work.size, self.stream)

    def run(self, context: Context) -> list[list[float]]:
        """Run the engine once, and return the logits."""
        self.stream.upload(self.image, self.pixels, 1024)
        context.set_plan(PLAN)
        context.set_tensor("image", self.image.address, self.images.shape)
        shapes = context.output_shapes()
        assert shapes == {"logits": (self.items, 2), "slots": (self.items, 3)}
        context.set_tensor("logits", self.logits.address)
        context.set_tensor("slots", self.slots.address)
        context.start()
        self.stream.download(self.result, self.logits, 1024)
        self.stream.wait()
        logits = self.result.bytes[: self.items * 8].view(np.float32)
        return logits.reshape(self.items, 2).tolist()

    def free(self) -> None:
        self.stream.wait()
        self.engine.free()
        self.stream.free()
        for memory in (self.work, self.image, self.logits, self.slots, self.pixels, self.result):
            memory.free()


@pytest.fixture(params=[1, 5])
def loaded(request: pytest.FixtureRequest, tensorrt: FakeTensorRT) -> Iterator[LoadedEngine]:
    """Load an engine, for a batch in profile 0, which contexts start with, and in profile 1."""
    engine = LoadedEngine(tensorrt.engine(fake_engine.engine_spec()), request.param)
    yield engine
    engine.free()


def test_inputs_and_outputs(tensorrt: FakeTensorRT) -> None:
    engine = tensorrt.engine(fake_engine.engine_spec(), free=True, texts=True)
    assert engine.inputs == {
        "image": TensorInfo((-1, -1, -1, 3), np.dtype(np.uint8), False),
        "plan": TensorInfo((2,), np.dtype(np.int64), True),
        "input_ids": TensorInfo((-1, -1), np.dtype(np.int64), False),
    }
    assert engine.outputs == {
        "logits": TensorInfo((-1, 2), np.dtype(np.float32), False),
        "slots": TensorInfo((-1, 3), np.dtype(np.int64), False),
    }
    assert (engine.context_memory, engine.plan_length) == (8 * 128, 2)
    assert tensorrt.engine(fake_engine.engine_spec(PLAN)).plan_length == 0
    assert tensorrt.engine(fake_engine.engine_spec(), unused=True).plan_length == 0


def test_runs_give_correct_logits(loaded: LoadedEngine) -> None:
    context = loaded.context()
    expected = fake_session.logits(loaded.images, PLAN).tolist()
    for _ in range(3):
        assert loaded.run(context) == expected
    context.free()


def test_profile_index_follows_the_batch_size(tensorrt: FakeTensorRT) -> None:
    engine = tensorrt.engine(fake_engine.engine_spec())
    assert [engine.profile_index(batch) for batch in (1, 2, 8, 32, 33, 128)] == [0, 1, 1, 1, 2, 2]
    for batch in (0, 129):
        with pytest.raises(EngineError, match=f"model--.*runs 1 to 128 items at .*, not {batch}"):
            engine.profile_index(batch)
    assert engine.profile_index(BATCH_RANGES[1].max) == 1


@pytest.mark.parametrize(
    ("shapes", "plan", "message"),
    [
        ({"image": (2, 10, 4, 3)}, PLAN, "takes image of 2 to 32 x 1 to 9 x 1 to 9 x 3 to 3, not"),
        ({"image": (2, 4, 0, 3)}, PLAN, r"not \(2, 4, 0, 3\)"),
        ({"image": (2, 4, 4, 4)}, PLAN, r"not \(2, 4, 4, 4\)"),
        ({"image": (2, 4, 4)}, PLAN, r"not \(2, 4, 4\)"),
        ({"input_ids": (2, 7)}, PLAN, "takes input_ids of 2 to 32 x 1 to 6, not"),
        ({}, (3,), "takes a plan of 2 counts, not 1"),
        ({}, (3, 4, 5), "takes a plan of 2 counts, not 3"),
        ({}, (-1, 4), r"takes counts of 0 to 1000000, not \(-1, 4\)"),
        ({}, (3, 10**6 + 1), r"takes counts of 0 to 1000000, not \(3, 1000001\)"),
    ],
)
def test_check_rejects_sizes_and_plans_out_of_range(
    tensorrt: FakeTensorRT, shapes: dict[str, tuple[int, ...]], plan: tuple[int, ...], message: str
) -> None:
    engine = tensorrt.engine(fake_engine.engine_spec(), free=True, texts=True)
    engine.check(2, {"image": (2, 9, 1, 3), "input_ids": (2, 6)}, PLAN)
    with pytest.raises(EngineError, match=message):
        engine.check(2, shapes, plan)
    # A plan that nothing depends on may have any values.
    tensorrt.engine(fake_engine.engine_spec(), unused=True).check(2, {}, (-1, 4))


def test_rejected_engine_content(tensorrt: FakeTensorRT) -> None:
    spec = fake_engine.engine_spec()
    with pytest.raises(
        EngineRejectedError, match=rf"{spec.file} could not be loaded: .*magicTag failed"
    ):
        Engine(tensorrt.variant, None, spec, b"nothing")
    tensorrt.api.failing["Runtime"] = 1
    with pytest.raises(EngineError, match=r"tensorrt 11.9.0 cannot start: .* failure") as caught:
        Engine(tensorrt.variant, None, spec, b"nothing")
    assert not isinstance(caught.value, EngineRejectedError)


def test_gpu_failures_do_not_reject_the_engine(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    gpu.blocks = 0
    with pytest.raises(EngineError, match=r"could not be loaded: .*OutOfMemory") as caught:
        tensorrt.engine(fake_engine.engine_spec())
    assert not isinstance(caught.value, EngineRejectedError)
    gpu.blocks = None
    Journal(tensorrt.variant).logger.log(
        Severity.ERROR, "Error Code 1: Cuda Runtime (unspecified launch failure)"
    )
    with pytest.raises(EngineError, match=r"could not be loaded: .*launch failure") as caught:
        Engine(tensorrt.variant, None, fake_engine.engine_spec(), b"")
    assert not isinstance(caught.value, EngineRejectedError)


@pytest.mark.parametrize(
    "function",
    [
        "create_execution_context",
        "set_device_memory",
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "infer_shapes",
        "execute_async_v3",
    ],
)
@pytest.mark.parametrize("loaded", [5], indirect=True)
def test_failed_calls_name_the_cause_and_can_be_repeated(
    loaded: LoadedEngine, tensorrt: FakeTensorRT, function: str
) -> None:
    for _ in range(2):
        tensorrt.api.failing[function] = 1
        with pytest.raises(EngineError, match=f"{function}: Error Code 2: fake failure$"):
            loaded.run(loaded.context())
    assert loaded.run(loaded.context()) == fake_session.logits(loaded.images, PLAN).tolist()


def test_plugin_errors_are_in_the_message(tensorrt: FakeTensorRT) -> None:
    messages = [b"Reduce: more tokens than there are"]
    handle: Any = SimpleNamespace(
        TokenfoldTensorRtProblem=lambda: messages.pop() if messages else b""
    )
    with pytest.raises(EngineError, match=r"magicTag.*; Reduce: more tokens than there are$"):
        Engine(tensorrt.variant, PluginLibrary("ab", handle), fake_engine.engine_spec(), b"")
    with pytest.raises(EngineError, match=r"magicTag failed\)$"):
        Engine(tensorrt.variant, PluginLibrary("ab", handle), fake_engine.engine_spec(), b"")


def test_missing_tensors_are_named(loaded: LoadedEngine) -> None:
    context = loaded.context()
    with pytest.raises(EngineError, match="output shapes cannot be inferred: image, plan not set"):
        context.output_shapes()
    context.set_tensor("image", loaded.image.address, loaded.images.shape)
    context.set_plan(PLAN)
    context.output_shapes()
    with pytest.raises(EngineError, match=r"could not be started.*address: .*'logits', 'slots'"):
        context.start()


def test_the_plan_stays_at_its_address(loaded: LoadedEngine) -> None:
    """TensorRT reads the plan when a run starts."""
    context = loaded.context()
    context.set_plan(PLAN)
    address = context._context._addresses["plan"]
    assert address % ALIGNMENT == 0
    others = [np.ones(300, np.uint8) for _ in range(1000)]
    assert list((ctypes.c_int64 * 2).from_address(address)) == list(PLAN)
    del others


def test_free_destroys_engines_and_contexts(tensorrt: FakeTensorRT, gpu: FakeRuntime) -> None:
    """Even if other references to them exist."""
    loaded = LoadedEngine(tensorrt.engine(fake_engine.engine_spec()), 1)
    contexts = [loaded.context() for _ in range(3)]
    assert tensorrt.api.live == {"runtime": 1, "engine": 1, "context": 3}
    for context in contexts:
        context.free()
    loaded.free()
    assert not +tensorrt.api.live
    assert not +gpu.live


def test_all_engines_share_a_logger(tensorrt: FakeTensorRT) -> None:
    """TensorRT's plugin registry keeps the first logger, even after its destruction."""
    first, second = (tensorrt.engine(fake_engine.engine_spec()) for _ in range(2))
    first.free()
    del first
    gc.collect()
    third = tensorrt.engine(fake_engine.engine_spec())
    for engine in (second, third):
        engine.free()


REAL = """
import gc
from tokenfold.runtime.tensorrt import variant
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.spec import EngineError
from tests.runtime.tensorrt import fake_engine

loaded_variant = variant.load()
errors = []
for _ in range(3):
    try:
        Engine(loaded_variant, None, fake_engine.engine_spec(), b"nothing")
    except EngineError as error:
        print(error)
        # Drop the first error, and with it the first engine's runtime, while later ones exist.
        errors = [error, *errors[:1]]
    gc.collect()
print(loaded_variant.api.get_plugin_registry().load_library("/nonexistent.so"))
"""


@pytest.mark.skipif(not variant.installed(), reason="TensorRT is not installed")
def test_the_real_tensorrt_names_the_cause_and_survives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "None"
    assert len(lines) == 3
    assert all("could not be loaded: " in line and "Error Code" in line for line in lines)
