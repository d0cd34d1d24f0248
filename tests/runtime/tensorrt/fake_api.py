"""Stands in for TensorRT's Python module where there is no GPU, over `cuda.fake_runtime`.

Names, order of arguments and what is returned are the real one's (test_fake_api.py compares them),
and it is as strict as the documentation: what the real one refuses is refused, with a line in the
log; what would end the process there, or is undefined, is a problem that the tests look for. Runs
are work of a fake stream, in memory that contexts may share: so what forgets to wait, or to keep
something, gives wrong numbers.
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

# Of an engine's weights, and of what a context keeps: each is a block of the GPU's memory.
_WEIGHTS, _OWN = 64, 16


class Severity(IntEnum):
    """Of a line."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """What lines are given to."""

    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity
    ready = False

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: IntEnum, msg: str) -> None:
        raise NotImplementedError


class TensorIOMode(Enum):
    """Of a tensor."""

    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    """Of a tensor."""

    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    """Whose memory a context works in."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    """Of TensorRT for RTX: when kernels for the shapes of a run are compiled."""

    LAZY, EAGER, NONE = range(3)


class IRuntimeConfig:
    """How a context is to be made."""

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
    """Of a tensor's elements."""

    FLOAT, HALF, BF16, INT32, INT64, UINT8 = range(6)


_TYPES: dict[DataType, type[np.generic]] = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT8: np.uint8,
}


class FakeApi:
    """The module.

    Attributes:
        gpu: what stands in for CUDA.
        calls: how often each function was called.
        failing: functions that fail, and how many times.
        live: runtimes, engines and contexts that there are.
        problems: what the real one would not survive.
        workers: which run is at work in memory that contexts share, by its address.
        libraries: of plugins that were loaded; None if it takes none.
    """

    __version__ = "11.9.0"

    def __init__(self, gpu: FakeRuntime) -> None:
        self.ILogger = ILogger
        self.TensorIOMode, self.TensorLocation = TensorIOMode, TensorLocation
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.DataType = DataType
        self.DynamicShapesKernelSpecializationStrategy: Any = None  # of RTX alone
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
        """What the registry does for an engine, telling the first logger of it."""
        own = None if self._registered is None else self._registered()
        if own is None:
            self.problems.append("the registry called a logger that is gone")
        else:
            own.log(Severity.VERBOSE, "Plugin creators found")

    def fails(self, function: str, logger: ILogger) -> bool:
        """Whether a call is to fail; it says so."""
        self.calls[function] += 1
        if not self.failing[function]:
            return False
        self.failing[function] -= 1
        logger.log(Severity.ERROR, f"{function}: Error Code 2: fake\n failure")
        return True

    def taken(self, size: int) -> int | None:
        """New memory of the GPU, or None."""
        status, *found = self.gpu.cudaMalloc(size)
        return int(found[0]) if status == self.gpu.cudaError_t.cudaSuccess else None

    def ends(self, thing: Any, kind: str, *blocks: int) -> None:
        """Give back memory when something ends."""
        self.live[kind] += 1
        weakref.finalize(thing, self._ended, kind, blocks).atexit = False

    def _ended(self, kind: str, blocks: tuple[int, ...]) -> None:
        self.live[kind] -= 1
        for address in blocks:
            self.gpu.cudaFree(address)


class IPluginRegistry:
    """Where plugins are."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api

    def load_library(self, plugin_path: str) -> object | None:
        """A handle, or None where it takes no library."""
        if self._api.libraries is None:
            return None
        self._api.libraries.append(plugin_path)
        return object()


class Runtime:
    """What loads engines."""

    def __init__(self, api: FakeApi, logger: ILogger) -> None:
        self._api = api
        self.logger = logger
        api.ends(self, "runtime")

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
        weights = self._api.taken(_WEIGHTS)
        if weights is None:
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return None
        return ICudaEngine(self._api, self, description, weights)


class ICudaEngine:
    """A program with its weights. It keeps its runtime alive, as the real one does."""

    def __init__(
        self, api: FakeApi, runtime: Runtime, description: Description, weights: int
    ) -> None:
        self._api = api
        self._runtime = runtime
        self._description = description
        self._tensors = {**description.inputs, **description.outputs}
        self._grows = description.grows
        api.ends(self, "engine", weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._description.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return self._description.memory * self._description.most

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].sizes

    def get_tensor_dtype(self, name: str) -> DataType:
        wanted = np.dtype(self._tensors[name].dtype)
        (found,) = (kind for kind, own in _TYPES.items() if own == wanted)
        return found

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
            self._api.problems.append("a context takes working memory of its own")
        if self._api.fails("create_execution_context", self._runtime.logger):
            return None
        own = self._api.taken(_OWN)
        if own is None:
            self._runtime.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return None
        return IExecutionContext(self._api, self, own)

    def _grown(self) -> bool:
        """Take memory, where runs still do; whether that is possible."""
        if not self._grows:
            return True
        self._grows -= 1
        address = self._api.taken(1)
        if address is not None:
            self._api.gpu.cudaFree(address)
        return address is not None


class IExecutionContext:
    """A way to run an engine, which it keeps alive."""

    def __init__(self, api: FakeApi, engine: ICudaEngine, own: int) -> None:
        self._api = api
        self._engine = engine
        self._description = engine._description
        self._logger = engine._runtime.logger
        self._memory: Span | None = None
        self._profile, self._switched_in = 0, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Those in a stream, or in a CUDA graph.
        self._runs: weakref.WeakSet[FakeRun] = weakref.WeakSet()
        api.ends(self, "context", own)
        weakref.finalize(self, _no_runs, self._runs, api.problems).atexit = False

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_device_memory(self, memory: int, size: int) -> None:
        self._touch("memory")
        needed = self._engine.device_memory_size_v2
        if self._api.fails("set_device_memory", self._logger):
            return
        if size < needed or self._api.gpu.room(memory) < size or memory % ALIGNMENT:
            self._refuse(f"{size} bytes at {memory:#x}, where {needed} are needed")
            return
        self._memory = Span(memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._touch("profile")
        failed = self._api.fails("set_optimization_profile_async", self._logger)
        if failed or not 0 <= profile_index < self._engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        stream = self._api.gpu.stream(stream_handle)
        if stream.recording is not None:
            self._api.problems.append("a profile was chosen while a stream records")
        self._profile, self._switched_in = profile_index, stream_handle
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._touch("shapes")
        if self._api.fails("set_input_shape", self._logger) or name not in self._description.inputs:
            return False
        own = self._description.inputs[name].sizes
        ranges = self._description.profiles[self._profile][name]
        if len(shape) != len(own) or not all(
            least <= size <= most for (least, most), size in zip(ranges, shape, strict=True)
        ):
            return self._refuse(f"{name} of {shape} is not in profile {self._profile}: {ranges}")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._touch("addresses")
        if self._api.fails("set_tensor_address", self._logger) or name not in self._engine._tensors:
            return False
        if memory % ALIGNMENT:
            return self._refuse(f"{name} is not aligned")
        if bool(self._api.gpu.room(memory)) == self._engine._tensors[name].host:
            self._api.problems.append(f"{name} is not where it should be")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        failed = self._api.fails("infer_shapes", self._logger)
        if not failed and self._missing():
            return self._missing()
        if not failed and self._sizes() is None:
            failed = not self._refuse(f"sizes of one name differ: {self._shapes}")
        # What is C++ has no frame in a traceback that would hold it.
        del self
        if failed:
            raise RuntimeError("infer_shapes error code: -1")
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self._sizes() or {}
        own = self._engine._tensors[name].shape
        return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in own)

    def execute_async_v3(self, stream_handle: int) -> bool:
        api, stream = self._api, self._api.gpu.stream(stream_handle)
        if api.fails("execute_async_v3", self._logger):
            return False
        without = [name for name in self._engine._tensors if name not in self._addresses]
        if self._missing() or without:
            return self._refuse(f"no shape or address: {self._missing() or without}")
        if self._memory is None and self._engine.device_memory_size_v2:
            return self._refuse("no memory to work in")
        if self._profile and stream_handle != self._switched_in:
            api.problems.append("a run does not wait for its profile")
        plan = self._plan()
        ranges = self._description.profiles[self._profile].get("plan", ())
        if any(not ends[0] <= count <= ends[1] for ends, count in zip(ranges, plan, strict=False)):
            return self._refuse(f"counts of {plan} are not in profile {self._profile}")
        spans = {
            name: Span(self._addresses[name], self._bytes(name))
            for name, one in self._engine._tensors.items()
            if not one.host
        }
        for name, span in spans.items():
            if api.gpu.room(span.address) < span.size:
                api.problems.append(f"{name} has not {span.size} bytes")
                return False
        if not self._engine._grown():
            return self._refuse("memory was wanted while a stream records")
        shapes = {name: self.get_tensor_shape(name) for name in spans}
        run = FakeRun(api, self, self._description, plan, spans, shapes, self._memory)
        run.recorded = stream.recording is not None
        self._runs.add(run)
        stream.append(run.gather, kind="host" if self._description.host else "kernel")
        stream.append(run.scatter)
        return True

    def _touch(self, what: str) -> None:
        if any(run.recorded for run in self._runs):
            self._api.problems.append(f"{what} of a context were set that a CUDA graph is of")

    def _refuse(self, why: str) -> bool:
        self._logger.log(Severity.ERROR, f"Error Code 3: API Usage Error ({why})")
        return False

    def _missing(self) -> list[str]:
        return [
            name
            for name, one in self._description.inputs.items()
            if (-1 in one.sizes and name not in self._shapes)
            or (one.host and name not in self._addresses)
        ]

    def _sizes(self) -> dict[str, int] | None:
        """What the names of sizes stand for; None if for different ones."""
        found: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for own, size in zip(self._description.inputs[name].shape, shape, strict=True):
                if isinstance(own, str) and found.setdefault(own, size) != size:
                    return None
        return found

    def _bytes(self, name: str) -> int:
        kind = np.dtype(self._engine._tensors[name].dtype)
        return int(np.prod(self.get_tensor_shape(name))) * kind.itemsize

    def _plan(self) -> Plan:
        """What is in the host's memory now."""
        if self._description.plan is not None:
            return self._description.plan
        one = self._description.inputs.get("plan")
        if one is None or not one.host:
            return ()
        raw = (ctypes.c_int64 * one.sizes[0]).from_address(self._addresses["plan"])
        return tuple(raw)


def _no_runs(runs: weakref.WeakSet[FakeRun], problems: list[str]) -> None:
    if len(runs):
        problems.append("a context is gone that is at work, or that a CUDA graph is of")
