"""A request matched to its model: encoded texts, shared images, and the run of each item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tokenfold.bundle.text import Encoded
from tokenfold.inference.backend import PIXELS, TOKENS, Call, Sample, Shape, Step
from tokenfold.inference.levels import Choice
from tokenfold.inference.model import Model
from tokenfold.inference.request import Item, Request
from tokenfold.inference.texts import encode
from tokenfold.inference.work import Size, Work, Works

Seconds = Callable[[Works, Step], float]
"""Expected duration of a run of one item."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for its images.

    Attributes:
        model: the model that answers it.
        request: the request.
        texts: its texts as token ids.
        shared: indices of the images that are embedded once, because several items look at them,
            and of those beside them in a pair.
    """

    model: Model
    request: Request
    texts: Sequence[Encoded]
    shared: Sequence[int]

    @classmethod
    def of(cls, model: Model, request: Request) -> Prepared:
        """Prepare a request.

        Raises:
            EmptyText: a text has no words.
        """
        texts = encode(model.text, request.texts, request.text_field) if request.texts else ()
        return cls(model, request, texts, _shared(request))

    @property
    def runs(self) -> int:
        """Number of runs: of the items, and of the shared images."""
        return len(self.request.items) + len(self.shared)

    def embed_call(self, shape: Shape) -> Call:
        """Return the call that embeds a shared image."""
        return Call("embed", self.request.task, (), (shape,))

    def call(self, item: Item, choice: Choice, shapes: Sequence[Shape]) -> tuple[Call, Works]:
        """Return an item's call, and its cost.

        Args:
            item: an item of the request.
            choice: the level.
            shapes: of the item's images.
        """
        step, task = self._step(item), self.request.task
        if step == "read":
            return Call(step, task, (), ()), self._reading(item)
        fits = [self.model.levels.fit(choice, self._size(item, shape)) for shape in shapes]
        plans = tuple(fit.plan for fit in fits)
        return Call(step, task, plans, tuple(shapes)), tuple(fit.work for fit in fits)

    def embedding_work(self, image: int, choice: Choice, shape: Shape) -> Work:
        """Return the cost of an image with the first text it is paired with.

        The embedding is a part of it, and the same for every text.
        """
        item = next(item for item in self.request.items if image in item.images)
        return self.model.levels.fit(choice, self._size(item, shape)).work

    def sample(self, item: Item, inputs: Mapping[int, npt.NDArray[Any]]) -> Sample:
        """Return an item's inputs.

        Args:
            item: an item of the request.
            inputs: by the index of an image its pixels, or its tokens if it is shared.
        """
        names = TOKENS if self._step(item) == "fuse" else PIXELS
        sample = {name: inputs[image] for name, image in zip(names, item.images, strict=False)}
        if item.text is not None:
            sample["input_ids"] = self.texts[item.text].ids
        return sample

    def costs(self, choice: Choice, seconds: Seconds) -> list[float]:
        """Return the expected duration of each run for images of the nominal size.

        The items come first, then the embeddings of the shared images.
        """
        # A matrix has hundreds of items but few text lengths, and its cost is asked for each level.
        known: dict[tuple[int | None, Step], float] = {}
        costs = []
        for item in self.request.items:
            key = (item.text, self._step(item))
            if key not in known:
                known[key] = seconds(self._nominal_works(item, choice), key[1])
            costs.append(known[key])
        return costs + [seconds((), "embed")] * len(self.shared)

    def _nominal_works(self, item: Item, choice: Choice) -> Works:
        if not item.images:
            return self._reading(item)
        return (self.model.levels.fit(choice, self._size(item)).work,) * len(item.images)

    def _step(self, item: Item) -> Step:
        """Return the step that yields the item's answer."""
        if not item.images:
            return "read"
        return "fuse" if any(image in self.shared for image in item.images) else "answer"

    def _size(self, item: Item, shape: Shape | None = None) -> Size | None:
        """Return the tokens of an item's text and image; None for a task without texts."""
        nominal = self.model.levels.nominal
        if nominal is None or item.text is None:
            return None
        image = nominal.image if shape is None else self.model.image_tokens(shape)
        return Size(len(self.texts[item.text].ids), image)

    def _reading(self, item: Item) -> Works:
        assert item.text is not None  # an item has images or a text
        tokens = len(self.texts[item.text].ids)
        return (Work.of_text(self.model.manifest.workload, tokens),)


def _shared(request: Request) -> tuple[int, ...]:
    if not request.texts:
        return ()
    uses = Counter(image for item in request.items for image in item.images)
    shared: dict[int, None] = {}
    for item in request.items:
        if any(uses[image] > 1 for image in item.images):
            shared |= dict.fromkeys(item.images)
    return tuple(shared)
