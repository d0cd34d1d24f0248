"""A request on its way: images decoded, shared images embedded, and items run.

Each image is decoded once, and embedded once where several items share it. An item runs as soon as
its images are ready; a text without an image runs at once.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy.typing as npt

from tokenfold.inference import images
from tokenfold.inference.backend import PIXELS, TOKENS, Backend, Shape
from tokenfold.inference.errors import InternalError, RequestError
from tokenfold.inference.levels import Choice
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import ItemResult
from tokenfold.inference.work import Works
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.scheduler import Scheduler
from tokenfold.service.scheduling.ticket import Job, Outcome, Ticket

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[Any]


class Decoders:
    """A pool of threads that decode images.

    An executor's futures, which nobody would read, cost more than handing over a small image.
    """

    def __init__(self, count: int) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"decoder-{i}", daemon=True)
            for i in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, after what was submitted before."""
        self._work.put(work)

    def stop(self) -> None:
        """End the threads after what was submitted."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # or the last image would be kept alive until the next one


class Execution:
    """The state of a request that has been admitted."""

    def __init__(
        self,
        prepared: Prepared,
        choice: Choice,
        backend: Backend,
        scheduler: Scheduler,
        ticket: Ticket,
    ) -> None:
        """Prepare the execution.

        Args:
            prepared: the request, matched to its model.
            choice: the level.
            backend: what runs the model.
            scheduler: runs the items.
            ticket: of the scheduler, for the runs of `Prepared.costs`.
        """
        self._prepared = prepared
        self._choice = choice
        self._backend = backend
        self._scheduler = scheduler
        self._ticket = ticket
        self._items = prepared.request.items
        images, items = len(prepared.request.images), len(self._items)
        self._decode_seconds = [0.0] * images
        self._shapes: list[Shape] = [(0, 0)] * images
        self._works: list[Works] = [()] * items
        self._embed_index = {image: items + i for i, image in enumerate(prepared.shared)}
        self._users: list[list[int]] = [[] for _ in range(images)]
        for index, item in enumerate(self._items):
            for image in item.images:
                self._users[image].append(index)
        self._inputs: dict[int, npt.NDArray[Any]] = {}
        # The images of a pair may become ready, or fail, in two threads at the same time.
        self._lock = threading.Lock()
        # Images that an item still waits for; 0 once it is submitted, -1 once it has failed.
        self._missing = [len(item.images) for item in self._items]

    def start(self, decoders: Decoders, max_pixels: int) -> None:
        """Submit the texts without images, and the images to the decoders."""
        for index, item in enumerate(self._items):
            if not item.images:
                self._submit(index)
        for image in range(len(self._prepared.request.images)):
            # The context carries the request's id to the log.
            context = contextvars.copy_context()
            decoders.submit(partial(context.run, self._decode, image, max_pixels))

    def results(self) -> list[ItemResult | RequestError | None]:
        """Return the result of each item; None for one that is not finished."""
        return [self._result(index) for index in range(len(self._items))]

    def _result(self, index: int) -> ItemResult | RequestError | None:
        outcome = self._ticket.outcomes[index]
        if outcome is None or isinstance(outcome, RequestError):
            return outcome
        images = self._items[index].images
        return ItemResult(
            output=outcome.output,
            works=self._works[index],
            shapes=tuple(self._shapes[image] for image in images),
            batch_size=outcome.batch_size,
            decode_seconds=sum(self._decode_seconds[image] for image in images),
            embed_seconds=sum(self._embed_seconds(image) for image in images),
            run_seconds=outcome.seconds,
            ended=outcome.ended,
        )

    def _embed_seconds(self, image: int) -> float:
        index = self._embed_index.get(image)
        outcome = None if index is None else self._ticket.outcomes[index]
        return 0.0 if outcome is None or isinstance(outcome, RequestError) else outcome.seconds

    def _decode(self, image: int, max_pixels: int) -> None:
        if self._ticket.cancelled:
            return
        prepared, begun = self._prepared, time.perf_counter()
        try:
            pixels = images.decode(
                prepared.request.images[image],
                prepared.model.manifest.preprocess,
                max_pixels=max_pixels,
            )
            self._decode_seconds[image] = time.perf_counter() - begun
            self._shapes[image] = (pixels.shape[0], pixels.shape[1])
            if image in self._embed_index:
                self._embed(image, pixels)
            else:
                self._ready(image, pixels)
        except RequestError as error:
            self._fail(image, error)
        except BaseException:
            logger.exception("an image could not be prepared")
            self._fail(image, InternalError())

    def _embed(self, image: int, pixels: Pixels) -> None:
        prepared, shape = self._prepared, self._shapes[image]
        job = Job(
            ticket=self._ticket,
            index=self._embed_index[image],
            lane=Lane(self._backend, prepared.embed_call(shape)),
            sample={PIXELS[0]: pixels},
            works=(prepared.embedding_work(image, self._choice, shape),),
            on_outcome=partial(self._embedded, image),
        )
        self._scheduler.submit(job)

    def _embedded(self, image: int, outcome: Outcome) -> None:
        if isinstance(outcome, RequestError):
            self._fail_items(image, outcome)
        else:
            self._ready(image, outcome.output[TOKENS[0]])

    def _ready(self, image: int, inputs: npt.NDArray[Any]) -> None:
        """Store an image's pixels or tokens, and submit the items that waited for it alone."""
        with self._lock:
            self._inputs[image] = inputs
            complete = []
            for index in self._users[image]:
                if self._missing[index] > 0:
                    self._missing[index] -= 1
                    if self._missing[index] == 0:
                        complete.append(index)
        for index in complete:
            try:
                self._submit(index)
            except BaseException:
                logger.exception("an item could not be prepared")
                self._scheduler.fail(self._ticket, index, InternalError())

    def _submit(self, index: int) -> None:
        item = self._items[index]
        shapes = [self._shapes[image] for image in item.images]
        call, works = self._prepared.call(item, self._choice, shapes)
        self._works[index] = works
        job = Job(
            ticket=self._ticket,
            index=index,
            lane=Lane(self._backend, call),
            sample=self._prepared.sample(item, self._inputs),
            works=works,
            slots=self._prepared.request.slots and call.step != "read",
        )
        self._scheduler.submit(job)

    def _fail(self, image: int, error: RequestError) -> None:
        """Fail an image that cannot be decoded, and the items that need it."""
        index = self._embed_index.get(image)
        if index is not None:
            self._scheduler.fail(self._ticket, index, error)
        self._fail_items(image, error)

    def _fail_items(self, image: int, error: RequestError) -> None:
        with self._lock:
            failed = [index for index in self._users[image] if self._missing[index] > 0]
            for index in failed:
                self._missing[index] = -1
        for index in failed:
            self._scheduler.fail(self._ticket, index, error)
