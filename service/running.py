"""The runs that a request needs: how much to reduce, places in the queue, and the wait for them."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from starlette.requests import Request

from tokenfold.service import images
from tokenfold.service.core import Core
from tokenfold.service.errors import Abandoned, ImageError, InvalidRequest
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Choice, Selector
from tokenfold.service.steps import Asking, Prepare, Steps

# Seconds before a request looks whether its caller is still there.
_UNWATCHED = 0.1


def image(data: bytes | str, *, max_pixels: int) -> Prepare:
    """An image: bytes, or base64 of them, perhaps as a data URL."""

    def prepare(model: Model) -> npt.NDArray[Any]:
        raw = data if isinstance(data, bytes) else unbase64(data)
        return images.decode(raw, model.manifest.preprocess, max_pixels=max_pixels)

    return prepare


def unbase64(text: str) -> bytes:
    """What a text encodes, perhaps as a data URL.

    Raises:
        ImageError: it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ImageError("The image is not base64.") from error


def choose(core: Core, asking: Asking, selector: Selector, *, spent: float = 0.0) -> Choice:
    """How much to reduce.

    Args:
        spent: seconds that the request has waited already, of those it may take.

    Raises:
        ApiError: see `Levels.choose`.
        InvalidRequest: it needs more runs than may wait.
    """
    most = core.settings.queue_limit
    runs = len(asking.items) + len(asking.shared)
    if runs > most:
        raise InvalidRequest(
            f"The request needs {runs} runs of the model; at most {most} may wait."
        )
    turns = core.turns(asking.model, runs)

    def takes(choice: Choice) -> float:
        return turns * sum(asking.costs(choice)) / runs

    return asking.model.levels.choose(
        selector,
        asking.task,
        wait=spent + core.scheduler.wait if selector.max_latency_ms is not None else 0.0,
        takes=takes,
    )


async def run(
    core: Core,
    asking: Asking,
    choice: Choice,
    *,
    slots: bool = False,
    request: Request | None = None,
    within: float | None = None,
) -> Steps:
    """Do what is asked; outcomes that are not there when time is up are None.

    Args:
        slots: whether they are asked for.
        request: whose caller is watched; None if there is nobody to go away.
        within: seconds that it may take; by default a whole request's.

    Raises:
        ApiError: there are no places for it; see `Scheduler.admit`.
        Abandoned: the caller is gone.
    """
    seconds = core.settings.request_timeout if within is None else within
    settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ticket = core.scheduler.admit(
        asking.costs(choice),
        within=seconds,
        done=_waker(settled),
        share=core.share(asking.model),
    )
    steps = Steps(asking, choice, ticket, slots=slots)
    try:
        steps.start(core.decoders)
        await _wait(request, settled, seconds)
    finally:
        ticket.cancel()
    return steps


def _waker(settled: asyncio.Future[str]) -> Callable[[], None]:
    loop = settled.get_loop()

    def done() -> None:
        # Once per request, however many items: waking the loop costs more than the rest.
        loop.call_soon_threadsafe(_resolve, settled, "answered")

    return done


def _resolve(settled: asyncio.Future[str], reason: str) -> None:
    if not settled.done():
        settled.set_result(reason)


async def _wait(request: Request | None, settled: asyncio.Future[str], timeout: float) -> None:
    """Until all items are settled, or time is up.

    Raises:
        Abandoned: the caller is gone.
    """
    loop = settled.get_loop()
    watch: asyncio.Future[Any] | None = None

    def look() -> None:
        # The body is read: all that can come is the end of the connection.
        nonlocal watch
        assert request is not None  # or nobody looks
        watch = asyncio.ensure_future(request.receive())
        watch.add_done_callback(lambda _: _resolve(settled, "gone"))

    timers = [loop.call_later(timeout, _resolve, settled, "late")]
    if request is not None:
        # Most answers are there before it is worth looking whether anybody still wants them.
        timers.append(loop.call_later(_UNWATCHED, look))
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
