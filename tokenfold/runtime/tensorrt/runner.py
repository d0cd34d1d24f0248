"""Engines of a graph as what runs it on the GPU; see `tokenfold.runtime.cuda.runner.Runner`.

A context that a CUDA graph was recorded from must stay as it is, so each run to be recorded has one
of its own. All of them work in the same memory, since one runs after the other in one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from weakref import WeakSet

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.device import CudaError, Memory, Pinned, Stream
from tokenfold.runtime.cuda.lanes import Array
from tokenfold.runtime.cuda.runner import Feeds, Place
from tokenfold.runtime.tensorrt.engine import PLAN, Context, Engine


class EngineRunner:
    """The engines of one graph: one for all plans, and those that were built for one each.

    Attributes:
        native: whether the ops are plugins.
    """

    def __init__(self, engines: Sequence[Engine], stream: Stream) -> None:
        """Args:
        engines: of one graph. The first is for all plans.

        Raises:
            CudaError: there is not enough memory.
        """
        self._engine, *others = engines
        self._fixed = {one.origin.plan: one for one in others}
        self._stream = stream
        self._contexts: dict[tuple[int, int], Context] = {}
        # All of them: those to be recorded belong to who asked for them.
        self._made: WeakSet[Context] = WeakSet()
        self._buffers = _Buffers()
        self.native = self._engine.origin.target.plugins is not None
        self.inputs = {
            name: tuple(_free(name, at) if size < 0 else size for at, size in enumerate(one.shape))
            for name, one in self._engine.inputs.items()
        }
        self.outputs = list(self._engine.outputs)
        self._work = Memory(max(engine.memory for engine in engines))

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """See `Runner`."""
        try:
            return self._run(names, feeds)
        except BaseException:
            # The next run writes where copies may still be under way, or gives it back.
            with suppress(CudaError):
                self._stream.wait()
            raise

    def _run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        plan = tuple(int(count) for count in feeds.get(PLAN, ()))
        engine = self._fit(plan)
        given = {
            name: feeds[name].astype(one.dtype, casting="same_kind", copy=False)
            for name, one in engine.inputs.items()
            if not one.host
        }
        # Whatever varies begins with the batch.
        batch = next(
            len(given[name]) for name, one in engine.inputs.items() if one.shape[:1] == (-1,)
        )
        engine.check(batch, {name: values.shape for name, values in given.items()}, plan)
        context = self._shared(engine, batch)
        context.plan(plan)
        for name, values in given.items():
            context.place(name, self._buffers.sent(name, values, self._stream), values.shape)
        shapes = context.shapes()
        sizes = {
            name: int(np.prod(shape)) * engine.outputs[name].dtype.itemsize
            for name, shape in shapes.items()
        }
        for name in shapes:
            context.place(name, self._buffers.room(name, sizes[name]))
        context.start()
        for name in names:
            self._buffers.fetch(name, sizes[name], self._stream)
        self._stream.wait()
        return [
            self._buffers.found(name, sizes[name])
            .view(engine.outputs[name].dtype)
            .reshape(shapes[name])
            for name in names
        ]

    def bound(
        self,
        plan: Plan,
        batch: int,
        image: Place,
        outputs: Mapping[str, Place],
        *,
        recorded: bool,
    ) -> Callable[[], None]:
        """See `Runner`."""
        engine = self._fit(plan)
        shape = (batch, *image.rows.shape)
        engine.check(batch, {"image": shape}, plan)
        context = (
            self._new(engine, batch, recorded=True) if recorded else self._shared(engine, batch)
        )
        context.plan(plan)
        context.place("image", image.memory.address, shape)
        unused = engine.inputs.get(PLAN)
        if unused is not None and not unused.host:
            # Nothing depends on it, so any bytes will do; it is an input all the same.
            room = self._buffers.room(PLAN, unused.shape[0] * unused.dtype.itemsize)
            context.place(PLAN, room)
        context.shapes()
        for name, place in outputs.items():
            context.place(name, place.memory.address)
        return context.start

    def free(self) -> None:
        """See `Runner`."""
        # Now, even if the traceback of a failed run still holds some of it.
        for context in list(self._made):
            context.free()
        self._contexts.clear()
        for engine in (self._engine, *self._fixed.values()):
            engine.free()
        self._buffers.free()
        self._work.free()

    def _fit(self, plan: Plan) -> Engine:
        return self._fixed.get(plan, self._engine)

    def _shared(self, engine: Engine, batch: int) -> Context:
        """The context for whatever is not recorded."""
        key = (id(engine), engine.profile(batch))
        if key not in self._contexts:
            self._contexts[key] = self._new(engine, batch)
        return self._contexts[key]

    def _new(self, engine: Engine, batch: int, *, recorded: bool = False) -> Context:
        made = engine.context(
            engine.profile(batch),
            self._work.address,
            self._work.size,
            self._stream,
            recorded=recorded,
        )
        self._made.add(made)
        return made


class _Buffers:
    """Memory for inputs and outputs, on the host and on the GPU, that grows as it has to."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Pinned, Memory]] = {}

    def sent(self, name: str, values: Array, stream: Stream) -> int:
        """Start to copy an input; its address on the GPU. Nothing may be under way."""
        pinned, memory = self._place(name, values.nbytes)
        pinned.bytes[: values.nbytes] = values.reshape(-1).view(np.uint8)
        stream.upload(memory, pinned, values.nbytes)
        return memory.address

    def room(self, name: str, size: int) -> int:
        """The address on the GPU of `size` bytes for an output."""
        return self._place(name, size)[1].address

    def fetch(self, name: str, size: int, stream: Stream) -> None:
        """Start to copy an output to the host."""
        pinned, memory = self._place(name, size)
        stream.download(pinned, memory, size)

    def found(self, name: str, size: int) -> Array:
        """A copy of it, once it is there."""
        return self._place(name, size)[0].bytes[:size].copy()

    def free(self) -> None:
        """Give all of it back."""
        for pinned, memory in self._places.values():
            pinned.free()
            memory.free()
        self._places.clear()

    def _place(self, name: str, size: int) -> tuple[Pinned, Memory]:
        held = self._places.get(name)
        if held is not None and held[1].size >= size:
            return held
        if held is not None:
            del self._places[name]
            held[0].free()
            held[1].free()
        with ExitStack() as undo:
            pinned = Pinned(size)
            undo.callback(pinned.free)
            memory = Memory(size)
            undo.pop_all()
        self._places[name] = (pinned, memory)
        return pinned, memory


def _free(name: str, at: int) -> str:
    """What a size that varies is called."""
    return "batch" if at == 0 else f"{name}_{at}"
