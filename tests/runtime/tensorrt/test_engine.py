"""Engines and their contexts, in a TensorRT that is not there: what it refuses is an error that
says why.
"""

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
from tests.runtime.cuda.fake_runtime import ALIGNMENT, FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.cuda.stand_ins import EngineStandIn
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import Severity
from tokenfold.runtime.cuda.device import Memory, Pinned, Stream
from tokenfold.runtime.tensorrt import flavour
from tokenfold.runtime.tensorrt.engine import Context, Engine, RefusedError, Tensor
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.origin import EngineError
from tokenfold.runtime.tensorrt.plugins import Plugins
from tokenfold.runtime.tensorrt.profiles import BATCHES

PLAN = (3, 4)


class Ready:
    """An engine, with memory of what it wants for a few images."""

    def __init__(self, engine: Engine, items: int) -> None:
        self.engine, self.items = engine, items
        self.stream = Stream()
        self.work = Memory(engine.memory)
        self.image, self.logits, self.slots = Memory(1024), Memory(1024), Memory(1024)
        self.pixels, self.found = Pinned(1024), Pinned(1024)
        self.images = np.arange(items * 48, dtype=np.uint8).reshape(items, *SHAPE)
        self.pixels.bytes[: self.images.size] = self.images.reshape(-1)

    def context(self) -> Context:
        profile = self.engine.profile(self.items)
        return self.engine.context(profile, self.work.address, self.work.size, self.stream)

    def run(self, context: Context) -> list[list[float]]:
        """Logits."""
        self.stream.upload(self.image, self.pixels, 1024)
        context.plan(PLAN)
        context.place("image", self.image.address, self.images.shape)
        shapes = context.shapes()
        assert shapes == {"logits": (self.items, 2), "slots": (self.items, 3)}
        context.place("logits", self.logits.address)
        context.place("slots", self.slots.address)
        context.start()
        self.stream.download(self.found, self.logits, 1024)
        self.stream.wait()
        found = self.found.bytes[: self.items * 8].view(np.float32)
        return found.reshape(self.items, 2).tolist()

    def free(self) -> None:
        self.stream.wait()
        self.engine.free()
        self.stream.free()
        for memory in (self.work, self.image, self.logits, self.slots, self.pixels, self.found):
            memory.free()


@pytest.fixture(params=[1, 5])
def ready(request: pytest.FixtureRequest, tensorrt: EngineStandIn) -> Iterator[Ready]:
    """For one image, in the profile that every context has at first, and in another."""
    own = Ready(tensorrt.engine(fake_engine.origin()), request.param)
    yield own
    own.free()


def test_what_it_takes_and_gives(tensorrt: EngineStandIn) -> None:
    engine = tensorrt.engine(fake_engine.origin(), free=True, texts=True)
    assert engine.inputs == {
        "image": Tensor((-1, -1, -1, 3), np.dtype(np.uint8), False),
        "plan": Tensor((2,), np.dtype(np.int64), True),
        "input_ids": Tensor((-1, -1), np.dtype(np.int64), False),
    }
    assert engine.outputs == {
        "logits": Tensor((-1, 2), np.dtype(np.float32), False),
        "slots": Tensor((-1, 3), np.dtype(np.int64), False),
    }
    assert (engine.memory, engine.counts) == (8 * 128, 2)
    assert tensorrt.engine(fake_engine.origin(PLAN)).counts == 0
    assert tensorrt.engine(fake_engine.origin(), unused=True).counts == 0


def test_a_run(ready: Ready) -> None:
    context = ready.context()
    wanted = fake_session.logits(ready.images, PLAN).tolist()
    for _ in range(3):
        assert ready.run(context) == wanted
    context.free()


def test_profiles_are_chosen_by_the_batch(tensorrt: EngineStandIn) -> None:
    engine = tensorrt.engine(fake_engine.origin())
    assert [engine.profile(batch) for batch in (1, 2, 8, 32, 33, 128)] == [0, 1, 1, 1, 2, 2]
    for batch in (0, 129):
        with pytest.raises(EngineError, match=f"model--.*runs 1 to 128 items at .*, not {batch}"):
            engine.profile(batch)
    assert engine.profile(BATCHES[1].most) == 1


@pytest.mark.parametrize(
    ("shapes", "plan", "said"),
    [
        ({"image": (2, 10, 4, 3)}, PLAN, "takes image of 2 to 32 x 1 to 9 x 1 to 9 x 3 to 3, not"),
        ({"image": (2, 4, 0, 3)}, PLAN, r"not \(2, 4, 0, 3\)"),
        ({"image": (2, 4, 4, 4)}, PLAN, r"not \(2, 4, 4, 4\)"),
        ({"image": (2, 4, 4)}, PLAN, r"not \(2, 4, 4\)"),
        ({"input_ids": (2, 7)}, PLAN, "takes input_ids of 2 to 32 x 1 to 6, not"),
        ({}, (3,), "a plan of this network has 2 counts, not 1"),
        ({}, (3, 4, 5), "a plan of this network has 2 counts, not 3"),
        ({}, (-1, 4), r"takes counts of 0 to 1000000, not \(-1, 4\)"),
        ({}, (3, 10**6 + 1), r"takes counts of 0 to 1000000, not \(3, 1000001\)"),
    ],
)
def test_out_of_range(
    tensorrt: EngineStandIn, shapes: dict[str, tuple[int, ...]], plan: tuple[int, ...], said: str
) -> None:
    engine = tensorrt.engine(fake_engine.origin(), free=True, texts=True)
    engine.check(2, {"image": (2, 9, 1, 3), "input_ids": (2, 6)}, PLAN)
    with pytest.raises(EngineError, match=said):
        engine.check(2, shapes, plan)
    # A plan that nothing depends on may be any.
    tensorrt.engine(fake_engine.origin(), unused=True).check(2, {}, (-1, 4))


def test_what_tensorrt_does_not_take(tensorrt: EngineStandIn) -> None:
    own = fake_engine.origin()
    with pytest.raises(RefusedError, match=rf"{own.file} could not be loaded: .*magicTag failed"):
        Engine(tensorrt.flavour, None, own, b"nothing")
    tensorrt.api.failing["Runtime"] = 1
    with pytest.raises(EngineError, match=r"tensorrt 11.9.0 cannot start: .* failure") as caught:
        Engine(tensorrt.flavour, None, own, b"nothing")
    assert not isinstance(caught.value, RefusedError)


def test_that_the_gpu_fails_is_no_fault_of_the_engine(
    tensorrt: EngineStandIn, gpu: FakeRuntime
) -> None:
    gpu.blocks = 0
    with pytest.raises(EngineError, match=r"could not be loaded: .*OutOfMemory") as caught:
        tensorrt.engine(fake_engine.origin())
    assert not isinstance(caught.value, RefusedError)
    gpu.blocks = None
    Journal(tensorrt.flavour).logger.log(
        Severity.ERROR, "Error Code 1: Cuda Runtime (unspecified launch failure)"
    )
    with pytest.raises(EngineError, match=r"could not be loaded: .*launch failure") as caught:
        Engine(tensorrt.flavour, None, fake_engine.origin(), b"")
    assert not isinstance(caught.value, RefusedError)


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
@pytest.mark.parametrize("ready", [5], indirect=True)
def test_what_fails_says_why_and_does_no_harm(
    ready: Ready, tensorrt: EngineStandIn, function: str
) -> None:
    for _ in range(2):
        tensorrt.api.failing[function] = 1
        with pytest.raises(EngineError, match=f"{function}: Error Code 2: fake failure$"):
            ready.run(ready.context())
    assert ready.run(ready.context()) == fake_session.logits(ready.images, PLAN).tolist()


def test_what_a_plugin_says_is_in_the_message(tensorrt: EngineStandIn) -> None:
    said = [b"Reduce: more tokens than there are"]
    handle: Any = SimpleNamespace(TokenfoldTensorRtProblem=lambda: said.pop() if said else b"")
    with pytest.raises(EngineError, match=r"magicTag.*; Reduce: more tokens than there are$"):
        Engine(tensorrt.flavour, Plugins("ab", handle), fake_engine.origin(), b"")
    with pytest.raises(EngineError, match=r"magicTag failed\)$"):
        Engine(tensorrt.flavour, Plugins("ab", handle), fake_engine.origin(), b"")


def test_what_is_missing_is_named(ready: Ready) -> None:
    context = ready.context()
    with pytest.raises(EngineError, match="shapes do not follow without image, plan"):
        context.shapes()
    context.place("image", ready.image.address, ready.images.shape)
    context.plan(PLAN)
    context.shapes()
    with pytest.raises(EngineError, match=r"could not be started.*address: .*'logits', 'slots'"):
        context.start()


def test_a_plan_stays_where_tensorrt_was_told(ready: Ready) -> None:
    """It reads it when a run is started."""
    context = ready.context()
    context.plan(PLAN)
    address = context._context._addresses["plan"]
    assert address % ALIGNMENT == 0
    others = [np.ones(300, np.uint8) for _ in range(1000)]
    assert list((ctypes.c_int64 * 2).from_address(address)) == list(PLAN)
    del others


def test_engines_and_contexts_go_when_they_are_told(
    tensorrt: EngineStandIn, gpu: FakeRuntime
) -> None:
    """Though somebody still holds them."""
    own = Ready(tensorrt.engine(fake_engine.origin()), 1)
    contexts = [own.context() for _ in range(3)]
    assert tensorrt.api.live == {"runtime": 1, "engine": 1, "context": 3}
    for context in contexts:
        context.free()
    own.free()
    assert not +tensorrt.api.live
    assert not +gpu.live


def test_there_is_one_logger_for_all(tensorrt: EngineStandIn) -> None:
    """TensorRT keeps the first for its registry of plugins, and calls it when it is gone."""
    first, second = (tensorrt.engine(fake_engine.origin()) for _ in range(2))
    first.free()
    del first
    gc.collect()
    third = tensorrt.engine(fake_engine.origin())
    for engine in (second, third):
        engine.free()


REAL = """
import gc
from tokenfold.runtime.tensorrt import flavour
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.origin import EngineError
from tests.runtime.tensorrt import fake_engine

own = flavour.load()
held = []
for _ in range(3):
    try:
        Engine(own, None, fake_engine.origin(), b"nothing")
    except EngineError as error:
        print(error)
        # The first goes, and one that is not its first is there.
        held = [error, *held[:1]]
    gc.collect()
print(own.api.get_plugin_registry().load_library("/nonexistent.so"))
"""


@pytest.mark.skipif(not flavour.installed(), reason="found no TensorRT")
def test_the_real_one_says_why_and_survives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "None"
    assert len(lines) == 3
    assert all("could not be loaded: " in line and "Error Code" in line for line in lines)
