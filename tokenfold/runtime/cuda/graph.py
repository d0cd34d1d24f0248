"""A graph on the GPU, run like one on the CPU: arrays in, arrays out, from any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buckets import MOST, bucket, largest, up_to
from tokenfold.runtime.cuda.device import CudaError, Stream, kept
from tokenfold.runtime.cuda.lanes import Array, Lane, Lanes, Rows
from tokenfold.runtime.cuda.program import Program
from tokenfold.runtime.cuda.runner import Feeds, Runner


class CudaGraph:
    """One graph, and its weights on the GPU once.

    A graph whose inputs are `image` and perhaps `plan` runs in lanes: while it works on one batch,
    the images of the next are copied. Its batches are padded to buckets, each of which is recorded
    for the plans that `warm` is told. Other graphs, and images of other sizes, run one at a time
    with the runner's own copies.

    Attributes:
        native: whether the compiled ops run, rather than their portable bodies.
        max_batch_size: maximum items of one run on the GPU; larger batches are split.
        inputs: the shape of each; a size that is free has a name instead of a number.
    """

    def __init__(
        self,
        opened: Callable[[Stream], Runner],
        *,
        size: tuple[int, int] | None = None,
        max_batch_size: int = MOST,
    ) -> None:
        """Load the graph.

        Args:
            opened: loads what runs it, in the stream that it is given.
            size: (height, width) of most images, in pixels, for a graph that takes several.
            max_batch_size: 1 or more; rounded down to a bucket.

        Raises:
            CudaError: there is no GPU, or not so much memory in it.
            RuntimeError: of `opened`.
        """
        self.max_batch_size = largest(max_batch_size)
        self._program: Program | None = None
        self._lock = Lock()
        self._closed = False
        with ExitStack() as held:
            self._streams = held.enter_context(ExitStack())
            self._work = kept(Stream(), self._streams)
            self._copies = kept(Stream(), self._streams)
            self._runner = opened(self._work)
            held.callback(self._forget)
            self.native, self.inputs = self._runner.native, self._runner.inputs
            self._image = _image(self.inputs, size)
            # Given back before the runner, whose memory recordings use.
            recordings = held.enter_context(ExitStack())
            if self._image is not None:
                outputs = _outputs(self._runner, self._image)
                common = (self._image, outputs, self.max_batch_size)
                self._program = Program(self._runner, self._work, *common, recordings)
                self._lanes = Lanes(*common, held)
            held.callback(self._rest)
            self._held = held.pop_all()

    @property
    def recorded(self) -> int:
        """How many runs, each of a plan and a bucket, are recorded as CUDA graphs."""
        return 0 if self._program is None else self._program.recorded

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """The outputs of these names, like a session's of ONNX Runtime.

        Raises:
            CudaError, or what the runner raises: the run failed. Others go on if CUDA does.
        """
        images = feeds.get("image")
        if images is None or not self._fits(images):
            with self._opened():
                return self._runner.run(names, feeds)
        plan = _plan(feeds.get("plan", ()))
        pieces = [
            self._piece(names, images[at : at + self.max_batch_size], plan)
            for at in range(0, len(images), self.max_batch_size)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def warm(self, plans: Iterable[Plan]) -> None:
        """Record every bucket for these plans; `()` for a graph without a plan.

        Runs go on meanwhile. Without this the first of each bucket take memory and load kernels.
        """
        wanted = [_plan(plan) for plan in plans]
        # The largest first: the others find room in the memory that it took.
        for size in reversed(up_to(self.max_batch_size)):
            for plan in wanted:
                with self._opened():
                    if self._program is not None:
                        self._program.record(plan, size)

    def resident(self, images: Array, plan: Plan = ()) -> Callable[[], None]:
        """A run of these images that copies nothing, to be started any number of times.

        What it returns starts it, and does not wait; see `wait`. Only to measure: another run of
        this graph puts other images in their place, and what comes out stays on the GPU.

        Args:
            images: (B, H, W, 3), 1 to `most` of the usual size.

        Raises:
            ValueError: images of another size, or too many.
        """
        if not self._fits(images) or len(images) > self.max_batch_size:
            raise ValueError(f"expected up to {self.max_batch_size} images of the graph's own size")
        own, size = _plan(plan), bucket(len(images))
        with self._lane() as (lane, program):
            sent = lane.send(images, self._copies)
            with self._lock:
                self._work.wait_for(lane.arrived)
                self._work.move(program.image, lane.staging, sent)
                program.record(own, size)
            self._settle()

        def start() -> None:
            with self._opened():
                assert self._program is not None
                self._program.start(own, size)

        return start

    def wait(self) -> None:
        """Until all runs that were started are done."""
        with self._opened():
            self._work.wait()

    def close(self) -> None:
        """Give back what is on the GPU, once runs in flight are done. Later ones fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._program is not None:
            self._lanes.close()
        with self._lock:
            self._held.close()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Alone with the stream.

        Raises:
            CudaError: the graph was closed.
        """
        with self._lock:
            if self._closed:
                raise CudaError("the graph was closed")
            yield

    @contextmanager
    def _lane(self) -> Iterator[tuple[Lane, Program]]:
        """A lane, in which nothing is under way at the end even if something failed."""
        with self._lanes.one() as lane:
            # As long as there are lanes.
            assert self._program is not None
            try:
                yield lane, self._program
            except BaseException:
                self._settle()
                raise

    def _fits(self, images: Array) -> bool:
        """Whether images can run in lanes."""
        rows = self._image
        return (
            rows is not None
            and len(images) > 0
            and images.shape[1:] == rows.shape
            and images.dtype == rows.dtype
        )

    def _piece(self, names: Sequence[str], images: Array, plan: Plan) -> list[Array]:
        """Run up to `most` images in a lane."""
        with self._lane() as (lane, program):
            sent = lane.send(images, self._copies)
            with self._lock:
                self._work.wait_for(lane.arrived)
                # The rest of the bucket is whatever images were there before.
                self._work.move(program.image, lane.staging, sent)
                program.start(plan, bucket(len(images)))
                for name in names:
                    lane.fetch(name, program.outputs[name], len(images), self._work)
                self._work.record(lane.done)
            lane.done.wait()
            return [lane.found(name, len(images)) for name in names]

    def _settle(self) -> None:
        """Let copies that were started end, for the lane's next run would write over them."""
        # Under the lock, because to wait for a stream spoils a recording of it.
        with self._lock:
            self._rest()

    def _rest(self) -> None:
        """Until the streams are idle, or broken."""
        for stream in (self._copies, self._work):
            with suppress(CudaError):
                stream.wait()

    def _forget(self) -> None:
        """Let the runner go, before the stream that it works in."""
        self._runner.free()
        runner_left = weakref.ref(self._runner)
        self._program = None
        del self._runner
        if runner_left() is not None:
            # The traceback of a failed run still holds it: its stream is never given back then.
            self._streams.pop_all()


def _image(inputs: Mapping[str, Sequence[int | str]], size: tuple[int, int] | None) -> Rows | None:
    """What the graph takes in lanes, or None if it takes more than images and a plan."""
    if not {"image"} <= set(inputs) <= {"image", "plan"}:
        return None
    own = tuple(inputs["image"][1:]) if size is None else (*size, inputs["image"][3])
    fixed = tuple(side for side in own if isinstance(side, int))
    return Rows(fixed, np.dtype(np.uint8)) if len(fixed) == len(own) else None


def _outputs(runner: Runner, image: Rows) -> dict[str, Rows]:
    """The rows of every output, of whatever plan, as a run of one blank image has them."""
    feeds: dict[str, Array] = {"image": np.zeros((1, *image.shape), image.dtype)}
    if "plan" in runner.inputs:
        (length,) = runner.inputs["plan"]
        feeds["plan"] = np.zeros(int(length), dtype=np.int64)
    return {
        name: Rows(found.shape[1:], found.dtype)
        for name, found in zip(runner.outputs, runner.run(runner.outputs, feeds), strict=True)
    }


def _plan(counts: Iterable[int]) -> Plan:
    return tuple(int(count) for count in counts)
