"""Inference for galleries: vectors of images and texts, and match scores for re-ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenfold.inference.answers import Answer, answers, reduction
from tokenfold.inference.backend import Sample
from tokenfold.inference.errors import RequestError
from tokenfold.inference.levels import Choice, Selector
from tokenfold.inference.outputs import Vector, positive, vector
from tokenfold.inference.request import Item, ItemResult, Request
from tokenfold.inference.work import total
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher, Gone


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


async def embed_images(
    dispatcher: Dispatcher,
    model: ServedModel,
    images: Sequence[bytes | str],
    choice: Choice | Selector,
    *,
    gone: Gone | None = None,
    priority: int = 0,
) -> list[Embedded | RequestError]:
    """Embed images.

    Args:
        dispatcher: runs the request.
        model: a dual encoder.
        images: encoded images, as bytes or base64; 1 or more, at most as many as may wait.
        choice: the level.
        gone: returns when the caller has gone away.
        priority: of the request.

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
        priority=priority,
    )
    return await _embed(dispatcher, model, request, gone)


async def embed_text(
    dispatcher: Dispatcher, model: ServedModel, text: str, *, gone: Gone | None = None
) -> Embedded:
    """Embed a text.

    Raises:
        EmptyText: the text has no words.
        RequestError: the text cannot be embedded at the moment.
    """
    request = Request(model=model.name, task="embed", texts=[text], items=[Item((), 0)])
    (embedded,) = await _embed(dispatcher, model, request, gone)
    if isinstance(embedded, RequestError):
        raise embedded
    return embedded


async def match_scores(
    dispatcher: Dispatcher,
    model: ServedModel,
    images: Sequence[bytes | str],
    text: str,
    selector: Selector,
    *,
    gone: Gone | None = None,
) -> Matched:
    """Match images with one text.

    Args:
        dispatcher: runs the request.
        model: a model with the task `match`.
        images: encoded images, as bytes or base64; 1 or more, at most as many as may wait.
        text: the text.
        selector: of the level.
        gone: returns when the caller has gone away.

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
    result = await dispatcher.answer(model, request, gone=gone)

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


async def choose(
    dispatcher: Dispatcher, model: ServedModel, selector: Selector, *, images: int = 1
) -> Choice:
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
    return (await dispatcher.plan(model, request)).choice


async def _embed(
    dispatcher: Dispatcher, model: ServedModel, request: Request, gone: Gone | None
) -> list[Embedded | RequestError]:
    result = await dispatcher.answer(model, request, gone=gone)

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        return {"vector": vector(model, output)}

    return [
        answer
        if isinstance(answer, RequestError)
        else Embedded(answer["vector"], answer.get("reduction"), answer["timings_ms"])
        for answer in answers(model, request, result, finish)
    ]


def _together(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        stage: round((max if stage == "queue" else sum)(timing[stage] for timing in timings), 3)
        for stage in timings[0]
    }
