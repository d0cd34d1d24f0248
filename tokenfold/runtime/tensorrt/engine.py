"""Loaded engines and their execution contexts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec
from tokenfold.runtime.tensorrt.variant import TensorRTVariant

PLAN = "plan"

_ALIGNMENT = 256
"""Alignment in bytes of every address that TensorRT is given, on the host too."""

# Failures to load an engine that are not the engine's fault.
_GPU_FAILURE = re.compile(r"out\s*of\s*memory|cuda runtime", re.IGNORECASE)


class EngineRejectedError(EngineError):
    """TensorRT rejects an engine, and would reject it again."""


class TensorInfo(NamedTuple):
    """Description of an input or output.

    Attributes:
        shape: -1 for a dynamic size.
        host: whether TensorRT reads the tensor from host memory, as it does a plan that shapes
            depend on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    host: bool


class Engine:
    """A TensorRT engine with its weights on the GPU. Not thread-safe.

    Attributes:
        spec: specification that the engine was built from.
        inputs, outputs: description of each tensor by name.
        context_memory: maximum working memory of a context, in bytes.
        plan_length: number of counts in the plan; 0 if there is no plan, or nothing depends on it.
    """

    def __init__(
        self,
        variant: TensorRTVariant,
        plugins: PluginLibrary | None,
        spec: EngineSpec,
        content: bytes,
    ) -> None:
        """Load an engine.

        Raises:
            EngineRejectedError: TensorRT rejects `content`.
            EngineError: the engine cannot be loaded at present.
        """
        self._variant = variant
        self._plugins = plugins
        self._journal = Journal(variant)
        api = variant.api
        try:
            # The runtime must outlive its engines.
            self._runtime: Any = api.Runtime(self._journal.logger)
        except TypeError as error:  # Raised when TensorRT returns no runtime.
            raise self.error(f"{variant.version} cannot start") from error
        self.spec = spec
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            load_error = self.error(f"{spec.file} could not be loaded")
            if _GPU_FAILURE.search(str(load_error)):
                raise load_error
            raise EngineRejectedError(str(load_error))
        self.inputs: dict[str, TensorInfo] = {}
        self.outputs: dict[str, TensorInfo] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            tensor = TensorInfo(
                shape=tuple(self._engine.get_tensor_shape(name)),
                dtype=np.dtype(api.nptype(self._engine.get_tensor_dtype(name))),
                host=self._engine.get_tensor_location(name) == api.TensorLocation.HOST,
            )
            is_input = self._engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = tensor
        self.context_memory = int(self._engine.device_memory_size_v2)
        plan = self.inputs.get(PLAN)
        self.plan_length = plan.shape[0] if plan is not None and plan.host else 0

    def profile_index(self, batch: int) -> int:
        """Return the index of the optimization profile for a batch size.

        Raises:
            EngineError: no profile includes it.
        """
        for index, profile in enumerate(self.spec.profiles):
            if profile.batch.min <= batch <= profile.batch.max:
                return index
        max_batch = max(profile.batch.max for profile in self.spec.profiles)
        raise EngineError(f"{self.spec.file} runs 1 to {max_batch} items at a time, not {batch}")

    def check(self, batch: int, shapes: Mapping[str, Sequence[int]], plan: Plan) -> None:
        """Check that the engine was built for these input shapes and this plan.

        Raises:
            EngineError: it was not; the message names the allowed sizes.
        """
        profile = self.spec.profiles[self.profile_index(batch)]
        for name, shape in shapes.items():
            ranges = profile.shape(name, self.inputs[name].shape)
            if len(shape) != len(ranges) or not all(
                allowed.min <= size <= allowed.max
                for allowed, size in zip(ranges, shape, strict=True)
            ):
                text = " x ".join(f"{allowed.min} to {allowed.max}" for allowed in ranges)
                raise EngineError(f"{self.spec.file} takes {name} of {text}, not {tuple(shape)}")
        if not self.plan_length:
            return
        if len(plan) != self.plan_length:
            raise EngineError(
                f"{self.spec.file} takes a plan of {self.plan_length} counts, not {len(plan)}"
            )
        for allowed, count in zip(profile.plan, plan, strict=True):
            if not allowed.min <= count <= allowed.max:
                raise EngineError(
                    f"{self.spec.file} takes counts of {allowed.min} to {allowed.max}, not {plan}"
                )

    def create_context(
        self, profile: int, memory: int, size: int, stream: Stream, *, recorded: bool = False
    ) -> Context:
        """Create an execution context.

        Args:
            profile: index of the optimization profile.
            memory: address of the working memory. Contexts that never run at the same time may
                share it.
            size: bytes of working memory; at least `context_memory`.
            stream: stream that the context runs in.
            recorded: whether its runs will be recorded.

        Raises:
            EngineError: the context cannot be created.
        """
        context = self._engine.create_execution_context(self._context_config(recorded))
        if context is None:
            raise self.error(f"{self.spec.file}: no context could be created")
        context.set_device_memory(memory, size)
        handle = int(stream.handle)
        if context.active_optimization_profile != profile:
            try:
                context.set_optimization_profile_async(profile, handle)
            except RuntimeError as error:
                message = f"{self.spec.file}: profile {profile} could not be selected"
                raise self.error(message) from error
        return Context(self, context, handle)

    def _context_config(self, recorded: bool) -> Any:
        """Return the configuration of a context that works in memory given by the caller."""
        api = self._variant.api
        user_managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(api, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None or not recorded:
            return user_managed
        # TensorRT for RTX starts with kernels for all shapes, and replaces them by kernels for the
        # actual shapes as these are compiled in the background. A recording would keep the first
        # ones, so its context waits for the compilation.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def free(self) -> None:
        """Free the engine's GPU memory. Its contexts must have been freed."""
        self._engine = None
        self._runtime = None

    def error(self, message: str) -> EngineError:
        """Return an exception with `message` and the errors of TensorRT and the plugins."""
        return EngineError(f"{message}: {self._journal.failure_reason(self._plugins)}")


class Context:
    """An execution context: shapes and addresses are set first, then runs are started."""

    def __init__(self, engine: Engine, context: Any, stream: int) -> None:
        self._engine = engine
        self._context = context
        self._stream = stream
        self._counts: Array = np.zeros(0)

    def set_tensor(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Set the address of an input or output, and the shape of an input.

        Raises:
            EngineError: TensorRT rejects the shape or the address.
        """
        dynamic = shape is not None and -1 in self._engine.inputs[name].shape
        if dynamic and not self._context.set_input_shape(name, tuple(shape or ())):
            raise self._engine.error(f"cannot set {name} to shape {tuple(shape or ())}")
        if not self._context.set_tensor_address(name, address):
            raise self._engine.error(f"cannot set {name} to address {address:#x}")

    def set_plan(self, plan: Plan) -> None:
        """Set the plan, if the engine reads one from host memory.

        Raises:
            EngineError: TensorRT rejects it.
        """
        if self._engine.plan_length:
            # Kept alive: TensorRT reads it when a run starts.
            self._counts = _aligned(plan, self._engine.inputs[PLAN].dtype)
            self.set_tensor(PLAN, int(self._counts.ctypes.data))

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output, inferred from the inputs.

        Raises:
            EngineError: an input is not set, or the inputs' shapes contradict each other.
        """
        try:
            missing = list(self._context.infer_shapes())
        except RuntimeError as error:
            raise self._engine.error("the shapes of the inputs do not match") from error
        if missing:
            raise self._engine.error(
                f"output shapes cannot be inferred: {', '.join(missing)} not set"
            )
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._engine.outputs}

    def start(self) -> None:
        """Append a run to the stream, without waiting for it.

        Raises:
            EngineError: the run could not be started.
        """
        if not self._context.execute_async_v3(self._stream):
            raise self._engine.error("a run could not be started")

    def free(self) -> None:
        """Free the context's GPU memory. It must not run, now or later."""
        self._context = None


def _aligned(values: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return an array of the values at an address that TensorRT accepts."""
    size = len(values) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    array: Array = raw[start : start + size].view(dtype)
    array[:] = values
    return array
