"""Tests of the fake TensorRT: its names match the real one's, and it detects misuse."""

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
from tokenfold.runtime.cuda.device import ExecutableGraph, Memory, Stream
from tokenfold.runtime.tensorrt import variant

CLASSES = (Runtime, ICudaEngine, IExecutionContext, ILogger, IPluginRegistry)
ENUMS = (DataType, ExecutionContextAllocationStrategy, TensorIOMode, TensorLocation)
BATCH = 3


@pytest.mark.skipif(not variant.installed(), reason="TensorRT is not installed")
@pytest.mark.parametrize("name", variant.installed())
def test_names_and_arguments_match_the_real_module(name: str) -> None:
    real = variant.load(name).api
    for fake_class in CLASSES:
        real_class = getattr(real, fake_class.__name__)
        for name, member in vars(fake_class).items():
            if name.startswith("_") or name == "ready":
                continue
            assert hasattr(real_class, name), f"{fake_class.__name__}.{name}"
            if inspect.isfunction(member):
                assert _arguments(member) in _overloads(getattr(real_class, name)), name
            else:
                assert not callable(getattr(real_class, name)) or inspect.isclass(member)
    for enum in ENUMS:
        assert set(enum.__members__) <= set(getattr(real, enum.__name__).__members__)
    strategy = getattr(real, "DynamicShapesKernelSpecializationStrategy", None)
    if strategy is not None:  # Only in TensorRT for RTX.
        assert set(DynamicShapesKernelSpecializationStrategy.__members__) <= set(
            strategy.__members__
        )
        assert all(
            hasattr(real.IRuntimeConfig, name)
            for name in (*vars(IRuntimeConfig), *vars(IRuntimeConfig()))
            if not name.startswith("_")
        )
    assert list(Severity.__members__) == list(real.ILogger.Severity.__members__)
    assert isinstance(real.get_plugin_registry(), real.IPluginRegistry)
    assert _arguments(FakeApi.Runtime) in _overloads(real.Runtime.__init__)
    assert list(inspect.signature(real.nptype).parameters) == _arguments(FakeApi.nptype)
    for data_type in DataType:
        real_type = getattr(real.DataType, data_type.name)
        if data_type is DataType.BF16:
            with pytest.raises(TypeError):
                real.nptype(real_type)
        else:
            assert np.dtype(real.nptype(real_type)) == np.dtype(FakeApi.nptype(data_type))


def _arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _overloads(function: Any) -> list[list[str]]:
    """Return the arguments of each overload, from the signatures in pybind11's docstring."""
    lines = re.findall(r"^.*\w+\(self: .*\) -> .*$", function.__doc__, re.MULTILINE)
    return [re.findall(r"(?:\(|, )(\w+): ", line)[1:] for line in lines]


class Harness:
    """An engine with memory for all tensors, which creates contexts that are ready to run."""

    def __init__(self, gpu: FakeRuntime, *, plan: bool = True) -> None:
        self.api = FakeApi(gpu)
        self.lines: list[tuple[Severity, str]] = []
        self.logger = _LineLogger(self.lines)
        self.runtime = self.api.Runtime(self.logger)
        description = fake_engine.describe(fake_engine.engine_spec(), plan=plan)
        engine = self.runtime.deserialize_cuda_engine(description.content)
        assert engine is not None
        self.engine = engine
        self.stream, self.other = Stream(), Stream()
        self.work = Memory(engine.device_memory_size_v2)
        self.tensors = {name: Memory(4096) for name in ("image", "logits", "slots")}

    def context(self, stream: Stream | None = None) -> IExecutionContext:
        """Create a context that is ready to run."""
        context = self.engine.create_execution_context(
            ExecutionContextAllocationStrategy.USER_MANAGED
        )
        assert context is not None
        context.set_device_memory(self.work.address, self.work.size)
        assert context.set_optimization_profile_async(1, int((stream or self.stream).handle))
        assert context.set_input_shape("image", (BATCH, *SHAPE))
        for name, memory in self.tensors.items():
            assert context.set_tensor_address(name, memory.address)
        assert context.infer_shapes() == []
        return context

    def run(self, context: IExecutionContext, stream: Stream | None = None) -> bool:
        return context.execute_async_v3(int((stream or self.stream).handle))

    def record(self, context: IExecutionContext) -> ExecutableGraph:
        """Record a run as a CUDA graph."""

        def work() -> None:
            assert self.run(context)

        return self.stream.capture(work)

    def free(self) -> None:
        for stream in (self.stream, self.other):
            stream.wait()
            stream.free()
        for memory in (self.work, *self.tensors.values()):
            memory.free()


class _LineLogger(ILogger):
    def __init__(self, lines: list[tuple[Severity, str]]) -> None:
        super().__init__()
        self._lines = lines

    def log(self, severity: IntEnum, msg: str) -> None:
        self._lines.append((Severity(severity), msg))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(device, "runtime", runtime)
    return runtime


@pytest.fixture
def harness(gpu: FakeRuntime) -> Iterator[Harness]:
    harness = Harness(gpu, plan=False)
    yield harness
    harness.free()


def test_correct_use_causes_no_problems(harness: Harness) -> None:
    context = harness.context()
    assert harness.run(context)
    graph = harness.record(context)
    graph.launch(harness.stream)
    harness.stream.wait()
    graph.free()
    context.set_input_shape("image", (2, *SHAPE))
    del context
    assert not harness.api.problems
    assert not any(severity <= Severity.WARNING for severity, _ in harness.lines)


REJECTED: dict[str, Callable[[Harness, IExecutionContext], object]] = {
    "shape of another profile": lambda _, context: context.set_input_shape("image", (1, *SHAPE)),
    "another shape": lambda _, context: context.set_input_shape("image", (2, 5, 5, 3)),
    "fewer sizes": lambda _, context: context.set_input_shape("image", (2,)),
    "no such input": lambda _, context: context.set_input_shape("logits", (2, 2)),
    "no such tensor": lambda harness, context: context.set_tensor_address(
        "x", harness.work.address
    ),
    "not aligned": lambda harness, context: context.set_tensor_address(
        "image", harness.work.address + 16
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_arguments(harness: Harness, case: str) -> None:
    assert REJECTED[case](harness, harness.context()) is False
    assert not harness.api.problems


def _bare(harness: Harness) -> IExecutionContext:
    context = harness.engine.create_execution_context(
        ExecutionContextAllocationStrategy.USER_MANAGED
    )
    assert context is not None
    return context


def _without_memory(harness: Harness) -> IExecutionContext:
    context = harness.context()
    context._memory = None
    context.set_device_memory(harness.work.address, harness.work.size - 1)
    return context


def _without_an_address(harness: Harness) -> IExecutionContext:
    context = harness.context()
    context._addresses.pop("slots")
    return context


def _after_another_profile(harness: Harness) -> IExecutionContext:
    context = harness.context()
    context.set_optimization_profile_async(2, int(harness.stream.handle))
    return context


@pytest.mark.parametrize(
    "create", [_bare, _without_memory, _without_an_address, _after_another_profile]
)
def test_contexts_that_are_not_ready_do_not_run(
    harness: Harness, create: Callable[[Harness], IExecutionContext]
) -> None:
    assert not harness.run(create(harness))
    assert harness.lines[-1][0] == Severity.ERROR
    assert not harness.api.problems


def _changed_after_recording(harness: Harness) -> object:
    context = harness.context()
    graph = harness.record(context)
    context.set_input_shape("image", (2, *SHAPE))
    return graph, context


def _destroyed_after_recording(harness: Harness) -> object:
    context = harness.context()
    graph = harness.record(context)
    del context
    return graph


def _destroyed_during_run(harness: Harness) -> None:
    harness.run(harness.context())


def _freed_memory(harness: Harness) -> object:
    context = harness.context()
    work, harness.work = harness.work, Memory(1)
    harness.run(context)
    work.free()
    harness.stream.wait()
    return context


def _concurrent_runs(harness: Harness) -> object:
    contexts = [harness.context(stream) for stream in (harness.stream, harness.other)]
    for _ in range(100):
        for context, stream in zip(contexts, (harness.stream, harness.other), strict=True):
            harness.run(context, stream)
    harness.stream.wait()
    harness.other.wait()
    return contexts


def _profile_set_in_other_stream(harness: Harness) -> object:
    context = harness.context(harness.other)
    harness.run(context)
    harness.stream.wait()
    return context


def _profile_set_while_recording(harness: Harness) -> object:
    context, handle = harness.context(), int(harness.stream.handle)

    def work() -> None:
        context.set_optimization_profile_async(1, handle)

    return harness.stream.capture(work)


def _output_too_small(harness: Harness) -> object:
    context = harness.context()
    small = Memory(BATCH * 8 - 1)
    context.set_tensor_address("logits", small.address)
    harness.run(context)
    small.free()
    return context


def _input_on_the_host(harness: Harness) -> object:
    context = harness.context()
    context.set_tensor_address("image", 1 << 8)
    return context


def _own_working_memory(harness: Harness) -> object:
    return harness.engine.create_execution_context()


def _destroyed_logger(harness: Harness) -> object:
    other = harness.api.Runtime(_LineLogger(harness.lines))
    assert harness.lines[-1][0] == Severity.WARNING
    del harness.engine, harness.runtime, harness.logger
    return other.deserialize_cuda_engine(b"")


@pytest.mark.parametrize(
    ("misuse", "problem"),
    [
        (_changed_after_recording, "the shapes of a recorded context changed"),
        (_destroyed_after_recording, "a context was destroyed .* while a CUDA graph uses it"),
        (_destroyed_during_run, "a context was destroyed during a run"),
        (_freed_memory, "a run has lost its memory"),
        (_concurrent_runs, "two runs work in the same memory"),
        (_profile_set_in_other_stream, "a run does not wait for its profile"),
        (_profile_set_while_recording, "a profile was selected while a stream records"),
        (_output_too_small, "logits has fewer than 24 bytes"),
        (_input_on_the_host, "image is in the wrong kind of memory"),
        (_own_working_memory, "allocates its own working memory"),
        (_destroyed_logger, "called a logger that was destroyed"),
    ],
)
def test_misuse_is_a_problem(
    gpu: FakeRuntime, misuse: Callable[[Harness], object], problem: str
) -> None:
    harness = Harness(gpu, plan=False)
    resources = misuse(harness)
    assert any(re.search(problem, text) for text in harness.api.problems), harness.api.problems
    harness.free()
    del resources
