"""The way that the requests of every task go: choose, take places, decode, run, answer."""

from __future__ import annotations

import asyncio
import binascii
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from models.tasks import Task
from service import images, texts
from service.catalog import Model
from service.engine import Engine
from service.errors import Abandoned, ImageError, InvalidRequest
from service.levels import Choice
from service.metrics import Track
from service.results import Finish, respond, results
from service.schemas import Asked
from service.steps import Asking, Item, Prepare, Steps

# Seconds before a request looks whether its caller is still there.
_UNWATCHED = 0.1


def image(data: bytes | str, *, max_pixels: int) -> Prepare:
    """An image: bytes, or base64 of them, perhaps as a data URL."""

    def prepare(model: Model) -> npt.NDArray[Any]:
        raw = data if isinstance(data, bytes) else _unbase64(data)
        return images.decode(raw, model.manifest.preprocess, max_pixels=max_pixels)

    return prepare


def _unbase64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ImageError("The image is not base64.") from error


def check_count(engine: Engine, what: str, count: int) -> None:
    """Whether a request may have so many of something.

    Raises:
        InvalidRequest: it may not.
    """
    most = engine.settings.max_items
    if count > most:
        raise InvalidRequest(f"A request has at most {most} {what}; this one has {count}.")


async def answer(
    engine: Engine,
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
) -> Response:
    """Do a request.

    Args:
        track: is told the model, level and outcome.
        pictures: its images; 1 or more.
        items: what is answered, each by itself; 1 or more.
        finish: makes the fields that the task's result adds to `schemas.Result`.
        words: its texts, and `field` their name in the request; none for a task without.
        width: items of a result, in a matrix; None where each item is a result by itself.

    Raises:
        ApiError: the request as a whole cannot be answered, or the only item failed.
    """
    arrived = time.perf_counter()
    settings = engine.settings
    check_count(engine, "images", len(pictures))
    check_count(engine, "texts", len(words))
    model = engine.catalog.find(asked.model, task)
    track.model = model.name
    limit = settings.max_pixels
    asking = Asking.of(
        model,
        task,
        [image(data, max_pixels=limit) for data in pictures],
        await texts.encode(model.text, words, field) if words else (),
        items,
    )
    choice, costs = _choose(engine, asking, asked)
    track.level = choice.level

    settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ticket = engine.scheduler.admit(costs, within=settings.request_timeout, done=_waker(settled))
    slots = "slots" in asked.include
    steps = Steps(asking, choice, ticket, slots=slots)
    try:
        steps.start(engine.decoders)
        await _wait(request, settled, settings.request_timeout)
    finally:
        ticket.cancel()
    found = results(engine, steps, width=width, arrived=arrived, finish=finish)
    extra: Mapping[str, Any] = {}
    if width is not None:
        extra = {"texts": [texts.describe(text, pieces=slots) for text in asking.texts]}
    return respond(model, found, track, extra)


def _choose(engine: Engine, asking: Asking, asked: Asked) -> tuple[Choice, list[float]]:
    """How much to reduce, and the expected seconds of each run then.

    Raises:
        ApiError: see `Levels.choose`.
        InvalidRequest: it needs more runs than may wait.
    """
    most = engine.settings.queue_limit
    runs = len(asking.items) + len(asking.shared)
    if runs > most:
        raise InvalidRequest(
            f"The request needs {runs} runs of the model; at most {most} may wait."
        )
    workers = engine.scheduler.workers

    def takes(choice: Choice) -> float:
        # Workers run beside each other, but not half a run each.
        costs = asking.costs(choice)
        return math.ceil(runs / workers) * sum(costs) / runs

    choice = asking.model.levels.choose(
        asked.selector,
        asking.task,
        wait=engine.scheduler.wait if asked.max_latency_ms is not None else 0.0,
        takes=takes,
    )
    return choice, asking.costs(choice)


def _waker(settled: asyncio.Future[str]) -> Callable[[], None]:
    loop = settled.get_loop()

    def done() -> None:
        # Once per request, however many items: waking the loop costs more than the rest.
        loop.call_soon_threadsafe(_resolve, settled, "answered")

    return done


def _resolve(settled: asyncio.Future[str], reason: str) -> None:
    if not settled.done():
        settled.set_result(reason)


async def _wait(request: Request, settled: asyncio.Future[str], timeout: float) -> None:
    """Until all items are settled, or time is up.

    Raises:
        Abandoned: the caller is gone.
    """
    loop = settled.get_loop()
    watch: asyncio.Future[Any] | None = None

    def look() -> None:
        # The body is read: all that can come is the end of the connection.
        nonlocal watch
        watch = asyncio.ensure_future(request.receive())
        watch.add_done_callback(lambda _: _resolve(settled, "gone"))

    timers = [
        loop.call_later(timeout, _resolve, settled, "late"),
        # Most answers are there before it is worth looking whether anybody still wants them.
        loop.call_later(_UNWATCHED, look),
    ]
    try:
        if await settled == "gone":
            raise Abandoned("The caller went away.")
    finally:
        for timer in timers:
            timer.cancel()
        if watch is not None:
            if watch.done() and not watch.cancelled():
                watch.exception()
            watch.cancel()
