"""The steps of a request: each image decoded once, embedded once where several items share it, and
each item run as soon as its images are there; a text without an image, at once.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy.typing as npt

from tokenfold.bundle.tasks import Task
from tokenfold.bundle.text import Encoded
from tokenfold.service.errors import ApiError, InternalError
from tokenfold.service.scheduling.backends.backend import PIXELS, TOKENS, Call, Step
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.decoders import Decoders
from tokenfold.service.scheduling.levels import Choice
from tokenfold.service.scheduling.queues import Lane
from tokenfold.service.scheduling.scheduler import Outcome, Ticket
from tokenfold.service.scheduling.work import Size, Work, Works

logger = logging.getLogger(__name__)

# An image's pixels, (H, W, 3) uint8, for a model; called in a decoder thread.
Prepare = Callable[[Model], npt.NDArray[Any]]


class Item(NamedTuple):
    """What is answered by itself.

    Attributes:
        images: which of the request's images it looks at; none of a text by itself.
        text: which of the request's texts it has.
    """

    images: tuple[int, ...]
    text: int | None = None


class Asking(NamedTuple):
    """A request's parts.

    Attributes:
        images: as the model takes them; none where texts are by themselves.
        texts: as the model takes them; none for a task without.
        items: 1 or more. Each image and each text is in one of them at least.
        shared: images that several items look at, and those beside them in a pair.
    """

    model: Model
    task: Task
    images: Sequence[Prepare]
    texts: Sequence[Encoded]
    items: Sequence[Item]
    shared: Sequence[int]

    @classmethod
    def of(
        cls,
        model: Model,
        task: Task,
        images: Sequence[Prepare],
        texts: Sequence[Encoded],
        items: Sequence[Item],
    ) -> Asking:
        """See the attributes."""
        shared: dict[int, None] = {}
        if texts:
            uses = Counter(image for item in items for image in item.images)
            for item in items:
                if any(uses[image] > 1 for image in item.images):
                    shared |= dict.fromkeys(item.images)
        return cls(model, task, images, texts, items, tuple(shared))

    def step(self, item: Item) -> Step:
        """An item's last one."""
        if not item.images:
            return "read"
        return "fuse" if any(image in self.shared for image in item.images) else "answer"

    def size(self, item: Item, shape: tuple[int, int] | None = None) -> Size | None:
        """Of an item with an image of (height, width) pixels, by default of the nominal ones."""
        nominal = self.model.levels.nominal
        if nominal is None or item.text is None:
            return None
        image = nominal.image if shape is None else self.model.image_tokens(shape)
        return Size(len(self.texts[item.text].ids), image)

    def reading(self, item: Item) -> Works:
        """Of an item without images."""
        assert item.text is not None  # or there is nothing to it
        tokens = len(self.texts[item.text].ids)
        return (Work.of_text(self.model.manifest.workload, tokens),)

    def costs(self, choice: Choice) -> list[float]:
        """Expected seconds of each run, for images of the nominal size: the items, then what
        embeds the shared images.
        """
        model = self.model
        # A matrix has hundreds of items, few lengths, and is asked of each level.
        known: dict[tuple[int | None, Step], float] = {}
        found = []
        for item in self.items:
            kind = (item.text, self.step(item))
            if kind not in known:
                works = (
                    (model.levels.fit(choice, self.size(item)).work,) * len(item.images)
                    if item.images
                    else self.reading(item)
                )
                known[kind] = model.costs.seconds(works, kind[1])
            found.append(known[kind])
        return found + [model.costs.seconds((), "embed")] * len(self.shared)


class Steps:
    """A request on its way.

    Attributes:
        decoded: of each image, when its decoding began and ended, in seconds of perf_counter.
        shapes: of each image that was decoded, (height, width) of its pixels.
        works: of each item that was queued.
    """

    def __init__(self, asking: Asking, choice: Choice, ticket: Ticket, *, slots: bool) -> None:
        """Args:
        ticket: with places for what `Asking.costs` lists.
        """
        self.asking = asking
        self.choice = choice
        self.ticket = ticket
        self.slots = slots
        images, items = len(asking.images), asking.items
        self.decoded = [(0.0, 0.0)] * images
        self.shapes: list[tuple[int, int]] = [(0, 0)] * images
        self.works: list[Works] = [()] * len(items)
        self._embeds = {image: len(items) + at for at, image in enumerate(asking.shared)}
        self._users: list[list[int]] = [[] for _ in range(images)]
        for index, item in enumerate(items):
            for image in item.images:
                self._users[image].append(index)
        self._found: list[npt.NDArray[Any] | None] = [None] * images
        # A second image may be ready, or fail, in another thread at the same time.
        self._lock = threading.Lock()
        # Images that an item still waits for; 0 when it was submitted, -1 when it has failed.
        self._missing = [len(item.images) for item in items]

    def start(self, decoders: Decoders) -> None:
        """Have the images decoded, and texts by themselves read; the rest follows."""
        for index, item in enumerate(self.asking.items):
            if not item.images:
                self._read(index)
        for image in range(len(self.asking.images)):
            # The context carries the request's id to the log.
            context = contextvars.copy_context()
            decoders.submit(partial(context.run, self._decode, image))

    def embedding(self, image: int) -> Outcome | None:
        """What came of embedding an image; None if that was no step of its own."""
        at = self._embeds.get(image)
        return None if at is None else self.ticket.outcomes[at]

    def _decode(self, image: int) -> None:
        if self.ticket.cancelled:
            return
        asking, embed = self.asking, self._embeds.get(image)
        begun = time.perf_counter()
        try:
            pixels = asking.images[image](asking.model)
            self.decoded[image] = (begun, time.perf_counter())
            shape = self.shapes[image] = (pixels.shape[0], pixels.shape[1])
            if embed is None:
                self._ready(image, pixels)
                return
            call = Call("embed", asking.task, (), (shape,))
            self.ticket.submit(
                embed,
                Lane(asking.model.backend, call),
                {PIXELS[0]: pixels},
                works=(self._work(image),),
                then=partial(self._embedded, image),
            )
        except ApiError as error:
            self._fail(image, error)
        except BaseException:
            logger.exception("an image could not be prepared")
            self._fail(image, InternalError())

    def _embedded(self, image: int, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self._fail_items(image, outcome)
        else:
            self._ready(image, outcome.output[TOKENS[0]])

    def _ready(self, image: int, found: npt.NDArray[Any]) -> None:
        """An image's pixels, or its tokens where it is shared, are there."""
        with self._lock:
            self._found[image] = found
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
                self.ticket.fail(index, InternalError())

    def _fail(self, image: int, error: ApiError) -> None:
        """An image that is neither ready nor being embedded never will be."""
        embed = self._embeds.get(image)
        if embed is not None:
            self.ticket.fail(embed, error)
        self._fail_items(image, error)

    def _fail_items(self, image: int, error: ApiError) -> None:
        with self._lock:
            failed = [index for index in self._users[image] if self._missing[index] > 0]
            for index in failed:
                self._missing[index] = -1
        for index in failed:
            self.ticket.fail(index, error)

    def _work(self, image: int) -> Work:
        """Of an image with the first text that it is asked about: the embedding is the same."""
        item = self.asking.items[self._users[image][0]]
        size = self.asking.size(item, self.shapes[image])
        return self.asking.model.levels.fit(self.choice, size).work

    def _read(self, index: int) -> None:
        asking = self.asking
        item = asking.items[index]
        assert item.text is not None  # or there is nothing to it
        works = self.works[index] = asking.reading(item)
        lane = Lane(asking.model.backend, Call("read", asking.task, (), ()))
        self.ticket.submit(index, lane, {"input_ids": asking.texts[item.text].ids}, works=works)

    def _submit(self, index: int) -> None:
        asking = self.asking
        item, model = asking.items[index], asking.model
        step = asking.step(item)
        fits = [
            model.levels.fit(self.choice, asking.size(item, self.shapes[image]))
            for image in item.images
        ]
        works = self.works[index] = tuple(fit.work for fit in fits)
        call = Call(
            step,
            asking.task,
            tuple(fit.plan for fit in fits),
            tuple(self.shapes[image] for image in item.images),
        )
        names = TOKENS if step == "fuse" else PIXELS
        sample: dict[str, npt.NDArray[Any]] = {}
        for name, image in zip(names, item.images, strict=False):
            found = self._found[image]
            assert found is not None  # the item is complete
            sample[name] = found
        if item.text is not None:
            sample["input_ids"] = asking.texts[item.text].ids
        self.ticket.submit(index, Lane(model.backend, call), sample, works=works, slots=self.slots)
