"""The way that the requests of every task go: choose, take places, decode, run, answer."""

from __future__ import annotations

import asyncio
import binascii
import contextvars
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service import images
from service.backends.backend import Sample
from service.catalog import Model
from service.engine import Engine
from service.errors import (
    Abandoned,
    ApiError,
    Expired,
    ImageError,
    InternalError,
    InvalidRequest,
    ItemProblem,
    problem_response,
)
from service.levels import Choice
from service.metrics import Stage, Track
from service.scheduler import Done, Lane, Ticket
from service.schemas import Asked

logger = logging.getLogger(__name__)

# An item's inputs for a model; called in a decoder thread.
Prepare = Callable[[Model], Sample]
# The task's own fields of an item's result, from the outputs of its run.
Finish = Callable[[Model, Sample], dict[str, Any]]

# Seconds before a request looks whether its caller is still there.
_UNWATCHED = 0.1


def image(data: bytes | str, *, max_pixels: int) -> Prepare:
    """An item that is one image: bytes, or base64 of them, perhaps as a data URL."""

    def prepare(model: Model) -> Sample:
        raw = data if isinstance(data, bytes) else _unbase64(data)
        return {"image": images.decode(raw, model.manifest.preprocess, max_pixels=max_pixels)}

    return prepare


def _unbase64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ImageError("The image is not base64.") from error


async def answer(
    engine: Engine,
    request: Request,
    track: Track,
    *,
    task: str,
    asked: Asked,
    items: Sequence[Prepare],
    finish: Finish,
) -> Response:
    """Do a request.

    Args:
        track: is told the model, level and outcome.
        items: 1 or more.
        finish: makes the fields that the task's result adds to `schemas.Result`.

    Raises:
        ApiError: the request as a whole cannot be answered, or the only item failed.
    """
    arrived = time.perf_counter()
    settings = engine.settings
    if len(items) > settings.max_items:
        raise InvalidRequest(
            f"A request has at most {settings.max_items} items; this one has {len(items)}."
        )
    model = engine.catalog.find(asked.model, task)
    track.model = model.name
    choice = model.levels.choose(
        asked.selector,
        wait=engine.scheduler.wait if asked.max_latency_ms is not None else 0.0,
        rounds=math.ceil(len(items) / engine.scheduler.workers),
    )
    track.level = choice.level

    loop = asyncio.get_running_loop()
    settled: asyncio.Future[str] = loop.create_future()

    def done() -> None:
        # Once per request, however many items: waking the loop costs more than the rest.
        loop.call_soon_threadsafe(_resolve, settled, "answered")

    ticket = engine.scheduler.admit(
        Lane(model.backend, choice.plan),
        len(items),
        cost=model.costs.seconds(choice.plan),
        within=settings.request_timeout,
        done=done,
    )
    decoded = [_Decoding() for _ in items]
    slots = "slots" in asked.include
    try:
        for index, prepare in enumerate(items):
            # The context carries the request's id to the log.
            context = contextvars.copy_context()
            engine.decoders.submit(
                partial(context.run, _decode, ticket, index, prepare, model, slots, decoded[index])
            )
        await _wait(request, settled, settings.request_timeout)
    finally:
        ticket.cancel()

    results = [
        _result(engine, model, choice, outcome, decoding, arrived, slots, finish)
        for outcome, decoding in zip(ticket.outcomes, decoded, strict=True)
    ]
    return _respond(model, results, track)


class _Decoding:
    """When a decoder began with an item and ended, in seconds of perf_counter."""

    __slots__ = ("begun", "ended")

    def __init__(self) -> None:
        self.begun = self.ended = 0.0


def _decode(
    ticket: Ticket, index: int, prepare: Prepare, model: Model, slots: bool, decoding: _Decoding
) -> None:
    if ticket.cancelled:
        return
    decoding.begun = time.perf_counter()
    try:
        sample = prepare(model)
    except ApiError as error:
        ticket.fail(index, error)
    except BaseException:
        logger.exception("an item could not be prepared")
        ticket.fail(index, InternalError())
    else:
        decoding.ended = time.perf_counter()
        ticket.submit(index, sample, slots=slots)


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


def _result(
    engine: Engine,
    model: Model,
    choice: Choice,
    outcome: Done | ApiError | None,
    decoding: _Decoding,
    arrived: float,
    slots: bool,
    finish: Finish,
) -> dict[str, Any] | ApiError:
    """An item's result as `schemas.Result` describes it.

    Built by hand: models of it would be checked, and written, at three times the cost of a dict.
    """
    if outcome is None:
        return Expired(
            f"The answer was not there after {engine.settings.request_timeout:g} s.",
            retry_after=max(1, math.ceil(engine.scheduler.wait)),
        )
    if isinstance(outcome, ApiError):
        return outcome
    begun = time.perf_counter()
    try:
        result = finish(model, outcome.output)
    except ApiError as error:
        return error
    work = choice.work
    result["reduction"] = {
        "method": model.manifest.workload.method,
        "level": choice.level,
        "requested": choice.requested,
        "flops_ratio": round(work.ratio, 6),
        "tokens_in": work.tokens_in,
        "tokens_out": work.tokens_out,
    }
    if slots:
        result["slots"] = outcome.output["slots"].tolist()
        result["grid"] = model.grid
        result["protected"] = model.protected
    result["batch_size"] = outcome.batch_size
    seconds: dict[Stage, float] = {
        "decode": decoding.ended - decoding.begun,
        "queue": decoding.begun - arrived + outcome.waited,
        "infer": outcome.ran,
        "post": time.perf_counter() - begun,
    }
    engine.metrics.stages(seconds)
    result["timings_ms"] = {stage: round(value * 1000, 3) for stage, value in seconds.items()}
    return result


def _respond(model: Model, results: Sequence[dict[str, Any] | ApiError], track: Track) -> Response:
    failed = [found for found in results if isinstance(found, ApiError)]
    answered = [found for found in results if not isinstance(found, ApiError)]
    if not answered:
        first = failed[0]
        if len(failed) == 1:
            raise first
        track.outcome = first.outcome
        problem = first.problem()
        problem.results = [ItemProblem(problem=found.problem()) for found in failed]
        return problem_response(problem, first.headers())
    if failed:
        track.outcome = "partial"
    listed = [
        {"problem": found.problem().model_dump(exclude_none=True)}
        if isinstance(found, ApiError)
        else found
        for found in results
    ]
    return Response(
        json.dumps({"model": model.name, "results": listed}, separators=(",", ":")),
        media_type="application/json",
        headers={"server-timing": _server_timing(answered)},
    )


def _server_timing(results: Sequence[Mapping[str, Any]]) -> str:
    """The slowest item of each stage, and the largest batch."""
    slowest: dict[str, float] = {}
    for result in results:
        for stage, value in result["timings_ms"].items():
            slowest[stage] = max(value, slowest.get(stage, 0.0))
    stages = ", ".join(f"{stage};dur={value:g}" for stage, value in slowest.items())
    return f'{stages}, batch;desc="{max(result["batch_size"] for result in results)}"'
