"""An engine, loaded: its inputs and outputs, and its contexts, in which it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.cuda.lanes import Array
from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.origin import EngineError, Origin
from tokenfold.runtime.tensorrt.plugins import Plugins

PLAN = "plan"

_ALIGNMENT = 256
"""Bytes, of every address that TensorRT is given, on the host too."""

# What an engine fails with through no fault of its own.
_GPU = re.compile(r"out\s*of\s*memory|cuda runtime", re.IGNORECASE)


class RefusedError(EngineError):
    """An engine that TensorRT does not take, today or tomorrow."""


class Tensor(NamedTuple):
    """An input or an output.

    Attributes:
        shape: -1 for a size that varies.
        host: whether TensorRT reads it from the host: a plan, on which shapes depend.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    host: bool


class Engine:
    """A program with its weights on the GPU. Not for threads to share.

    Attributes:
        origin: what it was built from.
        inputs, outputs: by name.
        memory: bytes that a context of it works in, at most.
        counts: how many a plan has; 0 if it takes none, or one that nothing depends on.
    """

    def __init__(
        self, flavour: Flavour, plugins: Plugins | None, origin: Origin, content: bytes
    ) -> None:
        """Load it.

        Raises:
            RefusedError: TensorRT does not take it.
            EngineError: it cannot be loaded now.
        """
        self._flavour = flavour
        self._plugins = plugins
        self._journal = Journal(flavour)
        api = flavour.api
        try:
            # Kept: an engine is no longer one without it.
            self._runtime: Any = api.Runtime(self._journal.logger)
        except TypeError as error:  # its way to say that there is none
            raise self.failed(f"{flavour.version} cannot start") from error
        self.origin = origin
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            why = self.failed(f"{origin.file} could not be loaded")
            raise why if _GPU.search(str(why)) else RefusedError(str(why))
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for at in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(at)
            tensor = Tensor(
                shape=tuple(self._engine.get_tensor_shape(name)),
                dtype=np.dtype(api.nptype(self._engine.get_tensor_dtype(name))),
                host=self._engine.get_tensor_location(name) == api.TensorLocation.HOST,
            )
            given = self._engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
            (self.inputs if given else self.outputs)[name] = tensor
        self.memory = int(self._engine.device_memory_size_v2)
        plan = self.inputs.get(PLAN)
        self.counts = plan.shape[0] if plan is not None and plan.host else 0

    def profile(self, batch: int) -> int:
        """Which profile is for a batch of so many items.

        Raises:
            EngineError: none is.
        """
        for at, profile in enumerate(self.origin.profiles):
            if profile.batch.least <= batch <= profile.batch.most:
                return at
        most = max(profile.batch.most for profile in self.origin.profiles)
        raise EngineError(f"{self.origin.file} runs 1 to {most} items at a time, not {batch}")

    def check(self, batch: int, shapes: Mapping[str, Sequence[int]], plan: Plan) -> None:
        """Whether it was built for inputs of these shapes, and for this plan.

        Raises:
            EngineError: it was not; the message says for which it was.
        """
        profile = self.origin.profiles[self.profile(batch)]
        for name, shape in shapes.items():
            ranges = profile.shape(name, self.inputs[name].shape)
            if len(shape) != len(ranges) or not all(
                one.least <= size <= one.most for one, size in zip(ranges, shape, strict=True)
            ):
                said = " x ".join(f"{one.least} to {one.most}" for one in ranges)
                raise EngineError(f"{self.origin.file} takes {name} of {said}, not {tuple(shape)}")
        if not self.counts:
            return
        if len(plan) != self.counts:
            raise EngineError(f"a plan here has {self.counts} counts, not {len(plan)}")
        for one, count in zip(profile.plan, plan, strict=True):
            if not one.least <= count <= one.most:
                raise EngineError(
                    f"{self.origin.file} takes counts of {one.least} to {one.most}, not {plan}"
                )

    def context(
        self, profile: int, memory: int, size: int, stream: Stream, *, recorded: bool = False
    ) -> Context:
        """A new context.

        Args:
            profile: which it is for.
            memory: the address of what it works in, which may be others' too that run before or
                after it.
            size: bytes of that; at least `memory` of this engine.
            stream: that it runs in.
            recorded: whether its runs are to be recorded.

        Raises:
            EngineError: it cannot be made.
        """
        made = self._engine.create_execution_context(self._strategy(recorded))
        if made is None:
            raise self.failed(f"{self.origin.file}: no context could be made")
        made.set_device_memory(memory, size)
        handle = int(stream.handle)
        if made.active_optimization_profile != profile:
            try:
                made.set_optimization_profile_async(profile, handle)
            except RuntimeError as error:
                what = f"{self.origin.file}: profile {profile} could not be chosen"
                raise self.failed(what) from error
        return Context(self, made, handle)

    def _strategy(self, recorded: bool) -> Any:
        """How a context is made: it works in memory that it is given."""
        api = self._flavour.api
        managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        kinds = getattr(api, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is None or not recorded:
            return managed
        # TensorRT for RTX begins with kernels for all shapes, and goes over to those for one when
        # they are compiled, by and by. What is recorded stays as it is, so it waits for them.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        return config

    def free(self) -> None:
        """Give back what it holds on the GPU. Its contexts have been given back before."""
        self._engine = None
        self._runtime = None

    def failed(self, what: str) -> EngineError:
        """What to raise, with what TensorRT and the plugins said."""
        return EngineError(f"{what}: {self._journal.why(self._plugins)}")


class Context:
    """A way to run an engine: shapes and addresses, which are set before a run."""

    def __init__(self, engine: Engine, context: Any, stream: int) -> None:
        self._engine = engine
        self._context = context
        self._stream = stream
        self._counts: Array = np.zeros(0)

    def place(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Say where an input or an output is, and what shape an input has.

        Raises:
            EngineError: TensorRT refuses.
        """
        varies = shape is not None and -1 in self._engine.inputs[name].shape
        if varies and not self._context.set_input_shape(name, tuple(shape or ())):
            raise self._engine.failed(f"{name} of {tuple(shape or ())}")
        if not self._context.set_tensor_address(name, address):
            raise self._engine.failed(f"{name} at {address:#x}")

    def plan(self, plan: Plan) -> None:
        """Give a plan, which stays on the host; if the engine takes one from there.

        Raises:
            EngineError: TensorRT refuses it.
        """
        if self._engine.counts:
            # Kept: TensorRT reads it when the run is started.
            self._counts = _aligned(plan, self._engine.inputs[PLAN].dtype)
            self.place(PLAN, int(self._counts.ctypes.data))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs, which follow from what was given.

        Raises:
            EngineError: something was not, or it does not go together.
        """
        try:
            missing = list(self._context.infer_shapes())
        except RuntimeError as error:
            raise self._engine.failed("what was given does not go together") from error
        if missing:
            raise self._engine.failed(f"shapes do not follow without {', '.join(missing)}")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._engine.outputs}

    def start(self) -> None:
        """Append a run to the stream, and do not wait for it.

        Raises:
            EngineError: it could not be started.
        """
        if not self._context.execute_async_v3(self._stream):
            raise self._engine.failed("a run could not be started")

    def free(self) -> None:
        """Give back what it holds on the GPU. It does not run, and never will."""
        self._context = None


def _aligned(values: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array at such an address as TensorRT wants."""
    size = len(values) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    found: Array = raw[start : start + size].view(dtype)
    found[:] = values
    return found
