"""The way of an inference request through the API: from a checked body to the response."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response

from tokenfold.bundle.tasks import Task
from tokenfold.inference.answers import Answer, Finish, answers
from tokenfold.inference.errors import InvalidRequest, RequestError
from tokenfold.inference.request import Item, one_by_one
from tokenfold.inference.request import Request as InferenceRequest
from tokenfold.inference.texts import describe
from tokenfold.service.api.problems import (
    ItemProblem,
    headers_of,
    problem_of,
    problem_response,
)
from tokenfold.service.api.schemas.inference import InferenceBody
from tokenfold.service.core import Core
from tokenfold.service.logs import request_id
from tokenfold.service.metrics import Track
from tokenfold.service.scheduling.catalog import ServedModel


class Incoming:
    """An inference request as it arrives over HTTP.

    Attributes:
        core: the server's core.
        web: the HTTP request.
        track: its entry in the metrics.
        arrived: its time of arrival, in seconds of `time.perf_counter`.
    """

    def __init__(self, web: Request, track: Track) -> None:
        self.core: Core = web.app.state.core
        self.web = web
        self.track = track
        self.arrived = time.perf_counter()

    def model(self, name: str | None, task: Task) -> ServedModel:
        """Return the model of the request, and note it in the metrics.

        Raises:
            UnknownModel: no model of that name has the task.
        """
        model = self.core.catalog.find(name, task)
        self.track.model = model.name
        return model

    def request(
        self,
        model: ServedModel,
        task: Task,
        body: InferenceBody,
        items: Sequence[Item],
        *,
        images: Sequence[bytes | str] = (),
        texts: Sequence[str] = (),
        text_field: str = "text",
    ) -> InferenceRequest:
        """Return the request as plain data.

        Args:
            model: the model.
            task: the task.
            body: the body, with its selector and the parts to include.
            items: the parts that are answered by themselves.
            images: the images, if the task has them.
            texts: the texts, if the task has them.
            text_field: their name in the body.

        Raises:
            InvalidRequest: there are too many images or texts.
        """
        settings = self.core.settings
        check_count("images", len(images), settings.max_items)
        check_count("texts", len(texts), settings.max_items)
        return InferenceRequest(
            id=request_id.get() or "",
            model=model.name,
            task=task,
            images=images,
            texts=texts,
            text_field=text_field,
            items=items,
            selector=body.selector,
            slots="slots" in body.include,
            arrived=self.arrived,
            deadline=self.arrived + settings.request_timeout,
            caller=self.web.client.host if self.web.client else "",
        )

    async def respond_about_texts(
        self,
        task: Task,
        body: InferenceBody,
        images: Sequence[bytes | str],
        texts: Sequence[str],
        finish: Callable[[ServedModel], Finish],
        *,
        text_field: str,
        per_item: int = 1,
    ) -> Response:
        """Run a request that pairs images with texts, and answer it.

        Args:
            task: the task.
            body: the body, with its selector and the parts to include.
            images: the images.
            texts: the texts.
            finish: makes the fields of the task, given the model.
            text_field: the name of the texts in the body.
            per_item: images of each item.

        Raises:
            RequestError: the request is refused, or its only item has failed.
        """
        items = one_by_one(len(images), len(texts), name=text_field, per_item=per_item)
        model = self.model(body.model, task)
        request = self.request(
            model, task, body, items, images=images, texts=texts, text_field=text_field
        )
        return await self.respond(model, request, finish(model))

    async def respond(
        self, model: ServedModel, request: InferenceRequest, finish: Finish, *, row: int = 1
    ) -> Response:
        """Run a request and answer it.

        Args:
            model: its model.
            request: the request.
            finish: makes the fields of the task.
            row: items of an answer: 1, or the texts of a matrix.

        Raises:
            RequestError: the request is refused, or its only item has failed.
        """
        dispatcher, track = self.core.dispatcher, self.track
        planned = await dispatcher.plan(model, request)
        track.level = planned.choice.level
        result = await dispatcher.run(planned, disconnect=self.web.receive)
        listed = answers(model, request, result, finish, row=row)
        for answer in listed:
            if not isinstance(answer, RequestError):
                self.core.metrics.stages(request.task, answer["timings_ms"])
        texts = result.texts if request.task == "match" else ()
        extra = {"texts": [describe(text, pieces=request.slots) for text in texts]} if texts else {}
        return response(model.name, listed, track, extra)


def check_count(name: str, count: int, limit: int) -> None:
    """Check that a request has at most `limit` of something; raise InvalidRequest otherwise."""
    if count > limit:
        raise InvalidRequest(f"A request may have at most {limit} {name}; this one has {count}.")


def response(
    model: str, listed: Sequence[Answer | RequestError], track: Track, extra: Mapping[str, Any]
) -> Response:
    """Return the response to an inference request.

    Args:
        model: name of the model.
        listed: an answer for each item, or its error.
        track: entry of the request in the metrics.
        extra: fields beside the results.

    Raises:
        RequestError: of the only item, if it failed.
    """
    failure = total_failure(listed, track)
    if failure is not None:
        return failure
    answered = [answer for answer in listed if not isinstance(answer, RequestError)]
    return Response(
        json.dumps({"model": model, **extra, "results": results(listed)}, separators=(",", ":")),
        media_type="application/json",
        headers={"server-timing": _server_timing(answered)},
    )


def total_failure(listed: Sequence[Answer | RequestError], track: Track) -> Response | None:
    """Return the response to a request whose items have all failed; None if one has not.

    Args:
        listed: an answer for each item, or its error.
        track: entry of the request in the metrics, whose outcome is set if an item has failed.

    Raises:
        RequestError: of the only item.
    """
    failed = [answer for answer in listed if isinstance(answer, RequestError)]
    if len(failed) < len(listed):
        if failed:
            track.outcome = "partial"
        return None
    first = failed[0]
    if len(failed) == 1:
        raise first
    track.outcome = first.outcome
    problem = problem_of(first)
    problem.results = [ItemProblem(problem=problem_of(error)) for error in failed]
    return problem_response(problem, headers_of(first))


def results(listed: Sequence[Answer | RequestError]) -> list[Answer]:
    """Return the results of a request, with a problem in the place of each failed item."""
    return [
        {"problem": problem_of(answer).model_dump(exclude_none=True)}
        if isinstance(answer, RequestError)
        else answer
        for answer in listed
    ]


def _server_timing(answered: Sequence[Answer]) -> str:
    """Return the `Server-Timing` header: the slowest item of each stage, and the largest batch."""
    slowest: dict[str, float] = {}
    for answer in answered:
        for stage, value in answer["timings_ms"].items():
            slowest[stage] = max(value, slowest.get(stage, 0.0))
    stages = ", ".join(f"{stage};dur={value:g}" for stage, value in slowest.items())
    return f'{stages}, batch;desc="{max(answer["batch_size"] for answer in answered)}"'
