"""Inference for galleries: vectors of images and texts, and match scores for re-ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenfold.inference.answers import Answer, answers, reduction
from tokenfold.inference.backend import Sample
from tokenfold.inference.errors import RequestError
from tokenfold.inference.levels import Choice, Selector
from tokenfold.inference.outputs import Vector, positive, vector
from tokenfold.inference.request import Item, ItemResult, Request, Result
from tokenfold.inference.work import total
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Disconnect, Dispatcher


class Embedded(NamedTuple):
    """The embedding of an image or a text.

    Attributes:
        vector: (width,) of length 1.
        reduction: the level that was used, and its cost; None for a text.
        timings_ms: milliseconds by stage.
    """

    vector: Vector
    reduction: dict[str, Any] | None
    timings_ms: dict[str, float]


class Matched(NamedTuple):
    """Match scores of several images with one text.

    Attributes:
        scores: 0 to 1, in the order of the images; an error for one that failed.
        reduction: the level that was used, and the cost of all images together.
        timings_ms: milliseconds by stage: sums over the images, and the longest `queue`.
    """

    scores: list[float | RequestError]
    reduction: dict[str, Any]
    timings_ms: dict[str, float]


class GalleryInference:
    """Embeds and matches images and texts for one caller of a gallery.

    Attributes:
        dispatcher: runs the requests.
    """

    def __init__(
        self, dispatcher: Dispatcher, *, disconnect: Disconnect | None = None, priority: int = 0
    ) -> None:
        """Create the inference of one caller.

        Args:
            dispatcher: runs the requests.
            disconnect: returns when the caller has disconnected; None if it cannot disconnect.
            priority: priority of embedding images.
        """
        self.dispatcher = dispatcher
        self._disconnect = disconnect
        self._priority = priority

    async def embed_images(
        self,
        model: ServedModel,
        images: Sequence[bytes | str],
        choice: Choice | Selector,
    ) -> list[Embedded | RequestError]:
        """Embed images.

        Args:
            model: a dual encoder.
            images: encoded images, as bytes or base64; 1 or more, at most as many as may wait.
            choice: the level.

        Returns:
            The embedding of each image, in order; an error for one that failed.

        Raises:
            RequestError: no image can be embedded at the moment.
        """
        request = Request(
            model=model.name,
            task="embed",
            images=images,
            items=[Item((index,)) for index in range(len(images))],
            selector=choice,
            priority=self._priority,
        )
        return await self._embed(model, request)

    async def embed_text(self, model: ServedModel, text: str) -> Embedded:
        """Embed a text.

        Raises:
            EmptyText: the text has no words.
            RequestError: the text cannot be embedded at the moment.
        """
        request = Request(model=model.name, task="embed", texts=[text], items=[Item((), 0)])
        (embedded,) = await self._embed(model, request)
        if isinstance(embedded, RequestError):
            raise embedded
        return embedded

    async def match_scores(
        self,
        model: ServedModel,
        images: Sequence[bytes | str],
        text: str,
        selector: Selector,
    ) -> Matched:
        """Match images with one text.

        Args:
            model: a model with the task `match`.
            images: encoded images, as bytes or base64; 1 or more, at most as many as may wait.
            text: the text.
            selector: of the level.

        Raises:
            RequestError: no image can be matched at the moment, or every image failed.
        """
        request = Request(
            model=model.name,
            task="match",
            images=images,
            texts=[text],
            items=[Item((index,), 0) for index in range(len(images))],
            selector=selector,
        )
        result = await self._run(model, request)

        def finish(outputs: Sequence[Sample]) -> Answer:
            (output,) = outputs
            return {"score": positive(model, "match", output["logits"])}

        listed = answers(model, request, result, finish)
        answered = [answer for answer in listed if not isinstance(answer, RequestError)]
        if not answered:
            raise next(answer for answer in listed if isinstance(answer, RequestError))
        works = [
            work
            for answer, item in zip(listed, result.items, strict=True)
            if not isinstance(answer, RequestError) and isinstance(item, ItemResult)
            for work in item.works
        ]
        return Matched(
            [answer if isinstance(answer, RequestError) else answer["score"] for answer in listed],
            reduction(model, result.choice, total(works)),
            _together([answer["timings_ms"] for answer in answered]),
        )

    async def choose(self, model: ServedModel, selector: Selector, *, images: int = 1) -> Choice:
        """Return the level for a number of images of one request.

        Raises:
            RequestError: see `Dispatcher.plan`.
        """
        request = Request(
            model=model.name,
            task="embed",
            images=[b""] * images,
            items=[Item((index,)) for index in range(images)],
            selector=selector,
        )
        return (await self.dispatcher.plan(model, request)).choice

    async def _embed(self, model: ServedModel, request: Request) -> list[Embedded | RequestError]:
        result = await self._run(model, request)

        def finish(outputs: Sequence[Sample]) -> Answer:
            (output,) = outputs
            return {"vector": vector(model, output)}

        return [
            answer
            if isinstance(answer, RequestError)
            else Embedded(answer["vector"], answer.get("reduction"), answer["timings_ms"])
            for answer in answers(model, request, result, finish)
        ]

    async def _run(self, model: ServedModel, request: Request) -> Result:
        return await self.dispatcher.answer(model, request, disconnect=self._disconnect)


def _together(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        stage: round((max if stage == "queue" else sum)(timing[stage] for timing in timings), 3)
        for stage in timings[0]
    }
