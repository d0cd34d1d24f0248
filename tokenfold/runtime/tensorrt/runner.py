"""Runner of the engines of one graph; see `tokenfold.runtime.cuda.runner.Runner`.

A context must not change after a CUDA graph was recorded from it, so each recorded run has a
separate context. All contexts share working memory, because they run one after the other in one
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from weakref import WeakSet

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.cuda.device import CudaError, Memory, PinnedMemory, Stream
from tokenfold.runtime.cuda.runner import DeviceTensor, Feeds
from tokenfold.runtime.tensorrt.engine import PLAN, Context, Engine


class EngineRunner:
    """Runner of one graph's engines: one for all plans, and optionally some for one plan each.

    Attributes:
        native: whether the ops are plugins.
    """

    def __init__(self, engines: Sequence[Engine], stream: Stream) -> None:
        """Allocate working memory.

        Args:
            engines: engines of one graph; the first one is for all plans.
            stream: stream that all runs are appended to.

        Raises:
            CudaError: there is not enough memory.
        """
        self._engine, *static_engines = engines
        self._static_engines = {engine.spec.plan: engine for engine in static_engines}
        self._stream = stream
        self._contexts: dict[tuple[int, int], Context] = {}
        # Every context, for `free`: the caller of `bind` owns those of recorded runs.
        self._all_contexts: WeakSet[Context] = WeakSet()
        self._buffers = _Buffers()
        self.native = self._engine.spec.target.plugins is not None
        self.inputs = {
            name: tuple(
                _size_name(name, axis) if size < 0 else size
                for axis, size in enumerate(tensor.shape)
            )
            for name, tensor in self._engine.inputs.items()
        }
        self.outputs = list(self._engine.outputs)
        self._work = Memory(max(engine.context_memory for engine in engines))

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """See `Runner.run`."""
        try:
            return self._run(names, feeds)
        except BaseException:
            # The next run reuses or frees the buffers, so copies that use them must have ended.
            with suppress(CudaError):
                self._stream.wait()
            raise

    def _run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        plan = tuple(int(count) for count in feeds.get(PLAN, ()))
        engine = self._engine_for(plan)
        inputs = {
            name: feeds[name].astype(tensor.dtype, casting="same_kind", copy=False)
            for name, tensor in engine.inputs.items()
            if not tensor.host
        }
        # The first dimension of every input with dynamic sizes is the batch.
        batch = next(
            len(inputs[name]) for name, tensor in engine.inputs.items() if tensor.shape[:1] == (-1,)
        )
        engine.check(batch, {name: values.shape for name, values in inputs.items()}, plan)
        context = self._shared_context(engine, batch)
        context.set_plan(plan)
        for name, values in inputs.items():
            address = self._buffers.upload(name, values, self._stream)
            context.set_tensor(name, address, values.shape)
        shapes = context.output_shapes()
        sizes = {
            name: int(np.prod(shape)) * engine.outputs[name].dtype.itemsize
            for name, shape in shapes.items()
        }
        for name in shapes:
            context.set_tensor(name, self._buffers.allocate(name, sizes[name]))
        context.start()
        for name in names:
            self._buffers.download(name, sizes[name], self._stream)
        self._stream.wait()
        return [
            self._buffers.result(name, sizes[name])
            .view(engine.outputs[name].dtype)
            .reshape(shapes[name])
            for name in names
        ]

    def bind(
        self,
        plan: Plan,
        batch: int,
        image: DeviceTensor,
        outputs: Mapping[str, DeviceTensor],
        *,
        recorded: bool,
    ) -> Callable[[], None]:
        """See `Runner.bind`."""
        engine = self._engine_for(plan)
        shape = (batch, *image.spec.shape)
        engine.check(batch, {"image": shape}, plan)
        context = (
            self._create_context(engine, batch, recorded=True)
            if recorded
            else self._shared_context(engine, batch)
        )
        context.set_plan(plan)
        context.set_tensor("image", image.memory.address, shape)
        unused_plan = engine.inputs.get(PLAN)
        if unused_plan is not None and not unused_plan.host:
            # Nothing depends on the plan, but it needs an address; its content does not matter.
            size = unused_plan.shape[0] * unused_plan.dtype.itemsize
            context.set_tensor(PLAN, self._buffers.allocate(PLAN, size))
        context.output_shapes()
        for name, tensor in outputs.items():
            context.set_tensor(name, tensor.memory.address)
        return context.start

    def free(self) -> None:
        """See `Runner.free`."""
        # Explicitly, because the traceback of a failed run may still refer to some of them.
        for context in list(self._all_contexts):
            context.free()
        self._contexts.clear()
        for engine in (self._engine, *self._static_engines.values()):
            engine.free()
        self._buffers.free()
        self._work.free()

    def _engine_for(self, plan: Plan) -> Engine:
        return self._static_engines.get(plan, self._engine)

    def _shared_context(self, engine: Engine, batch: int) -> Context:
        """Return the context that all runs that are not recorded share."""
        key = (id(engine), engine.profile_index(batch))
        if key not in self._contexts:
            self._contexts[key] = self._create_context(engine, batch)
        return self._contexts[key]

    def _create_context(self, engine: Engine, batch: int, *, recorded: bool = False) -> Context:
        context = engine.create_context(
            engine.profile_index(batch),
            self._work.address,
            self._work.size,
            self._stream,
            recorded=recorded,
        )
        self._all_contexts.add(context)
        return context


class _Buffers:
    """Host and GPU buffers for inputs and outputs, which grow as needed."""

    def __init__(self) -> None:
        self._pairs: dict[str, tuple[PinnedMemory, Memory]] = {}

    def upload(self, name: str, values: Array, stream: Stream) -> int:
        """Start to copy an input to the GPU, and return its address there.

        No earlier copy of the same buffer may be in progress.
        """
        pinned, memory = self._pair(name, values.nbytes)
        pinned.bytes[: values.nbytes] = values.reshape(-1).view(np.uint8)
        stream.upload(memory, pinned, values.nbytes)
        return memory.address

    def allocate(self, name: str, size: int) -> int:
        """Return the address of a GPU buffer of at least `size` bytes."""
        return self._pair(name, size)[1].address

    def download(self, name: str, size: int, stream: Stream) -> None:
        """Start to copy an output to the host."""
        pinned, memory = self._pair(name, size)
        stream.download(pinned, memory, size)

    def result(self, name: str, size: int) -> Array:
        """Return a copy of an output; its download must have ended."""
        return self._pair(name, size)[0].bytes[:size].copy()

    def free(self) -> None:
        """Free all buffers."""
        for pinned, memory in self._pairs.values():
            pinned.free()
            memory.free()
        self._pairs.clear()

    def _pair(self, name: str, size: int) -> tuple[PinnedMemory, Memory]:
        pair = self._pairs.get(name)
        if pair is not None and pair[1].size >= size:
            return pair
        if pair is not None:
            del self._pairs[name]
            pair[0].free()
            pair[1].free()
        with ExitStack() as undo:
            pinned = PinnedMemory(size)
            undo.callback(pinned.free)
            memory = Memory(size)
            undo.pop_all()
        self._pairs[name] = (pinned, memory)
        return pinned, memory


def _size_name(name: str, axis: int) -> str:
    """Return a name for a dynamic size."""
    return "batch" if axis == 0 else f"{name}_{axis}"
