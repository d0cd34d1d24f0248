"""Graphs on the GPU that take and return host arrays, from any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock

import numpy as np

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buckets import MAX_BATCH, bucket, buckets_up_to, largest_bucket
from tokenfold.runtime.cuda.buffers import Array, BufferPool, RowSpec, RunBuffers
from tokenfold.runtime.cuda.device import CudaError, Stream, free_on_exit
from tokenfold.runtime.cuda.recordings import RecordedRuns
from tokenfold.runtime.cuda.runner import Feeds, Runner


class CudaGraph:
    """A graph whose weights are on the GPU once, for all threads.

    A graph whose inputs are `image` and optionally `plan` runs from a buffer pool: while the graph
    works on one batch, the images of the next are copied. Its batches are padded to buckets, and
    `warm` records each bucket for the given plans. Other graphs, and images of other sizes, run
    one at a time, with the runner's own copies.

    Attributes:
        native: whether the compiled ops run, rather than their portable bodies.
        max_batch_size: maximum number of items in one GPU run; larger batches are split.
        inputs: shape of each input; a dynamic size is a name instead of a number.
    """

    def __init__(
        self,
        open_runner: Callable[[Stream], Runner],
        *,
        size: tuple[int, int] | None = None,
        max_batch_size: int = MAX_BATCH,
    ) -> None:
        """Load the graph.

        Args:
            open_runner: loads a runner that works in the given stream.
            size: usual image size (height, width) in pixels, for a graph that takes several.
            max_batch_size: maximum batch size, 1 or more; rounded down to a bucket.

        Raises:
            CudaError: there is no GPU, or it has too little free memory.
            RuntimeError: `open_runner` failed.
        """
        self.max_batch_size = largest_bucket(max_batch_size)
        self._runs: RecordedRuns | None = None
        self._lock = Lock()
        self._closed = False
        with ExitStack() as stack:
            self._streams = stack.enter_context(ExitStack())
            self._compute_stream = free_on_exit(Stream(), self._streams)
            self._copy_stream = free_on_exit(Stream(), self._streams)
            self._runner = open_runner(self._compute_stream)
            stack.callback(self._free_runner)
            self.native, self.inputs = self._runner.native, self._runner.inputs
            self._image = _image_spec(self.inputs, size)
            # Recordings use the runner's memory, so they are freed before it.
            recordings = stack.enter_context(ExitStack())
            if self._image is not None:
                outputs = _output_specs(self._runner, self._image)
                sizes = (self._image, outputs, self.max_batch_size)
                self._runs = RecordedRuns(self._runner, self._compute_stream, *sizes, recordings)
                self._pool = BufferPool(*sizes, stack)
            stack.callback(self._wait_for_streams)
            self._resources = stack.pop_all()

    @property
    def recorded(self) -> int:
        """Number of runs, each of one plan and one bucket, that are recorded as CUDA graphs."""
        return 0 if self._runs is None else self._runs.recorded

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Return the named outputs, like an ONNX Runtime session.

        Raises:
            CudaError, or an exception of the runner: the run failed. Other runs are not affected
                unless CUDA itself is broken.
        """
        images = feeds.get("image")
        if images is None or not self._can_pool(images):
            with self._exclusive():
                return self._runner.run(names, feeds)
        plan = _plan(feeds.get("plan", ()))
        batches = [
            self._run_batch(names, images[start : start + self.max_batch_size], plan)
            for start in range(0, len(images), self.max_batch_size)
        ]
        if len(batches) == 1:
            return batches[0]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def warm(self, plans: Iterable[Plan]) -> None:
        """Record every bucket for these plans; `()` stands for a graph without a plan.

        Other runs may go on meanwhile. Without warming, the first runs of each bucket allocate
        memory and load kernels.
        """
        plans = [_plan(plan) for plan in plans]
        # The largest bucket first: smaller ones reuse the memory it allocated.
        for size in reversed(buckets_up_to(self.max_batch_size)):
            for plan in plans:
                with self._exclusive():
                    if self._runs is not None:
                        self._runs.record(plan, size)

    def resident(self, images: Array, plan: Plan = ()) -> Callable[[], None]:
        """Prepare a run of images that stay on the GPU, for measuring without copies.

        The returned function starts the run without waiting, any number of times; see `wait`.
        Another run of this graph overwrites the images. The outputs stay on the GPU.

        Args:
            images: (B, H, W, 3) uint8, of the graph's usual size, with 1 <= B <= `max_batch_size`.

        Raises:
            ValueError: the images have another size, or are too many.
        """
        if not self._can_pool(images) or len(images) > self.max_batch_size:
            spec = None if self._image is None else self._image.shape
            raise ValueError(
                f"expected 1 to {self.max_batch_size} images of the graph's usual size {spec}, "
                f"not an array of shape {images.shape}"
            )
        counts, size = _plan(plan), bucket(len(images))
        with self._borrow() as (buffers, runs):
            image_bytes = buffers.upload(images, self._copy_stream)
            with self._lock:
                self._compute_stream.wait_for(buffers.arrived)
                self._compute_stream.copy_on_device(runs.image, buffers.staging, image_bytes)
                runs.record(counts, size)
            self._drain_streams()

        def start() -> None:
            with self._exclusive():
                assert self._runs is not None
                self._runs.start(counts, size)

        return start

    def wait(self) -> None:
        """Wait for all runs that were started."""
        with self._exclusive():
            self._compute_stream.wait()

    def close(self) -> None:
        """Free GPU resources after the runs in flight have ended. Later runs fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._runs is not None:
            self._pool.close()
        with self._lock:
            self._resources.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock on the compute stream.

        Raises:
            CudaError: the graph was closed.
        """
        with self._lock:
            if self._closed:
                raise CudaError("the graph was closed")
            yield

    @contextmanager
    def _borrow(self) -> Iterator[tuple[RunBuffers, RecordedRuns]]:
        """Borrow buffers; if an error occurs, wait for the copies that use them."""
        with self._pool.borrow() as buffers:
            # The pool and the runs are closed together.
            assert self._runs is not None
            try:
                yield buffers, self._runs
            except BaseException:
                self._drain_streams()
                raise

    def _can_pool(self, images: Array) -> bool:
        """Whether images have the size and type of the pooled buffers."""
        spec = self._image
        return (
            spec is not None
            and len(images) > 0
            and images.shape[1:] == spec.shape
            and images.dtype == spec.dtype
        )

    def _run_batch(self, names: Sequence[str], images: Array, plan: Plan) -> list[Array]:
        """Run up to `max_batch_size` images in pooled buffers."""
        stream = self._compute_stream
        with self._borrow() as (buffers, runs):
            image_bytes = buffers.upload(images, self._copy_stream)
            with self._lock:
                stream.wait_for(buffers.arrived)
                # Older images fill the rest of the bucket; their results are ignored.
                stream.copy_on_device(runs.image, buffers.staging, image_bytes)
                runs.start(plan, bucket(len(images)))
                for name in names:
                    buffers.download(name, runs.outputs[name], len(images), stream)
                stream.record(buffers.done)
            buffers.done.wait()
            return [buffers.result(name, len(images)) for name in names]

    def _drain_streams(self) -> None:
        """Wait for copies that were started: the next run with these buffers overwrites them."""
        # Waiting for a stream would invalidate a recording of it, so this holds the lock.
        with self._lock:
            self._wait_for_streams()

    def _wait_for_streams(self) -> None:
        """Wait until the streams are idle or broken."""
        for stream in (self._copy_stream, self._compute_stream):
            with suppress(CudaError):
                stream.wait()

    def _free_runner(self) -> None:
        """Free the runner, before the stream that it works in."""
        self._runner.free()
        runner_ref = weakref.ref(self._runner)
        self._runs = None
        del self._runner
        if runner_ref() is not None:
            # The traceback of a failed run still refers to the runner, so keep its stream.
            self._streams.pop_all()


def _image_spec(
    inputs: Mapping[str, Sequence[int | str]], size: tuple[int, int] | None
) -> RowSpec | None:
    """Return the spec of pooled images; None if the graph takes more than images and a plan."""
    if not {"image"} <= set(inputs) <= {"image", "plan"}:
        return None
    shape = tuple(inputs["image"][1:]) if size is None else (*size, inputs["image"][3])
    static_shape = tuple(side for side in shape if isinstance(side, int))
    return RowSpec(static_shape, np.dtype(np.uint8)) if len(static_shape) == len(shape) else None


def _output_specs(runner: Runner, image: RowSpec) -> dict[str, RowSpec]:
    """Return the spec of every output, found by running one blank image; no plan changes it."""
    feeds: dict[str, Array] = {"image": np.zeros((1, *image.shape), image.dtype)}
    if "plan" in runner.inputs:
        (length,) = runner.inputs["plan"]
        feeds["plan"] = np.zeros(int(length), dtype=np.int64)
    return {
        name: RowSpec(output.shape[1:], output.dtype)
        for name, output in zip(runner.outputs, runner.run(runner.outputs, feeds), strict=True)
    }


def _plan(counts: Iterable[int]) -> Plan:
    return tuple(int(count) for count in counts)
