"""Images and texts as vectors, for what is kept and compared: galleries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.requests import Request

from tokenfold.service import running, texts
from tokenfold.service.core import Core
from tokenfold.service.errors import ApiError
from tokenfold.service.results import results
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Choice, Selector
from tokenfold.service.steps import Asking, Item
from tokenfold.service.vectors import Vector, vector


class Embedded(NamedTuple):
    """What became of an image, or of a text.

    Attributes:
        vector: (width,) of length 1.
        reduction: as `schemas.Reduction` describes it; None of a text.
        timings_ms: by stage.
    """

    vector: Vector
    reduction: dict[str, Any] | None
    timings_ms: dict[str, float]


def choose(core: Core, model: Model, selector: Selector, *, images: int = 1) -> Choice:
    """How much to reduce for so many images of one request.

    Raises:
        ApiError: see `running.choose`.
    """
    return running.choose(core, _asking(core, model, [b""] * images), selector)


async def embed_images(
    core: Core,
    model: Model,
    pictures: Sequence[bytes | str],
    choice: Choice,
    *,
    request: Request | None = None,
) -> list[Embedded | ApiError]:
    """Vectors of images, in order; one that fails is its error, and fails alone.

    Args:
        pictures: files, or base64 of them; 1 or more, at most as many as may wait in the queue.
        request: whose caller is watched: when it goes away, so does the work.

    Raises:
        ApiError: none can be embedded now: too many, no place in the queue, or no caller.
    """
    return await _embed(core, _asking(core, model, pictures), choice, request)


async def embed_text(
    core: Core, model: Model, text: str, *, request: Request | None = None
) -> Embedded:
    """The vector of a text.

    Raises:
        ApiError: it is empty, or cannot be embedded now.
    """
    encoded = await texts.encode(model.text, [text], "text")
    asking = Asking.of(model, "embed", (), encoded, [Item((), 0)])
    choice = model.levels.choose(Selector(), "embed")  # which no text looks at
    (found,) = await _embed(core, asking, choice, request)
    if isinstance(found, ApiError):
        raise found
    return found


def _asking(core: Core, model: Model, pictures: Sequence[bytes | str]) -> Asking:
    limit = core.settings.max_pixels
    images = [running.image(data, max_pixels=limit) for data in pictures]
    return Asking.of(model, "embed", images, (), [Item((at,)) for at in range(len(images))])


async def _embed(
    core: Core, asking: Asking, choice: Choice, request: Request | None
) -> list[Embedded | ApiError]:
    arrived = time.perf_counter()
    steps = await running.run(core, asking, choice, request=request)
    found = results(core, steps, width=None, arrived=arrived, finish=_finish)
    return [
        one
        if isinstance(one, ApiError)
        else Embedded(one["vector"], one.get("reduction"), one["timings_ms"])
        for one in found
    ]


def _finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
    (output,) = outputs
    return {"vector": vector(model, output)}
