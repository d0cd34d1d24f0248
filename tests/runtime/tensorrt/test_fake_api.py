"""What stands in for TensorRT has its names, and does not let pass what it does not survive."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.fake_session import SHAPE
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.fake_api import (
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    FakeApi,
    ICudaEngine,
    IExecutionContext,
    ILogger,
    IPluginRegistry,
    IRuntimeConfig,
    Runtime,
    Severity,
    TensorIOMode,
    TensorLocation,
)
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import Graph, Memory, Stream
from tokenfold.runtime.tensorrt import flavour

CLASSES = (Runtime, ICudaEngine, IExecutionContext, ILogger, IPluginRegistry)
ENUMS = (DataType, ExecutionContextAllocationStrategy, TensorIOMode, TensorLocation)
BATCH = 3


@pytest.mark.skipif(not flavour.installed(), reason="found no TensorRT")
@pytest.mark.parametrize("name", flavour.installed())
def test_names_are_those_of_the_real_one(name: str) -> None:
    real = flavour.load(name).api
    for one in CLASSES:
        theirs = getattr(real, one.__name__)
        for member, ours in vars(one).items():
            if member.startswith("_") or member == "ready":
                continue
            assert hasattr(theirs, member), f"{one.__name__}.{member}"
            if inspect.isfunction(ours):
                assert _arguments(ours) in _overloads(getattr(theirs, member)), member
            else:
                assert not callable(getattr(theirs, member)) or inspect.isclass(ours)
    for enum in ENUMS:
        assert set(enum.__members__) <= set(getattr(real, enum.__name__).__members__)
    strategy = getattr(real, "DynamicShapesKernelSpecializationStrategy", None)
    if strategy is not None:  # of TensorRT for RTX
        assert set(DynamicShapesKernelSpecializationStrategy.__members__) <= set(
            strategy.__members__
        )
        assert all(
            hasattr(real.IRuntimeConfig, member)
            for member in (*vars(IRuntimeConfig), *vars(IRuntimeConfig()))
            if not member.startswith("_")
        )
    assert list(Severity.__members__) == list(real.ILogger.Severity.__members__)
    assert isinstance(real.get_plugin_registry(), real.IPluginRegistry)
    assert _arguments(FakeApi.Runtime) in _overloads(real.Runtime.__init__)
    assert list(inspect.signature(real.nptype).parameters) == _arguments(FakeApi.nptype)
    for kind in DataType:
        theirs = getattr(real.DataType, kind.name)
        if kind is DataType.BF16:
            with pytest.raises(TypeError):
                real.nptype(theirs)
        else:
            assert np.dtype(real.nptype(theirs)) == np.dtype(FakeApi.nptype(kind))


def _arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _overloads(function: Any) -> list[list[str]]:
    """The arguments of each, as pybind11 has written them into the documentation."""
    lines = re.findall(r"^.*\w+\(self: .*\) -> .*$", function.__doc__, re.MULTILINE)
    return [re.findall(r"(?:\(|, )(\w+): ", line)[1:] for line in lines]


class Bench:
    """An engine, memory for all that it wants, and a way to make contexts ready to run."""

    def __init__(self, gpu: FakeRuntime, *, plan: bool = True) -> None:
        self.api = FakeApi(gpu)
        self.lines: list[tuple[Severity, str]] = []
        self.logger = _Lines(self.lines)
        self.runtime = self.api.Runtime(self.logger)
        described = fake_engine.described(fake_engine.origin(), plan=plan)
        engine = self.runtime.deserialize_cuda_engine(described.content)
        assert engine is not None
        self.engine = engine
        self.stream, self.other = Stream(), Stream()
        self.room = Memory(engine.device_memory_size_v2)
        self.places = {name: Memory(4096) for name in ("image", "logits", "slots")}

    def context(self, stream: Stream | None = None) -> IExecutionContext:
        """One that only has to be run."""
        made = self.engine.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)
        assert made is not None
        made.set_device_memory(self.room.address, self.room.size)
        assert made.set_optimization_profile_async(1, int((stream or self.stream).handle))
        assert made.set_input_shape("image", (BATCH, *SHAPE))
        for name, place in self.places.items():
            assert made.set_tensor_address(name, place.address)
        assert made.infer_shapes() == []
        return made

    def run(self, context: IExecutionContext, stream: Stream | None = None) -> bool:
        return context.execute_async_v3(int((stream or self.stream).handle))

    def record(self, context: IExecutionContext) -> Graph:
        """A run as a CUDA graph."""

        def work() -> None:
            assert self.run(context)

        return self.stream.capture(work)

    def free(self) -> None:
        for stream in (self.stream, self.other):
            stream.wait()
            stream.free()
        for memory in (self.room, *self.places.values()):
            memory.free()


class _Lines(ILogger):
    def __init__(self, lines: list[tuple[Severity, str]]) -> None:
        super().__init__()
        self._lines = lines

    def log(self, severity: IntEnum, msg: str) -> None:
        self._lines.append((Severity(severity), msg))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    own = FakeRuntime()
    monkeypatch.setattr(device, "runtime", own)
    return own


@pytest.fixture
def bench(gpu: FakeRuntime) -> Iterator[Bench]:
    own = Bench(gpu, plan=False)
    yield own
    own.free()


def test_what_is_right_is_no_problem(bench: Bench) -> None:
    context = bench.context()
    assert bench.run(context)
    graph = bench.record(context)
    graph.launch(bench.stream)
    bench.stream.wait()
    graph.free()
    context.set_input_shape("image", (2, *SHAPE))
    del context
    assert not bench.api.problems
    assert not any(severity <= Severity.WARNING for severity, _ in bench.lines)


REFUSED: dict[str, Callable[[Bench, IExecutionContext], object]] = {
    "shape of another profile": lambda _, own: own.set_input_shape("image", (1, *SHAPE)),
    "another shape": lambda _, own: own.set_input_shape("image", (2, 5, 5, 3)),
    "fewer sizes": lambda _, own: own.set_input_shape("image", (2,)),
    "no such input": lambda _, own: own.set_input_shape("logits", (2, 2)),
    "no such tensor": lambda bench, own: own.set_tensor_address("x", bench.room.address),
    "not aligned": lambda bench, own: own.set_tensor_address("image", bench.room.address + 16),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(bench: Bench, what: str) -> None:
    assert REFUSED[what](bench, bench.context()) is False
    assert not bench.api.problems


def _bare(bench: Bench) -> IExecutionContext:
    made = bench.engine.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)
    assert made is not None
    return made


def _without_memory(bench: Bench) -> IExecutionContext:
    made = bench.context()
    made._memory = None
    made.set_device_memory(bench.room.address, bench.room.size - 1)
    return made


def _without_an_address(bench: Bench) -> IExecutionContext:
    made = bench.context()
    made._addresses.pop("slots")
    return made


def _after_another_profile(bench: Bench) -> IExecutionContext:
    made = bench.context()
    made.set_optimization_profile_async(2, int(bench.stream.handle))
    return made


@pytest.mark.parametrize(
    "made", [_bare, _without_memory, _without_an_address, _after_another_profile]
)
def test_what_is_not_ready_does_not_run(
    bench: Bench, made: Callable[[Bench], IExecutionContext]
) -> None:
    assert not bench.run(made(bench))
    assert bench.lines[-1][0] == Severity.ERROR
    assert not bench.api.problems


def _touched(bench: Bench) -> object:
    context = bench.context()
    graph = bench.record(context)
    context.set_input_shape("image", (2, *SHAPE))
    return graph, context


def _gone(bench: Bench) -> object:
    context = bench.context()
    graph = bench.record(context)
    del context
    return graph


def _gone_at_work(bench: Bench) -> None:
    bench.run(bench.context())


def _memory_gone(bench: Bench) -> object:
    context = bench.context()
    room, bench.room = bench.room, Memory(1)
    bench.run(context)
    room.free()
    bench.stream.wait()
    return context


def _two_at_once(bench: Bench) -> object:
    contexts = [bench.context(stream) for stream in (bench.stream, bench.other)]
    for _ in range(100):
        for context, stream in zip(contexts, (bench.stream, bench.other), strict=True):
            bench.run(context, stream)
    bench.stream.wait()
    bench.other.wait()
    return contexts


def _profile_elsewhere(bench: Bench) -> object:
    context = bench.context(bench.other)
    bench.run(context)
    bench.stream.wait()
    return context


def _profile_recorded(bench: Bench) -> object:
    context, handle = bench.context(), int(bench.stream.handle)

    def work() -> None:
        context.set_optimization_profile_async(1, handle)

    return bench.stream.capture(work)


def _too_little(bench: Bench) -> object:
    context = bench.context()
    small = Memory(BATCH * 8 - 1)
    context.set_tensor_address("logits", small.address)
    bench.run(context)
    small.free()
    return context


def _on_the_host(bench: Bench) -> object:
    context = bench.context()
    context.set_tensor_address("image", 1 << 8)
    return context


def _own_memory(bench: Bench) -> object:
    return bench.engine.create_execution_context()


def _logger_gone(bench: Bench) -> object:
    other = bench.api.Runtime(_Lines(bench.lines))
    assert bench.lines[-1][0] == Severity.WARNING
    del bench.engine, bench.runtime, bench.logger
    return other.deserialize_cuda_engine(b"")


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        (_touched, "shapes of a context were set that a CUDA graph is of"),
        (_gone, "a context is gone .* that a CUDA graph is of"),
        (_gone_at_work, "a context is gone that is at work"),
        (_memory_gone, "a run has lost its memory"),
        (_two_at_once, "two runs work in the same memory"),
        (_profile_elsewhere, "a run does not wait for its profile"),
        (_profile_recorded, "a profile was chosen while a stream records"),
        (_too_little, "logits has not 24 bytes"),
        (_on_the_host, "image is not where it should be"),
        (_own_memory, "takes working memory of its own"),
        (_logger_gone, "called a logger that is gone"),
    ],
)
def test_what_it_would_not_survive(
    gpu: FakeRuntime, done: Callable[[Bench], object], problem: str
) -> None:
    bench = Bench(gpu, plan=False)
    kept = done(bench)
    assert any(re.search(problem, found) for found in bench.api.problems), bench.api.problems
    bench.free()
    del kept
