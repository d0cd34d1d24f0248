"""The way that the requests of every task go: choose, take places, decode, run, answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenfold.bundle.tasks import Task
from tokenfold.service import running, texts
from tokenfold.service.api.schemas.inference import Asked
from tokenfold.service.core import Core
from tokenfold.service.errors import InvalidRequest
from tokenfold.service.metrics import Track
from tokenfold.service.results import Finish, respond, results
from tokenfold.service.steps import Asking, Item


def check_count(core: Core, what: str, count: int) -> None:
    """Whether a request may have so many of something.

    Raises:
        InvalidRequest: it may not.
    """
    most = core.settings.max_items
    if count > most:
        raise InvalidRequest(f"A request has at most {most} {what}; this one has {count}.")


async def answer(
    core: Core,
    request: Request,
    track: Track,
    *,
    task: Task,
    asked: Asked,
    pictures: Sequence[bytes | str],
    items: Sequence[Item],
    finish: Finish,
    words: Sequence[str] = (),
    field: str = "",
    width: int | None = None,
    arrived: float | None = None,
) -> Response:
    """Do a request.

    Args:
        track: is told the model, level and outcome.
        pictures: its images; 1 or more, unless its texts are by themselves.
        items: what is answered, each by itself; 1 or more.
        finish: makes the fields that the task's result adds to `schemas.Result`.
        words: its texts, and `field` their name in the request; none for a task without.
        width: items of a result, in a matrix; None where each item is a result by itself.
        arrived: when the request did, in seconds of perf_counter; by default now.

    Raises:
        ApiError: the request as a whole cannot be answered, or the only item failed.
    """
    now = time.perf_counter()
    arrived = now if arrived is None else arrived
    settings = core.settings
    check_count(core, "images", len(pictures))
    check_count(core, "texts", len(words))
    model = core.catalog.find(asked.model, task)
    track.model = model.name
    asking = Asking.of(
        model,
        task,
        [running.image(data, max_pixels=settings.max_pixels) for data in pictures],
        await texts.encode(model.text, words, field) if words else (),
        items,
    )
    spent = now - arrived
    choice = running.choose(core, asking, asked.selector, spent=spent)
    track.level = choice.level
    slots = "slots" in asked.include
    steps = await running.run(
        core,
        asking,
        choice,
        slots=slots,
        request=request,
        within=settings.request_timeout - spent,
    )
    found = results(core, steps, width=width, arrived=arrived, finish=finish)
    extra: Mapping[str, Any] = {}
    if width is not None:
        extra = {"texts": [texts.describe(text, pieces=slots) for text in asking.texts]}
    return respond(model, found, track, extra)
