"""Fake of TensorRT's Python module for machines without a GPU, on top of the fake CUDA runtime.

Names, argument order and return values match the real module (test_fake_api.py compares them). The
fake is as strict as the documentation: it rejects what the real module rejects, with a log message.
What would end the process or is undefined becomes a problem, which the tests check for. Runs are
work in a fake stream, in memory that contexts may share; so code that forgets to wait, or frees
something too early, gets wrong numbers.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from pydantic import ValidationError

from tests.runtime.cuda.fake_runtime import ALIGNMENT, FakeRuntime
from tests.runtime.tensorrt.fake_engine import Description
from tests.runtime.tensorrt.fake_run import FakeRun, Span
from tokenfold.bundle.workload import Plan

# Bytes of the block of GPU memory that each engine and each context holds.
_ENGINE_BYTES, _CONTEXT_BYTES = 64, 16


class Severity(IntEnum):
    """Severity of a log message."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """Receiver of log messages."""

    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity
    ready = False

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: IntEnum, msg: str) -> None:
        raise NotImplementedError


class TensorIOMode(Enum):
    """Direction of a tensor: input or output."""

    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    """Memory that holds a tensor."""

    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    """Owner of a context's working memory."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    """Time when TensorRT for RTX compiles kernels for the shapes of a run."""

    LAZY, EAGER, NONE = range(3)


class IRuntimeConfig:
    """Configuration of a context."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy


class DataType(Enum):
    """Element type of a tensor."""

    FLOAT, HALF, BF16, INT32, INT64, UINT8 = range(6)


_TYPES: dict[DataType, type[np.generic]] = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT8: np.uint8,
}


class FakeApi:
    """Fake of the module.

    Attributes:
        gpu: fake of the CUDA runtime.
        calls: number of calls per function.
        failing: number of upcoming calls that fail, per function.
        live: number of living runtimes, engines and contexts.
        problems: errors that would crash the real TensorRT or are undefined.
        workers: the run in progress per working memory, by its address.
        libraries: loaded plugin libraries; None to reject all of them.
    """

    __version__ = "11.9.0"

    def __init__(self, gpu: FakeRuntime) -> None:
        self.ILogger = ILogger
        self.TensorIOMode, self.TensorLocation = TensorIOMode, TensorLocation
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.DataType = DataType
        self.DynamicShapesKernelSpecializationStrategy: Any = None  # Only in TensorRT for RTX.
        self.gpu = gpu
        self.calls: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        self.live: Counter[str] = Counter()
        self.problems: list[str] = []
        self.workers: dict[int, FakeRun] = {}
        self.libraries: list[str] | None = []
        self.ComputeCapability: Any = None
        self._registered: weakref.ref[ILogger] | None = None

    def Runtime(self, logger: ILogger) -> Runtime:  # noqa: N802
        if not isinstance(logger, ILogger) or not logger.ready:
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        if self.fails("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        if self._registered is None or not self.live["runtime"]:
            self._registered = weakref.ref(logger)
        elif self._registered() is not logger:
            logger.log(Severity.WARNING, "The logger passed differs from one already registered")
        return Runtime(self, logger)

    def get_plugin_registry(self) -> IPluginRegistry:
        return IPluginRegistry(self)

    @staticmethod
    def nptype(trt_type: DataType) -> type[np.generic]:
        try:
            return _TYPES[trt_type]
        except KeyError:
            raise TypeError("Could not resolve TensorRT datatype to a numpy datatype.") from None

    def look_up_plugins(self) -> None:
        """Log a message of the plugin registry to the first logger."""
        logger = None if self._registered is None else self._registered()
        if logger is None:
            self.problems.append("the registry called a logger that was destroyed")
        else:
            logger.log(Severity.VERBOSE, "Plugin creators found")

    def fails(self, function: str, logger: ILogger) -> bool:
        """Whether a call should fail; if so, log an error."""
        self.calls[function] += 1
        if not self.failing[function]:
            return False
        self.failing[function] -= 1
        logger.log(Severity.ERROR, f"{function}: Error Code 2: fake\n failure")
        return True

    def allocate(self, size: int) -> int | None:
        """Allocate GPU memory; return its address, or None if it fails."""
        status, *results = self.gpu.cudaMalloc(size)
        return int(results[0]) if status == self.gpu.cudaError_t.cudaSuccess else None

    def track(self, resource: Any, kind: str, *blocks: int) -> None:
        """Count a resource as living, and free its memory when it is destroyed."""
        self.live[kind] += 1
        weakref.finalize(resource, self._destroyed, kind, blocks).atexit = False

    def _destroyed(self, kind: str, blocks: tuple[int, ...]) -> None:
        self.live[kind] -= 1
        for address in blocks:
            self.gpu.cudaFree(address)


class IPluginRegistry:
    """Fake of the plugin registry."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api

    def load_library(self, plugin_path: str) -> object | None:
        """Return a handle; None if libraries are rejected."""
        if self._api.libraries is None:
            return None
        self._api.libraries.append(plugin_path)
        return object()


class Runtime:
    """Fake of the runtime, which loads engines."""

    def __init__(self, api: FakeApi, logger: ILogger) -> None:
        self._api = api
        self.logger = logger
        api.track(self, "runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        raw = bytes(memoryview(serialized_engine))
        if self._api.fails("deserialize_cuda_engine", self.logger):
            return None
        self._api.look_up_plugins()
        try:
            description = Description.model_validate_json(raw)
        except ValidationError:
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (magicTag failed)")
            self.logger.log(Severity.ERROR, "Error Code 4: Internal Error (deserialization)")
            return None
        weights = self._api.allocate(_ENGINE_BYTES)
        if weights is None:
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return None
        return ICudaEngine(self._api, self, description, weights)


class ICudaEngine:
    """Fake of an engine. It keeps its runtime alive, as the real one does."""

    def __init__(
        self, api: FakeApi, runtime: Runtime, description: Description, weights: int
    ) -> None:
        self._api = api
        self._runtime = runtime
        self._description = description
        self._tensors = {**description.inputs, **description.outputs}
        self._grows = description.grows
        api.track(self, "engine", weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._description.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return self._description.memory * self._description.max_batch

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].sizes

    def get_tensor_dtype(self, name: str) -> DataType:
        dtype = np.dtype(self._tensors[name].dtype)
        (data_type,) = (data_type for data_type, numpy in _TYPES.items() if numpy == dtype)
        return data_type

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._description.inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self._tensors[name].host else TensorLocation.DEVICE

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy
        | IRuntimeConfig = ExecutionContextAllocationStrategy.STATIC,
    ) -> IExecutionContext | None:
        if isinstance(strategy, IRuntimeConfig):
            kind = strategy.dynamic_shapes_kernel_specialization_strategy
            self._api.calls[f"context {kind.name}"] += 1
            strategy = strategy.get_execution_context_allocation_strategy()
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self._api.problems.append("a context allocates its own working memory")
        if self._api.fails("create_execution_context", self._runtime.logger):
            return None
        block = self._api.allocate(_CONTEXT_BYTES)
        if block is None:
            self._runtime.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return None
        return IExecutionContext(self._api, self, block)

    def _grow(self) -> bool:
        """Allocate memory if this run should; return whether the allocation succeeded."""
        if not self._grows:
            return True
        self._grows -= 1
        address = self._api.allocate(1)
        if address is not None:
            self._api.gpu.cudaFree(address)
        return address is not None


class IExecutionContext:
    """Fake of an execution context. It keeps its engine alive."""

    def __init__(self, api: FakeApi, engine: ICudaEngine, block: int) -> None:
        self._api = api
        self._engine = engine
        self._description = engine._description
        self._logger = engine._runtime.logger
        self._memory: Span | None = None
        self._profile, self._switched_in = 0, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Runs in a stream or in a CUDA graph.
        self._runs: weakref.WeakSet[FakeRun] = weakref.WeakSet()
        api.track(self, "context", block)
        weakref.finalize(self, _check_no_runs, self._runs, api.problems).atexit = False

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_device_memory(self, memory: int, size: int) -> None:
        self._touch("memory")
        needed = self._engine.device_memory_size_v2
        if self._api.fails("set_device_memory", self._logger):
            return
        if size < needed or self._api.gpu.block_size(memory) < size or memory % ALIGNMENT:
            self._reject(f"{size} bytes at {memory:#x}, but {needed} are needed")
            return
        self._memory = Span(memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._touch("profile")
        failed = self._api.fails("set_optimization_profile_async", self._logger)
        if failed or not 0 <= profile_index < self._engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        stream = self._api.gpu.stream(stream_handle)
        if stream.recording is not None:
            self._api.problems.append("a profile was selected while a stream records")
        self._profile, self._switched_in = profile_index, stream_handle
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._touch("shapes")
        if self._api.fails("set_input_shape", self._logger) or name not in self._description.inputs:
            return False
        sizes = self._description.inputs[name].sizes
        ranges = self._description.profiles[self._profile][name]
        if len(shape) != len(sizes) or not all(
            minimum <= size <= maximum
            for (minimum, maximum), size in zip(ranges, shape, strict=True)
        ):
            return self._reject(f"{name} of {shape} is not in profile {self._profile}: {ranges}")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._touch("addresses")
        if self._api.fails("set_tensor_address", self._logger) or name not in self._engine._tensors:
            return False
        if memory % ALIGNMENT:
            return self._reject(f"{name} is not aligned")
        if bool(self._api.gpu.block_size(memory)) == self._engine._tensors[name].host:
            self._api.problems.append(f"{name} is in the wrong kind of memory")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        failed = self._api.fails("infer_shapes", self._logger)
        if not failed and self._missing():
            return self._missing()
        if not failed and self._sizes() is None:
            failed = not self._reject(f"sizes of one name differ: {self._shapes}")
        # C++ code has no frame in the traceback that would keep the context alive.
        del self
        if failed:
            raise RuntimeError("infer_shapes error code: -1")
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self._sizes() or {}
        shape = self._engine._tensors[name].shape
        return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        api, stream = self._api, self._api.gpu.stream(stream_handle)
        if api.fails("execute_async_v3", self._logger):
            return False
        unplaced = [name for name in self._engine._tensors if name not in self._addresses]
        if self._missing() or unplaced:
            return self._reject(f"no shape or address: {self._missing() or unplaced}")
        if self._memory is None and self._engine.device_memory_size_v2:
            return self._reject("no working memory")
        if self._profile and stream_handle != self._switched_in:
            api.problems.append("a run does not wait for its profile")
        plan = self._plan()
        ranges = self._description.profiles[self._profile].get("plan", ())
        if any(not ends[0] <= count <= ends[1] for ends, count in zip(ranges, plan, strict=False)):
            return self._reject(f"counts of {plan} are not in profile {self._profile}")
        spans = {
            name: Span(self._addresses[name], self._bytes(name))
            for name, tensor in self._engine._tensors.items()
            if not tensor.host
        }
        for name, span in spans.items():
            if api.gpu.block_size(span.address) < span.size:
                api.problems.append(f"{name} has fewer than {span.size} bytes")
                return False
        if not self._engine._grow():
            return self._reject("an allocation failed")
        shapes = {name: self.get_tensor_shape(name) for name in spans}
        run = FakeRun(api, self, self._description, plan, spans, shapes, self._memory)
        run.recorded = stream.recording is not None
        self._runs.add(run)
        stream.append(run.gather, kind="host" if self._description.host else "kernel")
        stream.append(run.scatter)
        return True

    def _touch(self, setting: str) -> None:
        if any(run.recorded for run in self._runs):
            self._api.problems.append(f"the {setting} of a recorded context changed")

    def _reject(self, why: str) -> bool:
        self._logger.log(Severity.ERROR, f"Error Code 3: API Usage Error ({why})")
        return False

    def _missing(self) -> list[str]:
        return [
            name
            for name, tensor in self._description.inputs.items()
            if (-1 in tensor.sizes and name not in self._shapes)
            or (tensor.host and name not in self._addresses)
        ]

    def _sizes(self) -> dict[str, int] | None:
        """Return the value of each named size; None if a name has two values."""
        sizes: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for axis, size in zip(self._description.inputs[name].shape, shape, strict=True):
                if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                    return None
        return sizes

    def _bytes(self, name: str) -> int:
        dtype = np.dtype(self._engine._tensors[name].dtype)
        return int(np.prod(self.get_tensor_shape(name))) * dtype.itemsize

    def _plan(self) -> Plan:
        """Return the plan, as host memory holds it now."""
        if self._description.plan is not None:
            return self._description.plan
        plan = self._description.inputs.get("plan")
        if plan is None or not plan.host:
            return ()
        raw = (ctypes.c_int64 * plan.sizes[0]).from_address(self._addresses["plan"])
        return tuple(raw)


def _check_no_runs(runs: weakref.WeakSet[FakeRun], problems: list[str]) -> None:
    if len(runs):
        problems.append("a context was destroyed during a run, or while a CUDA graph uses it")
